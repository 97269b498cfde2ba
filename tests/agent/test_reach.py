"""The agent with an API server: what it serves never holds the addresses that it reaches that server at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec import structs

from ipvs_proxy.agent.assembly import sources
from ipvs_proxy.agent.sync import controller as controller_module
from ipvs_proxy.kube.client import connect
from ipvs_proxy.kube.objects import EndpointPort, Node, NodeAddress, NodeStatus, ObjectMeta, Service
from ipvs_proxy.kube.peers import Peer
from ipvs_proxy.plan.services import plan_service
from ipvs_proxy.settings.model import Settings
from lab import manifests
from tests.support.cluster import Cluster, listen, serving
from tests.support.fake_dataplane import FakeDataplane
from tests.support.objects import endpoint, endpoint_slice, packed, service, virtual
from tests.support.rig import Rig, running

API, CORRECT = "198.51.100.100", "203.0.113.7"
POD = "10.244.0.1"


@pytest.fixture
def plane() -> FakeDataplane:
    return FakeDataplane()


def web(*external: str, name: str = "web", cluster_ip: str = "10.96.0.10") -> Service:
    made = service(name, cluster_ip=cluster_ip)
    return structs.replace(made, spec=structs.replace(made.spec, external_ips=list(external)))


def left_out(where: str) -> str:
    return f"Service default/web NotServed service default/web {where}: api-server-address"


def told(rig: Rig) -> list[str]:
    return [event for event in rig.events if event.startswith("Service")]


@asynccontextmanager
async def connected(plane: FakeDataplane, cluster: Cluster) -> AsyncIterator[Rig]:
    """Run an agent that hears of everything from an API server."""
    listening = listen("127.0.0.1")
    with serving(cluster, listening):
        rig = Rig(plane)
        client = await connect(kubeconfig="", master=f"http://127.0.0.1:{listening.getsockname()[1]}")
        loops = (rig.controller.run(), *sources(Settings("node"), rig.controller, client))
        tasks = [asyncio.create_task(loop) for loop in loops]
        try:
            await rig.until(rig.controller.started.is_set)
            yield rig
            assert not any(task.done() for task in tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await client.close()
            rig.programmer.close()


async def test_endpoints_of_the_api_servers_own_service_are_not_taken(plane: FakeDataplane) -> None:
    def written(*external: str) -> dict[str, Any]:
        return manifests.service("web", "10.96.0.10", externalIPs=list(external))

    cluster = Cluster()
    kubernetes = manifests.service("kubernetes", "10.96.0.1", ports=[{"name": "tcp", "port": 443}])
    (piece,) = manifests.slices("kubernetes", [manifests.endpoint(API, "other")])
    for item in (kubernetes, piece):
        item["metadata"]["namespace"] = "default"
    cluster.apply(
        manifests.node(), kubernetes, piece, written(API), *manifests.slices("web", [manifests.endpoint(POD)])
    )
    async with connected(plane, cluster) as rig:
        assert told(rig) == [f"Service ring/web NotServed service ring/web externalIPs {API}: api-server-address"]
        assert b'ipvs_proxy_left_out_total{reason="api-server-address"} 1.0' in rig.metrics.render("text/plain")[0]
        assert virtual("10.96.0.10") in plane.kernel.virtual_servers
        assert packed(API) not in plane.kernel.addresses
        await asyncio.to_thread(cluster.apply, written(CORRECT))
        await rig.until(lambda: virtual(CORRECT) in plane.kernel.virtual_servers)
        # The API server moves, and nothing is left of where it was.
        await asyncio.to_thread(cluster.apply, written(API, CORRECT))
        await rig.until(lambda: len(told(rig)) == 2)
        piece["endpoints"] = [manifests.endpoint("198.51.100.101", "other")]
        await asyncio.to_thread(cluster.apply, piece)
        await rig.until(lambda: virtual(API) in plane.kernel.virtual_servers)


async def test_another_way_to_the_api_server_plans_the_services_at_its_address_and_no_other(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [web(f"203.0.113.{number}", name=f"other-{number}", cluster_ip=f"10.96.1.{number}") for number in range(5)]
    async with running(plane, web(API), endpoint_slice(endpoint(POD)), *others) as rig:
        assert packed(API) in plane.kernel.addresses
        planned: list[str] = []

        def plan(*arguments: Any) -> Any:
            planned.append(arguments[0].metadata.name)
            return plan_service(*arguments)

        monkeypatch.setattr(controller_module, "plan_service", plan)
        rig.controller.take_peers({Peer(packed(API), 6443)})
        await rig.until(lambda: packed(API) not in plane.kernel.addresses)
        await rig.until(lambda: virtual(API) not in plane.kernel.virtual_servers)
        assert told(rig) == [left_out(f"externalIPs {API}")]
        rig.controller.take_peers({Peer(packed("198.51.100.101"), 6443)})
        await rig.until(lambda: virtual(API) in plane.kernel.virtual_servers)
        assert planned == ["web", "web"]


async def test_from_a_cluster_ip_the_endpoints_behind_it_are_found_while_they_change(plane: FakeDataplane) -> None:
    kubernetes = service("kubernetes", cluster_ip="10.96.0.1")
    before = endpoint_slice(endpoint(API), of="kubernetes", name="kubernetes", ports=[EndpointPort("http", 6443)])
    async with running(plane, web(API, "10.96.0.1"), kubernetes, before) as rig:
        assert packed(API) in plane.kernel.addresses, "without a connection there is nothing to lose"
        rig.controller.take_peers({Peer(packed("10.96.0.1"), 80)})
        await rig.until(lambda: packed(API) not in plane.kernel.addresses)
        assert virtual("10.96.0.1") in plane.kernel.virtual_servers
        assert left_out("externalIPs 10.96.0.1") in told(rig)
        rig.replace(before, None)
        await rig.until(lambda: packed(API) in plane.kernel.addresses)


async def test_an_external_ip_that_is_this_nodes_is_told(plane: FakeDataplane) -> None:
    own = Node(ObjectMeta("node"), status=NodeStatus([NodeAddress("ExternalIP", "192.0.2.1")]))
    async with running(plane, web("192.0.2.1"), own) as rig:
        assert told(rig) == [
            "Service default/web ServedOtherwise service default/web externalIPs 192.0.2.1: address-of-this-node; "
            "it is served, and other nodes that serve it do not reach this node any more"
        ]
        assert virtual("192.0.2.1") in plane.kernel.virtual_servers
