"""Tracked flows of a real kernel, made by real datagrams through IPVS; ``conntrack`` is the witness."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from ipvs_proxy.agent.sync.stale_flows import StaleFlows
from ipvs_proxy.kernel.conntrack import codec as conntrack_codec
from ipvs_proxy.kernel.conntrack.table import Conntrack
from ipvs_proxy.plan.flows import Flow
from ipvs_proxy.plan.tables import ACTIVE, Family, Protocol, VirtualServer, VirtualServerKey
from lab.topology import ADDRESSES, FAMILIES, Topology, exchange, server, servers, topology
from tests.support.namespaces import fresh_namespace, missing_piece, run
from tests.support.objects import packed, real, virtual

pytestmark = pytest.mark.skipif(missing_piece() is not None, reason=str(missing_piece()))

NODE_PORT = 30053
POD_PORT = 5353
#: One address for each test, as flows stay.
VIPS = {
    name: {"IPv4": f"10.96.0.{number}", "IPv6": f"fd00:10:96::{number}"}
    for number, name in enumerate(("removed", "zero", "gone", "untranslated", "other"), 30)
}
LINE = re.compile(r"src=(\S+) dst=(\S+) sport=(\d+) dport=(\d+).*?src=(\S+) dst=(\S+) sport=(\d+) dport=(\d+)")

Witnessed = set[tuple[str, int, str, int]]


def witnessed(text: str) -> Witnessed:
    """Return destination and port, and where answers come from and the client's port, of what ``conntrack -L`` prints."""
    found = set()
    for _, destination, source_port, port, answers, *_ in LINE.findall(text):
        found.add((str(ip_address(destination)), int(port), str(ip_address(answers)), int(source_port)))
    return found


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with topology() as net, servers(net, ("pod1", "pod2"), {"UDP": POD_PORT}):
        commands = ["ip link add kube-ipvs0 type dummy"]
        commands += [f"ip address add {vip} dev kube-ipvs0" for vips in VIPS.values() for vip in vips.values()]
        commands += ["sysctl -qw net.ipv4.vs.conntrack=1"]
        # IPVS alone does not have connections tracked: on a node the agent's masquerade rules do.
        commands += [f"{tool} -t nat -A POSTROUTING -j RETURN" for tool in ("iptables", "ip6tables")]
        commands += [f"{tool} -A INPUT -m conntrack --ctstate ESTABLISHED" for tool in ("iptables", "ip6tables")]
        net.run("node", "sh", "-ec", "\n".join(commands))
        for family in FAMILIES:
            balance(net, VIPS["other"][family], 53, add=["pod1"])
        yield net


@contextmanager
def flows_outlive_real_servers(net: Topology) -> Iterator[None]:
    """Have IPVS leave flows alone when a real server goes, as older kernels do in any case."""
    with net.inside("node"):
        setting = Path("/proc/sys/net/ipv4/vs/expire_nodest_conn")
        setting.write_text("0")
        try:
            yield
        finally:
            setting.write_text("1")


def endpoint(place: str, family: str) -> str:
    return written(ADDRESSES[place][family], POD_PORT)


