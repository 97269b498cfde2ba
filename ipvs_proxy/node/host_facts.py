"""What else on a host decides how well Services work, apart from our own tables: read, never changed.

A fact that cannot be read here (another kernel, a container that does not see the host) is ``None`` or empty. That
means "unknown", and nothing is concluded from it.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

from ipvs_proxy.kernel.filter.iptables.chains import FILTER, IPVS_FILTER, IPVS_FILTER_BESIDE
from ipvs_proxy.kernel.filter.iptables.programs import Iptables
from ipvs_proxy.kernel.filter.iptables.saved import SavedTable, parse
from ipvs_proxy.kernel.links.addresses import LINK, Addresses
from ipvs_proxy.kernel.links.host_addresses import HostAddresses
from ipvs_proxy.node import processes
from ipvs_proxy.plan.tables import Family, text_of

ROOT: Final = Path("/")
#: Programs that announce addresses of load balancers by ARP, by the names of their processes.
ANNOUNCERS: Final = ("speaker", "kube-vip")
#: What is not about new connections to a port at every address: answers, the node's own connections, ICMP, one address.
_HARMLESS: Final = re.compile(r" --ctstate (?!\S*NEW)| -i lo | -p (icmp|ipv6-icmp|icmpv6) | (?<!! )-d \S+/(32|128) ")
_OUR_FILTER: Final = (f"-j {IPVS_FILTER}", f"-j {IPVS_FILTER_BESIDE}")
_SIZE: Final = re.compile(r"\(size=(\d+)\)")
_STATUS_CONNECTIONS: Final = re.compile(r"^Conns:\s+(\d+)$", re.MULTILINE)
_STATUS_BUCKETS: Final = re.compile(r"^Conn buckets:\s+(\d+)\b", re.MULTILINE)
#: At most this many connections are counted one by one, which takes a second and a half.
MOST_CONNECTIONS: Final = 1_000_000


@dataclass(slots=True, kw_only=True)
class HostFacts:
    """The facts.

    ``policies`` are those of the chains INPUT and FORWARD, by family label and chain; ``twice`` are the addresses that
    both our link and another one have, with the other's name; ``ahead`` are rules by family label that accept new
    connections in front of ours, which shut the ports of virtual addresses that are no Service's. ``connections`` are
    those of IPVS, counted up to ``MOST_CONNECTIONS`` before Linux 7.1. ``load_factor`` is there from Linux 7.1 on: the
    table of connections then grows by itself (``conn_lfactor`` of Documentation/networking/ipvs-sysctl.rst).
    ``reserved_ports`` are ranges of local ports, both ends included, that the kernel gives to nobody who asks for any.
    """

    run_estimation: int | None = None
    connection_buckets: int | None = None
    connections: int | None = None
    load_factor: int | None = None
    no_path_mtu: int | None = None
    conntrack_entries: int | None = None
    conntrack_room: int | None = None
    bridge_calls_iptables: int | None = None
    arp_ignore: int | None = None
    bridges: bool = False
    local_ports: tuple[int, int] | None = None
    reserved_ports: list[tuple[int, int]] = field(default_factory=list)
    link_manager: str = ""
    announcers: list[str] = field(default_factory=list)
    firewalld: bool = False
    policies: dict[tuple[str, str], str] = field(default_factory=dict)
    twice: dict[str, str] = field(default_factory=dict)
    ahead: dict[str, list[str]] = field(default_factory=dict)


def read_host_facts(iptables: Iptables | None, families: Iterable[Family], *, root: Path = ROOT) -> HostFacts:
    """Read the facts of the network namespace of this thread.

    Raises:
        Unusable: if iptables does not run.
        OSError: if the kernel refuses to tell its addresses.

    """
    sysctl = root / "proc/sys/net"
    found = HostFacts(
        run_estimation=_number(sysctl / "ipv4/vs/run_estimation"),
        connection_buckets=_buckets(root / "proc/net"),
        connections=_connections(root / "proc/net"),
        load_factor=_number(sysctl / "ipv4/vs/conn_lfactor"),
        no_path_mtu=_number(sysctl / "ipv4/ip_no_pmtu_disc"),
        conntrack_entries=_number(sysctl / "netfilter/nf_conntrack_count"),
        conntrack_room=_number(sysctl / "netfilter/nf_conntrack_max"),
        bridge_calls_iptables=_number(sysctl / "bridge/bridge-nf-call-iptables"),
        arp_ignore=_number(sysctl / "ipv4/conf/all/arp_ignore"),
        bridges=any((root / "sys/class/net").glob("*/bridge")),
        local_ports=_range(sysctl / "ipv4/ip_local_port_range"),
        reserved_ports=_ranges(_text(sysctl / "ipv4/ip_local_reserved_ports")),
        link_manager=_link_manager(root / "run"),
        announcers=processes.running_programs(ANNOUNCERS, root / "proc"),
        firewalld=bool(processes.running_programs(("firewalld",), root / "proc")),
        twice=_twice(),
    )
    if iptables is not None:
        for family in families:
            table = parse(iptables.save(family)).get(FILTER, SavedTable())
            for chain, policy in table.policies.items():
                if chain in {"INPUT", "FORWARD"}:
                    found.policies[family.label, chain] = policy
            if ahead := accepted_ahead(table):
                found.ahead[family.label] = ahead
    return found


def accepted_ahead(table: SavedTable) -> list[str]:
    """Return the rules of INPUT that accept new connections from elsewhere before our filter of ports is reached."""
    rules = table.chains.get("INPUT", [])
    first = next((number for number, rule in enumerate(rules) if rule.endswith(_OUR_FILTER)), 0)
    return [rule for rule in rules[:first] if rule.endswith("-j ACCEPT") and not _HARMLESS.search(rule)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if re.fullmatch(r"-?[0-9]+", text) else None


def _range(path: Path) -> tuple[int, int] | None:
    numbers = [int(word) for word in _text(path).split() if word.isdigit()]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


def _ranges(text: str) -> list[tuple[int, int]]:
    """Read ``1-5,9``."""
    found = (re.fullmatch(r"(\d+)(?:-(\d+))?", part) for part in text.split(","))
    return [(int(match[1]), int(match[2] or match[1])) for match in found if match]


def _buckets(net: Path) -> int | None:
    """Read the size of the table of connections; ``None`` if there is none yet."""
    status = _STATUS_BUCKETS.search(_text(net / "ip_vs_status"))
    if status is not None:
        return int(status[1]) or None
    # From the first line: the rest is the whole of IPVS.
    with suppress(OSError), (net / "ip_vs").open(encoding="ascii", errors="replace") as table:
        size = _SIZE.search(table.readline())
        return (int(size[1]) or None) if size else None
    return None


def _connections(net: Path) -> int | None:
    """Count the connections of IPVS. Linux 7.1 and later has their number; before that there is one line for each."""
    status = _STATUS_CONNECTIONS.search(_text(net / "ip_vs_status"))
    if status is not None:
        return int(status[1])
    with suppress(OSError), (net / "ip_vs_conn").open("rb") as table:
        next(table, None)
        return sum(1 for _ in islice(table, MOST_CONNECTIONS))
    return None


def _link_manager(run: Path) -> str:
    """Return who manages our link besides us; empty if nobody does, or if the host's ``/run`` cannot be seen."""
    try:
        index = socket.if_nametoindex(LINK)
    except OSError:
        return ""
    if re.search(r"^managed=true$", _text(run / f"NetworkManager/devices/{index}"), re.MULTILINE):
        return "NetworkManager"
    state = re.search(r"^ADMIN_STATE=(\w+)$", _text(run / f"systemd/netif/links/{index}"), re.MULTILINE)
    return "systemd-networkd" if state is not None and state[1] not in {"unmanaged", "pending"} else ""


def _twice() -> dict[str, str]:
    with closing(HostAddresses()) as host, closing(Addresses()) as addresses:
        interfaces, ours = host.read(), addresses.read()
    return {
        text_of(address): name
        for name, addresses in interfaces.items()
        if name != LINK
        for address in addresses
        if address in ours
    }
