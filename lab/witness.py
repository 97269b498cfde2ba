"""What the kernel holds according to ``ipvsadm``, ``ip`` and ``ipset`` or ``nft``, in the plan's terms.

These tools are witnesses: they share no code with the agent, so that a fault in its codecs cannot hide itself.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from ipvs_proxy.kernel.filter.ipset.names import name_of
from ipvs_proxy.kube.objects import EndpointSlice, Service, SliceLabels
from ipvs_proxy.plan.addresses import parse_address
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.fragment import Context, ServiceName
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.services import plan_service
from ipvs_proxy.plan.tables import text_of
from lab.packet_filter import CHOSEN, IPTABLES, saved_sets
from lab.topology import Topology

_PROTOCOL_FLAGS = {"-t": 6, "-u": 17, "--sctp-service": 132}
_PROTOCOL_NAMES = {"tcp": 6, "udp": 17, "sctp": 132}


def planned(directory: Path, node: str = "node") -> DesiredTables:
    """Plan the manifests of a directory from scratch."""
    items = [
        item for file in sorted(directory.glob("*.json")) for item in msgspec.json.decode(file.read_bytes())["items"]
    ]
    slices = [msgspec.convert(item, EndpointSlice) for item in items if item["kind"] == "EndpointSlice"]
    tables = DesiredTables()
    context = Context(node, spells_marks=CHOSEN == IPTABLES)
    for item in items:
        if item["kind"] == "Service":
            service = msgspec.convert(item, Service)
            name = ServiceName(service.metadata.namespace, service.metadata.name)
            own = [piece for piece in slices if piece.metadata.labels == SliceLabels(name.name)]
            tables.replace(name, plan_service(service, own, context, Marks()))
    return tables


def assert_as_planned(net: Topology, directory: Path) -> None:
    """Compare the node's virtual servers, addresses and sets with the plan; draining real servers are ignored.

    Raises AssertionError if they differ.
    """
    tables = planned(directory)
    wanted = {
        (text_of(key.address), key.protocol, key.port): {
            (text_of(server.address), server.port): settings.weight for server, settings in servers.real_servers.items()
        }
        for key, servers in tables.virtual_servers.items()
    }
    found = virtual_servers(net)
    assert found == wanted, f"{found} is not {wanted}"
    assert addresses(net) == {text_of(address) for address in tables.addresses}
    wanted_members: dict[str, set[tuple[object, ...]]] = {}
    for role, entry in tables.entries:
        texts: list[object] = [text_of(entry.address)] if entry.address else []
        texts += [entry.protocol, entry.port] if entry.port else []
        texts += [text_of(entry.source)] if entry.source else []
        wanted_members.setdefault(name_of(role), set()).add(tuple(texts))
    assert {name: members for name, members in set_members(net).items() if members} == wanted_members


def virtual_servers(net: Topology) -> dict[tuple[str, int, int], dict[tuple[str, int], int]]:
    """Return what ``ipvsadm -Sn`` prints: real servers with their weights, without those at weight 0."""
    found: dict[tuple[str, int, int], dict[tuple[str, int], int]] = {}
    for line in net.run("node", "ipvsadm", "-Sn").splitlines():
        words = line.split()
        key = (*_address_and_port(words[2]), _PROTOCOL_FLAGS[words[1]])
        servers = found.setdefault((key[0], key[2], key[1]), {})
        if words[0] == "-a":
            assert "-m" in words, f"not masquerading: {line}"
            weight = int(words[words.index("-w") + 1])
            if weight:
                servers[_address_and_port(words[words.index("-r") + 1])] = weight
    return found


def weights(net: Topology, address: str, port: int, protocol: int = 6) -> dict[str, int]:
    """Return the weight of each real server of a virtual server by its address, 0 for those that drain."""
    found = {}
    for line in net.run("node", "ipvsadm", "-Sn").splitlines():
        words = line.split()
        if words[0] != "-a" or words[1] == "-f":  # a mark has no address
            continue
        if (_PROTOCOL_FLAGS[words[1]], *_address_and_port(words[2])) == (protocol, address, port):
            found[_address_and_port(words[words.index("-r") + 1])[0]] = int(words[words.index("-w") + 1])
    return found


def addresses(net: Topology) -> set[str]:
    """Return the addresses that ``ip`` shows on kube-ipvs0, and those to which it shows a route of the agent."""
    printed = net.run("node", "ip", "-o", "address", "show", "dev", "kube-ipvs0")
    found = {match.group(1) for match in re.finditer(r"inet6? ([0-9a-f:.]+)/", printed)}
    return found | routed(net)


def routed(net: Topology) -> set[str]:
    """Return the addresses that have no more than a local route to kube-ipvs0."""
    printed = net.run("node", "ip", "-o", "route", "show", "table", "local", "dev", "kube-ipvs0", "proto", "73")
    return {line.split()[1] for line in printed.splitlines()}


def set_members(net: Topology) -> dict[str, set[tuple[object, ...]]]:
    """Return the members of the sets that have any, by the names of the ipsets."""
    found: dict[str, set[tuple[object, ...]]] = {}
    for line in saved_sets(net):
        _, name, member, *_ = line.split()
        texts: list[object] = []
        for part in member.split(","):
            protocol, _, port = part.partition(":")
            if protocol in _PROTOCOL_NAMES:
                texts += [_PROTOCOL_NAMES[protocol], int(port)]
            else:
                texts.append(_canonical(part))
        found.setdefault(name, set()).add(tuple(texts))
    return found


def _address_and_port(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    return _canonical(address.strip("[]")), int(port)


def _canonical(text: str) -> str:
    packed = parse_address(text)
    assert packed is not None, text
    return text_of(packed)


def marks(net: Topology) -> set[int]:
    """Return the packet marks that the node's sets give to addresses and ports."""
    given = (re.fullmatch(r"add IPVS-PROXY-\S*INTERNAL .* skbmark (0x[0-9a-f]+)\S*", line) for line in saved_sets(net))
    return {int(found[1], 16) for found in given if found}