def written(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def balance(net: Topology, vip: str, port: int, *, add: Collection[str] = (), remove: Collection[str] = ()) -> None:
    """Add real servers to a virtual server, which is made with the first one, and remove others."""
    key, family = written(vip, port), "IPv6" if ":" in vip else "IPv4"
    lines = [f"-a -u {key} -r {endpoint(pod, family)} -m" for pod in add]
    lines += [f"-d -u {key} -r {endpoint(pod, family)}" for pod in remove]
    if f"-A -u {key} " not in net.run("node", "ipvsadm", "-Sn"):
        lines.insert(0, f"-A -u {key} -s rr")
    net.run("node", "ipvsadm", "-R", text="\n".join(lines) + "\n")


def tables(family: str, wanted: dict[VirtualServerKey, list[str]]) -> dict[VirtualServerKey, VirtualServer]:
    return {
        key: VirtualServer(key, "rr", real_servers={real(ADDRESSES[pod][family], POD_PORT): ACTIVE for pod in pods})
        for key, pods in wanted.items()
    }


def clean(
    net: Topology, desired: dict[VirtualServerKey, VirtualServer], changed: set[VirtualServerKey]
) -> tuple[Family, int]:
    """Have the agent's part clean once, in the node; return the family and how many flows it deleted."""

    async def once() -> tuple[Family, int]:
        done: asyncio.Future[tuple[Family, int]] = asyncio.get_running_loop().create_future()
        stale_flows = StaleFlows(lambda: desired, cleaned=lambda family, deleted, _: done.set_result((family, deleted)))
        task = asyncio.create_task(stale_flows.clean_for_ever())
        stale_flows.observe(changed)
        try:
            return await asyncio.wait_for(done, 30)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    with net.inside("node"):
        return asyncio.run(once())


def flows_of_node(net: Topology, family: str) -> Witnessed:
    return witnessed(net.run("node", "conntrack", "-L", "-f", family.lower(), "-p", "udp"))


def port_of(client: socket.socket) -> int:
    return client.getsockname()[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_only_flows_of_the_removed_real_server_go_and_the_next_datagram_is_answered(net, family):
    vip, node, peer = VIPS["removed"][family], ADDRESSES["node"][family], ADDRESSES["peer"][family]
    pod1, pod2 = ADDRESSES["pod1"][family], ADDRESSES["pod2"][family]
    balance(net, vip, 53, add=["pod1", "pod2"])
    balance(net, node, NODE_PORT, add=["pod1"])
    first, second = (net.connect("client", vip, 53, "UDP") for _ in range(2))
    at_node_port = net.connect("client", node, NODE_PORT, "UDP")
    at_peer = net.connect("client", peer, NODE_PORT, "UDP")
    other = net.connect("client", VIPS["other"][family], 53, "UDP")
    with first, second, at_node_port, at_peer, other, server(net, "peer", peer, NODE_PORT, "UDP"):
        by_pod = {exchange(client)[0]: client for client in (first, second)}
        assert by_pod.keys() == {"pod1", "pod2"}
        assert [exchange(client)[0] for client in (at_node_port, at_peer, other)] == ["pod1", "peer", "pod1"]
        stale = {
            (vip, 53, pod1, port_of(by_pod["pod1"])),
            (node, NODE_PORT, pod1, port_of(at_node_port)),
        }
        stays = {
            (vip, 53, pod2, port_of(by_pod["pod2"])),
            (peer, NODE_PORT, peer, port_of(at_peer)),
            (VIPS["other"][family], 53, pod1, port_of(other)),
        }
        before = flows_of_node(net, family)
        assert stale | stays <= before

        keys = [virtual(vip, 53, Protocol.UDP), virtual(node, NODE_PORT, Protocol.UDP)]
        kept = virtual(VIPS["other"][family], 53, Protocol.UDP)
        desired = tables(family, {keys[0]: ["pod2"], keys[1]: ["pod2"], kept: ["pod1"]})
        with flows_outlive_real_servers(net):
            balance(net, vip, 53, remove=["pod1"])
            balance(net, node, NODE_PORT, add=["pod2"], remove=["pod1"])
            assert flows_of_node(net, family) == before
            assert clean(net, desired, {keys[0]}) == (Family[family.upper()], 2)
            assert flows_of_node(net, family) == before - stale

        # No datagram is lost: the first one after the deletion is balanced anew.
        assert [exchange(by_pod["pod1"])[0], exchange(at_node_port)[0]] == ["pod2", "pod2"]
        assert clean(net, desired, {keys[0]})[1] == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["zero", "gone"])
def test_flows_go_when_no_real_server_or_no_virtual_server_is_left(net, family, name):
    vip = VIPS[name][family]
    key = virtual(vip, 53, Protocol.UDP)
    balance(net, vip, 53, add=["pod1"])
    with net.connect("client", vip, 53, "UDP") as client:
        assert exchange(client)[0] == "pod1"
        found = (vip, 53, ADDRESSES["pod1"][family], port_of(client))
        assert found in flows_of_node(net, family)
        desired = tables(family, {key: []}) if name == "zero" else {}
        with flows_outlive_real_servers(net):
            if name == "zero":
                balance(net, vip, 53, remove=["pod1"])
            else:
                net.run("node", "ipvsadm", "-D", "-u", written(vip, 53))
            assert clean(net, desired, {key}) == (Family[family.upper()], 1)
        assert found not in flows_of_node(net, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_flow_that_was_never_translated_goes_when_there_is_a_real_server(net, family):
    vip = VIPS["untranslated"][family]
    key = virtual(vip, 53, Protocol.UDP)
    with net.connect("client", vip, 53, "UDP") as client:
        client.send(b"anybody?")
        found = (vip, 53, vip, port_of(client))
        deadline = time.monotonic() + 10
        while found not in flows_of_node(net, family):
            assert time.monotonic() < deadline
        assert clean(net, tables(family, {key: []}), {key})[1] == 0
        assert found in flows_of_node(net, family)
        balance(net, vip, 53, add=["pod1"])
        assert clean(net, tables(family, {key: ["pod1"]}), {key})[1] == 1
        assert found not in flows_of_node(net, family)


@pytest.fixture
def tracking() -> Iterator[None]:
    """A namespace of its own in which everything is tracked, and whose addresses of IPv6 are a whole network."""
    with fresh_namespace():
        run("ip", "-6", "route", "add", "local", "fd00:127::/64", "dev", "lo")
        for command in ("iptables", "ip6tables"):
            run(command, "-A", "INPUT", "-m", "conntrack", "--ctstate", "ESTABLISHED")
        yield


DESTINATIONS = {"IPv4": "127.1.{}.{}", "IPv6": "fd00:127::{:x}:{:x}"}


def send(addresses: Collection[str], port: int) -> None:
    """Send a datagram to each address; what listens there is of no importance."""
    family = socket.AF_INET6 if ":" in next(iter(addresses)) else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        for address in addresses:
            client.sendto(b"x", (address, port))


@pytest.mark.parametrize("family", FAMILIES)
def test_table_of_thousands_of_flows(tracking, family):
    vips = [DESTINATIONS[family].format(1 + number // 250, 1 + number % 250) for number in range(3000)]
    send(vips, POD_PORT)
    mine = {virtual(vip, POD_PORT, Protocol.UDP) for vip in vips[::2]}

    def is_mine(flow: Flow) -> bool:
        return VirtualServerKey(flow.destination, flow.protocol, flow.destination_port) in mine

    with Conntrack() as conntrack:
        everything = conntrack.read(Family[family.upper()], Protocol.UDP, keep=lambda flow: True)
        listed = witnessed(run("conntrack", "-L", "-f", family.lower(), "-p", "udp"))
        assert len(listed) == 3000
        assert {(packed(where), port, packed(answers), client) for where, port, answers, client in listed} == {
            (flow.destination, flow.destination_port, flow.reply_source, flow.source_port) for flow in everything
        }
        kept = conntrack.read(Family[family.upper()], Protocol.UDP, keep=is_mine)
        assert len(kept) == 1500
        assert conntrack.delete(kept) == [0] * 1500
        assert conntrack.delete(kept[:2]) == [0, 0]
    left = witnessed(run("conntrack", "-L", "-f", family.lower(), "-p", "udp"))
    assert {where for where, *_ in left} == {str(ip_address(vip)) for vip in vips[1::2]}


def test_kernel_filters_by_family_and_protocol(tracking):
    send(["127.0.0.1"], POD_PORT)
    send(["::1"], POD_PORT)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        socket.create_connection(listening.getsockname()).close()
    dumped: list[bytes] = []
    with Conntrack() as conntrack:
        conntrack._socket.stream(conntrack_codec.encode_dump(Family.IPV4, Protocol.UDP), dumped.append)
        assert [codec_flow(payload)[:2] for payload in dumped] == [(Protocol.UDP, packed("127.0.0.1"))]
        dumped.clear()
        conntrack._socket.stream(conntrack_codec.encode_dump(Family.IPV4, 6, filtered=False), dumped.append)
        assert {codec_flow(payload).protocol for payload in dumped} == {Protocol.UDP, Protocol.TCP}


def codec_flow(payload: bytes) -> Flow:
    flow = conntrack_codec.decode_flow(payload)
    assert flow is not None
    return flow


def test_flow_that_took_the_place_of_the_one_that_was_read_stays(tracking):
    send(["127.0.0.1"], POD_PORT)
    with Conntrack() as conntrack:
        (flow,) = conntrack.read(Family.IPV4, Protocol.UDP, keep=lambda flow: True)
        assert len(flow.id) == 4
        successor = flow._replace(id=bytes(byte ^ 0xFF for byte in flow.id))
        assert conntrack.delete([successor]) == [0]
        assert len(witnessed(run("conntrack", "-L", "-p", "udp"))) == 1
        assert conntrack.delete([flow]) == [0]
    assert witnessed(run("conntrack", "-L", "-p", "udp")) == set()


@pytest.mark.parametrize("direction", [[], ["--zone-orig", "7"]], ids=["both", "original"])
def test_flow_of_another_zone_is_deleted_in_its_zone(tracking, direction):
    run("iptables", "-t", "raw", "-A", "OUTPUT", "-d", "127.0.0.2", "-j", "CT", *(direction or ["--zone", "7"]))
    send(["127.0.0.1", "127.0.0.2"], POD_PORT)
    with Conntrack() as conntrack:
        flows = {flow.destination: flow for flow in conntrack.read(Family.IPV4, Protocol.UDP, keep=lambda flow: True)}
        assert {key: flow.zone for key, flow in flows.items()} == {packed("127.0.0.1"): 0, packed("127.0.0.2"): 7}
        zoned = flows[packed("127.0.0.2")]
        assert conntrack.delete([zoned._replace(zone=0)]) == [0]
        assert len(witnessed(run("conntrack", "-L", "-p", "udp"))) == 2
        assert conntrack.delete([zoned]) == [0]
    assert {where for where, *_ in witnessed(run("conntrack", "-L", "-p", "udp"))} == {"127.0.0.1"}
