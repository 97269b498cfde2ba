"""Manifests as people have them, from public reports: each with what must be served."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipvs_proxy.kube.decode import Skipped
from ipvs_proxy.kube.documents import ParseError
from ipvs_proxy.kube.objects import Service
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.fragment import ServiceName
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.services import plan_service
from tests.support.manifest_cases import CASES, CONTEXT, content, plan_of, served
from tests.support.objects import packed

#: Seconds of this process for one file of some kilobytes.
PATIENCE = 1.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Another node's address: as kube-proxy, but for what the node itself tells (below).
        ("03-externalip-of-another-node", {"10.96.9.1:80/TCP": 1, "203.0.113.2:80/TCP": 1}),
        # An address that kube-vip has on another port.
        ("05-kube-vip-shares-lb-ip", {"10.96.9.7:80/TCP": 1, "203.0.115.1:80/TCP": 1}),
        # An IPv6 address in mixed notation is the same address.
        ("09-noncanonical-ipv6", {"10.96.1.1:80/TCP": 0, "[fd00:96::1]:80/TCP": 1, "[fd00::a00:22]:80/TCP": 1}),
        # An address of a family that the Service has not is not served.
        ("10-v4-lb-in-v6-cluster", {"[fd00:96::1]:80/TCP": 1, "[2001:db8::7]:80/TCP": 1}),
        # A host name, an address that the load balancer answers itself, and an empty entry: only the VIP counts.
        ("12-ipmode-proxy-mixed", {"10.96.1.1:80/TCP": 2, "203.0.113.8:80/TCP": 2}),
        # TCP and UDP share address, port and node port; with the policy Local only this node's endpoint serves.
        (
            "13-dns-tcp-udp-one-ip",
            {
                "10.96.1.1:53/TCP": 2,
                "10.96.1.1:53/UDP": 2,
                "203.0.113.7:53/TCP": 1,
                "203.0.113.7:53/UDP": 1,
                "192.0.2.1:30053/TCP": 1,
                "192.0.2.1:30053/UDP": 1,
            },
        ),
        ("14-nulls-from-charts", {"10.96.1.1:80/TCP": 1}),
        ("16-endpoints-kind", {"10.96.1.1:80/TCP": 0}),
    ],
)
def test_manifests_of_a_report_are_served(name: str, expected: dict[str, int]) -> None:
    found = content((CASES / f"{name}.yaml").read_text())
    assert not [item for item in found.items if isinstance(item, Skipped)]
    fragment = plan_of(found)
    assert served(fragment) == expected
    assert fragment.omissions == []
    assert [unused.kind for unused in found.unused] == (["Endpoints"] if name.startswith("16") else [])


def test_an_external_ip_that_is_a_nodes_is_told_by_that_node() -> None:
    found = content((CASES / "03-externalip-of-another-node.yaml").read_text())
    other = CONTEXT._replace(node_name="other", node_addresses=frozenset((packed("203.0.113.2"),)))
    assert [reason for _, reason in plan_of(found, other).omissions] == [Reason.NODE_ADDRESS]


def test_the_address_of_a_control_plane_that_kube_vip_balances_is_served_where_it_is() -> None:
    found, shared = content((CASES / "05-kube-vip-shares-lb-ip.yaml").read_text()), packed("203.0.115.1")
    elsewhere = CONTEXT._replace(api_servers={shared: frozenset((6443,))})
    assert served(plan_of(found, elsewhere)) == {"10.96.9.7:80/TCP": 1}
    assert [reason for _, reason in plan_of(found, elsewhere).omissions] == [Reason.API_SERVER_ADDRESS]
    here = elsewhere._replace(host_addresses=frozenset((shared,)))
    assert served(plan_of(found, here)) == {"10.96.9.7:80/TCP": 1, "203.0.115.1:80/TCP": 1}
    assert plan_of(found, here).omissions == []


def test_an_external_ip_of_three_services_stays_until_the_last_one_lets_go() -> None:
    found, shared = content((CASES / "19-shared-externalip-three.yaml").read_text()), packed("203.0.113.50")
    tables = DesiredTables()
    services = [item for item in found.items if isinstance(item, Service)]
    for wanted in services:
        fragment = plan_service(wanted, (), CONTEXT, Marks())
        tables.replace(fragment.name, fragment)
    assert {str(key) for key in tables.virtual_servers if key.address == shared} == {
        f"203.0.113.50:{port}/TCP" for port in (8001, 8002, 8003)
    }
    for wanted in services:
        assert shared in tables.addresses
        tables.replace(ServiceName("shop", wanted.metadata.name), None)
    assert shared not in tables.addresses


def test_an_endpoint_slice_without_names_of_ports_is_joined_to_a_port_without_name() -> None:
    text = (CASES / "14-nulls-from-charts.yaml").read_text().replace('{name: "", port: 8080}', "{port: 8080}")
    assert "{port: 8080}" in text
    assert served(plan_of(content(text))) == {"10.96.1.1:80/TCP": 1}


def test_a_plain_equals_sign_is_text() -> None:
    text = (CASES / "14-nulls-from-charts.yaml").read_text()
    assert served(plan_of(content(f"{text}\n---\nkind: CustomResourceDefinition\nenum: [=, '!=']\n"))) == served(
        plan_of(content(text))
    )


BASE: dict[str, Any] = {
    document["kind"]: document
    for document in yaml.safe_load_all((CASES / "13-dns-tcp-udp-one-ip.yaml").read_text())
    if document is not None
}
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["9" * 3000, "\ud800", "\0", "1:" * 2000, "2026-01-01T00:00:00Z", "None", "fd00::1", "10.0.0.1"]),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in plain data."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, field in inner for deeper in paths(field, (*path, key)))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path or not isinstance(value, dict | list):
        return new
    key, *rest = path
    copy = value.copy()
    try:
        copy[key] = put(value[key], tuple(rest), new)
    except (LookupError, TypeError):
        return value
    return copy


def use(text: str, *, is_json: bool) -> None:
    begun = time.process_time()
    try:
        found = content(text, is_json=is_json)
    except ParseError as error:
        assert str(error).encode()  # noqa: PT017
        return
    for item in found.items:
        if isinstance(item, Skipped):
            (item.key + item.error).encode()
            assert len(item.key + item.error) < 1000
        elif isinstance(item, Service):
            for where, _ in plan_of(found).omissions:
                where.encode()
    assert time.process_time() - begun < PATIENCE


_EVERYWHERE = [(kind, *path) for kind, document in BASE.items() for path in paths(document)]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from(_EVERYWHERE), _VALUES), max_size=4), st.booleans())
def test_any_value_anywhere_in_a_manifest_harms_nothing(
    changes: list[tuple[tuple[Any, ...], Any]], is_json: bool
) -> None:
    documents = BASE
    for path, value in changes:
        documents = put(documents, path, value)
    items = list(documents.values())
    text = json.dumps({"kind": "List", "items": items}) if is_json else yaml.safe_dump_all(items)
    use(text, is_json=is_json)


_PIECES = st.sampled_from(
    [
        *("kind: Service\n", "kind: List\n", "apiVersion: v1\n", "metadata:\n  name: x\n", "spec: {clusterIP: 10.0.0.1}\n"),
        *("items:\n", "- ", "  ", "[", "]", "{", "}", "'", '"', "&a ", "*a", "<<: *a", "!!int ", "!!bool ", "!!float "),
        *("? ", "!!timestamp ", "!!set ", "!!binary ", "---\n", "|\n ", "\n", ": ", "1:1:1.5", "\t", "\0", "\ufeff", "é"),
    ]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(_PIECES, st.text(max_size=5)), max_size=15).map("".join), st.booleans())
def test_any_text_is_no_manifest_or_harms_nothing(text: str, is_json: bool) -> None:
    use(text, is_json=is_json)
