"""Drains with real connections: of whole Services, with deadlines of their own, with affinity; UDP that goes at once."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import manifests
from lab.agent import Agent, eventually, running_agent
from lab.manifests import PORTS, TARGET_PORTS, endpoint
from lab.packet_filter import saved_sets
from lab.topology import ADDRESSES, FAMILIES, Topology, exchange, servers, topology
from lab.witness import addresses, weights
from tests.ring.silence import silence

PODS = ("pod1", "pod2")
VIPS = {"IPv4": "10.96.0.40", "IPv6": "fd00:10:96::40"}
STICKY = {"IPv4": "10.96.0.41", "IPv6": "fd00:10:96::41"}


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with topology() as net, servers(net, PODS, TARGET_PORTS):
        yield net


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("manifests")
    manifests.write(directory, "node", manifests.node())
    return directory


@pytest.fixture(scope="module")
def agent(net: Topology, directory: Path) -> Iterator[Agent]:
    with running_agent(net, directory) as agent:
        yield agent


def write(directory: Path, name: str, vips: dict[str, str], *pods: str, drain: str = "", affinity: int = 0) -> None:
    service = manifests.service(name, *vips.values(), protocols=("TCP", "UDP"), affinity=affinity)
    if drain:
        service["metadata"]["annotations"] = {"ipvs-proxy.io/drain-timeout": drain}
    endpoints = [endpoint(ADDRESSES[pod][family]) for pod in pods for family in FAMILIES]
    manifests.write(directory, name, service, *manifests.slices(name, endpoints, ("TCP", "UDP")))


def served(net: Topology, address: str, count: int) -> bool:
    """Return whether so many real servers get connections. The address comes last."""
    return (
        address in addresses(net) and len([weight for weight in weights(net, address, 80).values() if weight]) == count
    )


def reaches_end(connection: socket.socket) -> bool:
    """Return whether a connection was ended by the other side, or by the kernel."""
    try:
        return not exchange(connection)[0]
    except (OSError, ValueError):
        return True


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("agent")
def test_connections_of_a_deleted_service_go_on_and_new_ones_are_refused(
    net: Topology, directory: Path, family: str
) -> None:
    vip = VIPS[family]
    write(directory, "web", VIPS, *PODS)
    eventually(lambda: served(net, vip, 2))
    connection = net.connect("client", vip, 80)
    name = exchange(connection)[0]
    (directory / "web.json").unlink()
    eventually(lambda: served(net, vip, 0))
    assert exchange(connection)[0] == name
    with pytest.raises(OSError):
        net.ask("client", vip, 80, timeout=silence(net))
    # The endpoint without a connection goes at once, the last one with its connection, and all else with it.
    eventually(lambda: set(weights(net, vip, 80)) == {ADDRESSES[name][family]})
    assert vip in addresses(net)
    # It comes back: no connection is lost.
    write(directory, "web", VIPS, *PODS)
    eventually(lambda: served(net, vip, 2))
    assert exchange(connection)[0] == name
    connection.close()


@pytest.mark.usefixtures("agent")
def test_idle_service_that_is_deleted_leaves_nothing(net: Topology, directory: Path) -> None:
    vips = {"IPv4": "10.96.0.44", "IPv6": "fd00:10:96::44"}
    write(directory, "idle", vips, *PODS)
    eventually(lambda: served(net, vips["IPv4"], 2))
    (directory / "idle.json").unlink()
    eventually(lambda: not addresses(net) & set(vips.values()))
    assert not any(vip in "".join([net.run("node", "ipvsadm", "-Sn"), *saved_sets(net)]) for vip in vips.values())


@pytest.mark.usefixtures("agent")
def test_a_service_has_a_deadline_of_its_own(net: Topology, directory: Path) -> None:
    vips = {"IPv4": "10.96.0.42", "IPv6": "fd00:10:96::42"}
    write(directory, "short", vips, "pod1", drain="1s")
    eventually(lambda: served(net, vips["IPv4"], 1))
    connection = net.connect("client", vips["IPv4"], 80)
    assert exchange(connection)[0] == "pod1"
    write(directory, "short", vips, "pod2", drain="1s")
    eventually(lambda: set(weights(net, vips["IPv4"], 80)) == {ADDRESSES["pod2"]["IPv4"]})
    assert reaches_end(connection)
    connection.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("agent")
def test_affinity_lets_go_of_an_endpoint_that_drains(net: Topology, directory: Path, family: str) -> None:
    vip = STICKY[family]
    write(directory, "sticky", STICKY, *PODS, affinity=600)
    eventually(lambda: served(net, vip, 2))
    connection = net.connect("client", vip, 80)
    first = exchange(connection)[0]
    (other,) = set(PODS) - {first}
    assert net.ask("client", vip, 80)[0] == first
    write(directory, "sticky", STICKY, other, affinity=600)
    eventually(lambda: weights(net, vip, 80).get(ADDRESSES[first][family]) == 0)
    assert {net.ask("client", vip, 80)[0] for _ in range(3)} == {other}
    assert exchange(connection)[0] == first
    connection.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("agent")
def test_udp_follows_at_once_also_one_socket_that_goes_on_sending(net: Topology, directory: Path, family: str) -> None:
    vips = {"IPv4": "10.96.0.43", "IPv6": "fd00:10:96::43"}
    write(directory, "dns", vips, "pod1")
    eventually(lambda: set(weights(net, vips[family], 53, 17)) == {ADDRESSES["pod1"][family]})
    client = net.connect("client", vips[family], PORTS["UDP"], "UDP", timeout=1.0)
    assert exchange(client)[0] == "pod1"
    write(directory, "dns", vips, "pod2")
    eventually(lambda: set(weights(net, vips[family], 53, 17)) == {ADDRESSES["pod2"][family]})

    def answered_by_the_other() -> bool:
        return exchange(client)[0] == "pod2"

    eventually(answered_by_the_other, 10.0)
    client.close()


@contextmanager
def listening(net: Topology, family: str) -> Iterator[socket.socket]:
    """A server on pod3 that the test answers for itself."""
    with net.inside("pod3"):
        found = socket.create_server(
            (ADDRESSES["pod3"][family], TARGET_PORTS["TCP"]),
            family=socket.AF_INET6 if family == "IPv6" else socket.AF_INET,
        )
    with found:
        found.settimeout(10)
        yield found


def states(net: Topology) -> list[str]:
    """Return the state of each connection through IPVS."""
    return [line.split()[2] for line in net.run("node", "ipvsadm", "-Lnc").splitlines()[2:]]


@pytest.mark.parametrize("first", ["client", "server"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("agent")
def test_a_connection_that_both_sides_have_closed_holds_nothing_up(
    net: Topology, directory: Path, family: str, first: str
) -> None:
    """The kernel keeps it in TIME_WAIT for two minutes, and counts it."""
    vips = {"IPv4": "10.96.0.45", "IPv6": "fd00:10:96::45"}
    write(directory, "closed", vips, "pod3")
    eventually(lambda: served(net, vips[family], 1))
    with listening(net, family) as server:
        client = net.connect("client", vips[family], 80)
        accepted = server.accept()[0]
        for side in (client, accepted) if first == "client" else (accepted, client):
            side.close()
    eventually(lambda: {"TIME_WAIT", "CLOSE"} & set(states(net)))
    begun = time.monotonic()
    (directory / "closed.json").unlink()
    eventually(lambda: vips[family] not in addresses(net))
    assert time.monotonic() - begun < 20, "it waited for the kernel's timer"


@pytest.mark.parametrize("first", ["client", "server"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("agent")
def test_a_connection_that_one_side_has_closed_goes_on(net: Topology, directory: Path, family: str, first: str) -> None:
    """The kernel counts it as inactive, but the other side may have a lot to send."""
    vips = {"IPv4": "10.96.0.46", "IPv6": "fd00:10:96::46"}
    write(directory, "half", vips, "pod3")
    eventually(lambda: served(net, vips[family], 1))
    with listening(net, family) as server, net.connect("client", vips[family], 80) as client:
        accepted = server.accept()[0]
        with accepted:
            closed, other = (client, accepted) if first == "client" else (accepted, client)
            closed.shutdown(socket.SHUT_WR)
            eventually(lambda: {"CLOSE_WAIT", "FIN_WAIT"} & set(states(net)))
            (directory / "half.json").unlink()
            eventually(lambda: served(net, vips[family], 0))
            time.sleep(2.5)  # the agent looks every second
            other.sendall(b"late")
            assert closed.recv(16) == b"late"
    eventually(lambda: vips[family] not in addresses(net), 20)
