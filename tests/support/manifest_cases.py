"""Manifests as people have them, from public reports."""

from __future__ import annotations

from pathlib import Path

from ipvs_proxy.kube.documents import parse
from ipvs_proxy.kube.manifest_objects import Content, read_objects
from ipvs_proxy.kube.objects import EndpointSlice, Service
from ipvs_proxy.plan.fragment import Context, Fragment
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.services import plan_service
from tests.support.objects import packed

CASES = Path(__file__).parents[1] / "kube/cases"
CONTEXT = Context("node", node_port_addresses=(packed("192.0.2.1"),))


def content(text: str, *, is_json: bool = False) -> Content:
    return read_objects(parse(text.encode("utf-8", "surrogatepass"), is_json=is_json), "node")


def plan_of(found: Content, context: Context = CONTEXT) -> Fragment:
    services = [item for item in found.items if isinstance(item, Service)]
    slices = [item for item in found.items if isinstance(item, EndpointSlice)]
    return plan_service(services[0], slices, context, Marks())


def served(fragment: Fragment) -> dict[str, int]:
    """Return the number of real servers of each virtual server, except for those found by a mark."""
    return {
        str(key): len(server.real_servers)
        for key, (server, _) in fragment.virtual_servers.items()
        if "mark" not in str(key)
    }
