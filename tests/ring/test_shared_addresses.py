"""External and load balancer addresses that are not ours alone: another node's, or shared with a foreign balancer.

The other nodes' trouble is that of kubernetes/kubernetes#127410, the shared address that of kube-vip/kube-vip#745.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import manifests
from lab.agent import eventually, running_agent
from lab.manifests import endpoint
from lab.packet_filter import saved_sets
from lab.topology import ADDRESSES, Topology, exchange, server, servers, topology
from lab.witness import addresses, virtual_servers, weights

POD = ADDRESSES["pod1"]["IPv4"]
PEER = ADDRESSES["peer"]["IPv4"]
#: What kube-vip has there: the control plane.
SHARED, CONTROL_PLANE = "203.0.115.1", ("203.0.115.1", 6, 6443)


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with topology() as net, servers(net, ("pod1",), {"TCP": 8080}), server(net, "peer", PEER, 80):
        yield net


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    manifests.write(tmp_path, "node", manifests.node())
    for number in (1, 2):
        write(tmp_path, f"other-{number}", f"10.96.8.{number}")
    return tmp_path


@pytest.fixture(autouse=True)
def clean(net: Topology) -> Iterator[None]:
    yield
    net.run("node", "ipvsadm", "--clear")
    assert cleanup(net)


def cleanup(net: Topology) -> str:
    with net.inside("node"):
        done = subprocess.run(
            (sys.executable, "-m", "ipvs_proxy", "cleanup"), capture_output=True, text=True, check=False, timeout=120
        )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def write(directory: Path, name: str, cluster_ip: str, *, ingress: tuple[str, ...] = (), **spec: object) -> None:
    wanted = manifests.service(name, cluster_ip, ingress=ingress, **spec)
    manifests.write(directory, name, wanted, *manifests.slices(name, [endpoint(POD)]))


def add_control_plane(net: Topology) -> None:
    net.run("node", "ipvsadm", "-A", "-t", "203.0.115.1:6443", "-s", "rr")
    net.run("node", "ipvsadm", "-a", "-t", "203.0.115.1:6443", "-r", "192.0.2.1:6443", "-m")


def drift(net: Topology) -> None:
    """Take something of ours away, and wait until an audit has put it back."""
    net.run("node", "ipvsadm", "-D", "-t", "10.96.8.1:80")
    eventually(lambda: ("10.96.8.1", 6, 80) in virtual_servers(net))


def test_a_foreign_virtual_server_at_the_address_of_a_service_stays(net: Topology, directory: Path) -> None:
    add_control_plane(net)
    write(directory, "share", "10.96.9.7", ingress=(SHARED,), type="LoadBalancer")
    with running_agent(net, directory, "--ipvs-sync-period", "1s") as agent:
        assert agent.named("kernel_read")[0]["foreign_virtual_servers"] == 1
        assert SHARED in addresses(net)
        for _ in range(2):
            drift(net)
            assert CONTROL_PLANE in virtual_servers(net), "an audit deleted it"
    # The agent finds its own address and members now, and what is not in them.
    with running_agent(net, directory, "--ipvs-sync-period", "1s") as second:
        assert second.named("kernel_read")[0]["foreign_virtual_servers"] == 1
        # One that comes while the agent runs.
        net.run("node", "ipvsadm", "-A", "-t", f"{SHARED}:6444", "-s", "rr")
        drift(net)
        drift(net)
        assert {CONTROL_PLANE, (SHARED, 6, 6444)} <= virtual_servers(net).keys()
    assert "virtual servers" in cleanup(net)
    assert virtual_servers(net).keys() == {CONTROL_PLANE, (SHARED, 6, 6444)}


def test_a_service_deleted_while_the_agent_was_away_goes_and_the_foreign_one_beside_it_stays(
    net: Topology, directory: Path
) -> None:
    write(directory, "share", "10.96.9.7", ingress=(SHARED,), type="LoadBalancer")
    with running_agent(net, directory):
        pass
    add_control_plane(net)
    (directory / "share.json").unlink()
    with running_agent(net, directory):
        eventually(lambda: SHARED not in addresses(net))
        eventually(lambda: (SHARED, 6, 80) not in virtual_servers(net))
        assert CONTROL_PLANE in virtual_servers(net)


def test_another_nodes_address_is_let_go_at_once_whatever_drains_behind_it(net: Topology, directory: Path) -> None:
    write(directory, "web", "10.96.9.1", externalIPs=[PEER])
    with running_agent(net, directory):
        connections = [net.connect(place, PEER, 80) for place in ("client", "node")]
        assert {exchange(connection)[0] for connection in connections} == {"pod1"}
        (directory / "web.json").unlink()
        eventually(lambda: PEER not in addresses(net))
        eventually(lambda: (PEER, 6, 80) not in virtual_servers(net))
        for place in ("client", "node"):
            assert net.ask(place, PEER, 80)[0] == "peer"
        for connection in connections:
            connection.close()


def test_a_shared_external_ip_stays_until_the_last_service_lets_go_and_then_goes_with_what_drains(
    net: Topology, directory: Path
) -> None:
    ports = {name: number for number, name in enumerate(("s1", "s2", "s3"), 8001)}
    for number, (name, port) in enumerate(ports.items(), 1):
        write(directory, name, f"10.96.1.{number}", externalIPs=[PEER], ports=[{"name": "tcp", "port": port}])
    with running_agent(net, directory):
        held = net.connect("client", PEER, 8001)
        assert exchange(held)[0] == "pod1"
        (directory / "s1.json").unlink()
        eventually(lambda: weights(net, PEER, 8001) == {POD: 0})
        assert exchange(held)[0] == "pod1", "it drains, as the address stays"
        assert net.ask("client", PEER, 8002)[0] == "pod1"
    with running_agent(net, directory):
        assert weights(net, PEER, 8001) == {POD: 0}, "the next agent carries on"
        assert exchange(held)[0] == "pod1"
        (directory / "s2.json").unlink()
        eventually(lambda: (PEER, 6, 8002) not in virtual_servers(net))
        assert PEER in addresses(net)
        (directory / "s3.json").unlink()
        eventually(lambda: PEER not in addresses(net))
        eventually(lambda: not [key for key in virtual_servers(net) if key[0] == PEER])
        assert net.ask("client", PEER, 80)[0] == "peer"
        assert not [line for line in saved_sets(net) if PEER in line]
        held.close()
