"""Our table as text, from the configuration: the sets, and the rules that refer to them.

Pure. The table depends on the configuration alone and not on the Services. What its rules decide is what the rules of
iptables decide (``iptables.render``); where they do it follows from how the kernel works:

* A verdict ends one table. ``accept`` lets others go on, so nothing here accepts what others forbid. ``drop`` is final,
  so it does not matter in which order tables drop.
* The chains of the type nat of all tables share one place in each hook, where the first that decides about a connection
  is the last to be asked (``nf_nat_inet_fn``). There, DNAT to the packet's own address changes nothing and keeps
  others, such as rules of host ports, off what is for a Service. Ours are asked before all others.
* IPVS takes packets at 98 and 99 in the hook input and at -99 and -98 in the hook output; what it sends on begins again
  at the start of output, and what it delivers on this node goes on behind it (``ip_vs_ops4`` of ip_vs_core.c).

Each line is written as nft prints it (1.0.6 to 1.1.3, but for the names of priorities), so that a line is right if it
is the same string.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from ipvs_proxy.kernel.filter.nftables.names import TABLE, definitions, name_of, set_name
from ipvs_proxy.plan import roles
from ipvs_proxy.plan.marks import CLASS
from ipvs_proxy.plan.masquerading import Interface, Masquerading
from ipvs_proxy.plan.roles import Roles
from ipvs_proxy.plan.tables import Family, Role

#: A part of the table (``chain firewall``) with its lines.
Blocks = Mapping[str, tuple[str, ...]]

#: The lengths of prefixes that source ranges have, by role.
Lengths = Mapping[Role, Collection[int]]

#: The chain that asks for them, of IPv4.
SOURCE_RANGES: Final = "source-ranges"
_OURS: Final = f"meta mark {CLASS:#010x}-{2 * CLASS - 1:#010x}"
_NOT_OURS: Final = f"meta mark != {CLASS:#010x}-{2 * CLASS - 1:#010x}"
_TAKE_OFF: Final = f"{_OURS} meta mark set 0x00000000"
#: What a packet with an address of ours belongs to; the suffix of the names of its sets and chains.
_FAMILIES: Final = {Family.IPV4: ("ip", "ipv4", ""), Family.IPV6: ("ip6", "ipv6", "-6")}
#: What a table says about itself.
TABLE_COMMENT: Final = "virtual servers of Services: kept by ipvs-proxy, which puts back what is changed here"

#: What the chains of each family are for.
_COMMENTS: Final = {
    "services": "which connections ask for masquerading; other nat rules are kept off Services",
    "load-balancers": "those with the policy Local keep the client's address",
    "node-ports": "those with the policy Local keep the client's address",
    "own-clients": "policy Local: the node's own packets get a mark that leads to all endpoints",
    "masquerading": "hairpin, and what asked for it",
    "clients": "policy Local: packets of clients in the cluster get a mark that leads to all endpoints",
    "unserved": "nothing reaches the node itself at an address of kube-ipvs0",
    "source-ranges": "who may reach a load balancer that has source ranges",
    "firewall": "source ranges, Services without endpoint, policy Local without an endpoint on this node",
    "own-firewall": "the same for the node's own packets",
    "marks-end": "behind IPVS the mark has done its work, and may ask for masquerading instead",
    "own-marks-end": "the same for the node's own packets to endpoints on the node itself",
    "input-marks-end": "the same for packets to endpoints on the node itself",
}

#: The priorities of our nat chains by hook.
NAT_PRIORITIES: Final = {"prerouting": -110, "output": -110, "postrouting": 90}

#: Base chains: the type, hook and priority of each, the chains of each family that it leads to, and on which condition.
_BASES: Final = (
    ("nat-prerouting", f"nat hook prerouting priority {NAT_PRIORITIES['prerouting']}", ("services",), ""),
    ("nat-output", f"nat hook output priority {NAT_PRIORITIES['output']}", ("own-clients", "services"), ""),
    ("nat-postrouting", f"nat hook postrouting priority {NAT_PRIORITIES['postrouting']}", ("masquerading",), ""),
    ("marks-input", "filter hook input priority -150", ("clients",), ""),
    ("filter-input", "filter hook input priority -10", ("unserved", "firewall"), ""),
    ("filter-forward", "filter hook forward priority -10", ("firewall",), ""),
    ("filter-output", "filter hook output priority -99", ("own-firewall",), ""),
    ("sent-by-ipvs", "filter hook output priority -310", ("marks-end",), _OURS),
    ("kept-by-ipvs", "filter hook output priority -97", ("own-marks-end",), _OURS),
    ("delivered-by-ipvs", "filter hook input priority 100", ("input-marks-end",), _OURS),
)


def render(settings: Mapping[Family, Masquerading], lengths: Lengths) -> Blocks:
    """Return the table of these families.

    Raises:
        ValueError: if a local network is of the other family.

    """
    blocks: dict[str, tuple[str, ...]] = dict(set_blocks(settings, lengths))
    for family, one in settings.items():
        for name, rules in _Chains(family, one, lengths).all().items():
            if rules:
                blocks[f"chain {name}{_FAMILIES[family][2]}"] = (f'comment "{_COMMENTS[name]}"', *rules)
    for name, hook, targets, condition in _BASES:
        jumps = [
            f"{condition} meta nfproto {protocol} jump {target}{suffix}".lstrip()
            for target in targets
            for protocol, suffix in (_FAMILIES[family][1:] for family in settings)
            if f"chain {target}{suffix}" in blocks
        ]
        if jumps:
            blocks[f"chain {name}"] = (f"type {hook}; policy accept;", *jumps)
    return blocks


def set_blocks(families: Iterable[Family], lengths: Lengths) -> Blocks:
    """Return the sets and maps of some families."""
    return {
        f"{'map' if one.layout.marks else 'set'} {set_name(one, length)}": (
            f"typeof {one.expression}",
            f'comment "{one.comment}"',
        )
        for one in definitions(families)
        for length in (sorted(lengths.get(one.role, ())) if one.layout.networks else (None,))
    }


def range_blocks(settings: Mapping[Family, Masquerading], lengths: Lengths) -> Blocks:
    """Return the parts of the table in which the lengths of the prefixes of source ranges count."""
    sets = {definition.name for definition in definitions(settings) if definition.layout.networks}
    return {
        name: lines
        for name, lines in render(settings, lengths).items()
        if name.startswith(f"chain {SOURCE_RANGES}") or name.partition(" ")[2].partition("/")[0] in sets
    }


def text_of(blocks: Blocks) -> str:
    """Return what makes these parts of the table, as ``nft -f`` reads it."""
    lines = [f"table inet {TABLE} {{", f'comment "{TABLE_COMMENT}"']
    for name, content in blocks.items():
        lines += [f"{name} {{", *content, "}"]
    return "\n".join([*lines, "}", ""])


class _Chains:
    """The chains of one family."""

    def __init__(self, family: Family, settings: Masquerading, lengths: Lengths) -> None:
        self._lengths = lengths.get(roles.LOAD_BALANCER_SOURCE_CIDR[family], ())
        self._family = family
        self._settings = settings
        self._ip, _, self._suffix = _FAMILIES[family]
        self._service = f"{self._ip} daddr . meta l4proto . th dport"
        bit = f"{1 << settings.masquerade_bit:#010x}"
        self._ask = f"meta mark set meta mark | {bit}"
        self._instead = f"meta mark set {bit}"
        self._bit = bit
        self._reject = f"reject with {'icmp' if family is Family.IPV4 else 'icmpv6'} port-unreachable"
        self._stays = f"dnat {self._ip} to {self._ip} daddr"

    def all(self) -> dict[str, tuple[str, ...]]:
        return {
            "services": self._services(),
            "load-balancers": (f"{self._to(roles.LOAD_BALANCER_LOCAL)} return", self._ask),
            "node-ports": self._node_ports(),
            "own-clients": self._own_clients(),
            "masquerading": self._masquerading(),
            "clients": self._clients(),
            "unserved": self._unserved(),
            "source-ranges": self._source_ranges(),
            "firewall": self._firewall(),
            "own-firewall": self._own_firewall(),
            "marks-end": self._marks_end(),
            "own-marks-end": (*self._marks_end()[:1], *self._marks_end()[-1:]),
            "input-marks-end": (_TAKE_OFF,) if self._settings.has_marks else (),
        }

    def _set(self, role: Roles) -> str:
        return f"@{name_of(role[self._family])}"

    def _to(self, role: Roles) -> str:
        return f"{self._service} {self._set(role)}"

    def _services(self) -> tuple[str, ...]:
        """Return whose first packet asks for masquerading: whoever it is from, ``masquerading`` grants it."""
        external = (roles.EXTERNAL_IP, roles.EXTERNAL_IP_LOCAL)
        return (
            f"{self._ip} saddr {'127.0.0.0/8' if self._family is Family.IPV4 else '::1'} return",
            f"{self._to(roles.LOAD_BALANCER)} jump load-balancers{self._suffix}",
            self._masquerade_cluster_ips(),
            f"{self._to(roles.EXTERNAL_IP)} {self._ask}",
            *(f"{self._to(role)} fib saddr type != local {self._stays}" for role in external),
            *(f"{self._to(role)} fib daddr type local {self._stays}" for role in external),
            f"fib daddr type local jump node-ports{self._suffix}",
            f"{self._to(roles.CLUSTER_IP)} {self._stays}",
            f"{self._to(roles.LOAD_BALANCER)} {self._stays}",
        )

    def _masquerade_cluster_ips(self) -> str:
        settings = self._settings
        if settings.masquerade_all:
            return f"{self._to(roles.CLUSTER_IP)} {self._ask}"
        if settings.local is None:
            return f"{self._ip} saddr . meta l4proto . th dport {self._set(roles.CLUSTER_IP)} {self._ask}"
        return f"{self._from_local(settings.local, '!= ')} {self._to(roles.CLUSTER_IP)} {self._ask}"

    def _from_local(self, local: IPv4Network | IPv6Network | Interface, negation: str = "") -> str:
        """Match what pods send (or with the negation ``!= `` what others send)."""
        if isinstance(local, Interface):
            # An asterisk at the end that is of the name itself is no wildcard.
            end = "*" if local.is_prefix else "\\*" if local.name.endswith("*") else ""
            return f'iifname {negation}"{local.name if local.is_prefix else local.name.removesuffix("*")}{end}"'
        if local.version != (4 if self._family is Family.IPV4 else 6):
            raise ValueError(f"the local network {local} is not of the family {self._family.label}")
        return f"{self._ip} saddr {negation}{_network_text(local)}"

    def _node_ports(self) -> tuple[str, ...]:
        kept = ((roles.NODE_PORT_LOCAL_TCP, "tcp"), (roles.NODE_PORT_LOCAL_UDP, "udp"))
        masqueraded = ((roles.NODE_PORT_TCP, "tcp"), (roles.NODE_PORT_UDP, "udp"))
        return (
            *(f"{protocol} dport {self._set(role)} return" for role, protocol in kept),
            f"{self._to(roles.NODE_PORT_LOCAL_SCTP)} return",
            *(f"{protocol} dport {self._set(role)} {self._ask}" for role, protocol in masqueraded),
            f"{self._to(roles.NODE_PORT_SCTP)} {self._ask}",
        )

    def _own_clients(self) -> tuple[str, ...]:
        if not self._settings.has_marks:
            return ()
        return (_TAKE_OFF, f"meta mark set {self._service} map {self._set(roles.INTERNAL)} {self._stays}")

    def _masquerading(self) -> tuple[str, ...]:
        return (
            f"{self._service} . {self._ip} saddr {self._set(roles.LOOP_BACK)} masquerade",
            f"meta mark & {self._bit} == 0x00000000 return",
            f"meta mark set meta mark ^ {self._bit}",
            "masquerade fully-random",
        )

    def _clients(self) -> tuple[str, ...]:
        settings = self._settings
        if not settings.has_marks:
            return ()
        if settings.local is None:
            return (_TAKE_OFF,)
        give = f"meta mark set {self._service} map {self._set(roles.INTERNAL)}"
        return (_TAKE_OFF, f"{self._from_local(settings.local)} ct state new {give}")

    def _unserved(self) -> tuple[str, ...]:
        known = (roles.LOAD_BALANCER, roles.CLUSTER_IP, roles.EXTERNAL_IP, roles.EXTERNAL_IP_LOCAL)
        return (
            *(f"{self._to(role)} return" for role in known),
            f"tcp dport {self._set(roles.HEALTH_CHECK_NODE_PORT)} return",
            f"ct state new {self._ip} daddr {self._set(roles.IPVS_IPS)} {self._reject}",
        )

    def _source_ranges(self) -> tuple[str, ...]:
        return (
            *(f"{self._in_network(length)} return" for length in sorted(self._lengths, reverse=True)),
            f"{self._service} . {self._ip} saddr {self._set(roles.LOAD_BALANCER_SOURCE_IP)} return",
            "drop",
        )

    def _in_network(self, length: int) -> str:
        """Match a source in a network of a length: all but the first bits of the address are taken off."""
        whole = ip_network((bytes(4 if self._family is Family.IPV4 else 16), length))
        mask = "" if length == whole.max_prefixlen else f" & {whole.netmask}"
        name = f"{self._set(roles.LOAD_BALANCER_SOURCE_CIDR)}/{length}"
        return f"{self._service} . {self._ip} saddr{mask} {name}"

    def _firewall(self) -> tuple[str, ...]:
        return (
            f"{self._to(roles.LOAD_BALANCER_FW)} jump source-ranges{self._suffix}",
            f"{_NOT_OURS} ct state new {self._to(roles.NO_LOCAL)} drop",
            f"ct state new {self._to(roles.NO_ENDPOINT).replace('th', 'tcp')} reject with tcp reset",
            f"ct state new {self._to(roles.NO_ENDPOINT)} {self._reject}",
        )

    def _own_firewall(self) -> tuple[str, ...]:
        """Return what the node's own packets may not reach: with a mark they reach all endpoints.

        Only the first packet of a connection has that mark, as it is given in a nat chain, but all are new until there
        is an answer. So a connection whose first packet has passed goes on. (Linux before 6.5 takes no map as a set,
        so the rule cannot ask for what is in that of the marks.)
        """
        return (self._firewall()[0], f"{_NOT_OURS} ct state new ct status ! confirmed {self._to(roles.NO_LOCAL)} drop")

    def _marks_end(self) -> tuple[str, ...]:
        """Return the rules that take marks off, or ask for masquerading instead, as in ``iptables.render``."""
        settings = self._settings
        if not settings.has_marks:
            return ()
        first = f"{_OURS} ct status ! confirmed"
        from_node = f"{first} fib saddr type local {self._instead}"
        if settings.local is None or isinstance(settings.local, Interface) or settings.local == settings.own_pods:
            return (from_node, _TAKE_OFF)
        own = settings.own_pods
        not_own = "" if own is None else f" {self._ip} saddr != {_network_text(own)}"
        return (from_node, f"{first}{not_own} {self._instead}", _TAKE_OFF)


def _network_text(network: IPv4Network | IPv6Network) -> str:
    """Write a network as nft prints it: a single address without its length."""
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)
