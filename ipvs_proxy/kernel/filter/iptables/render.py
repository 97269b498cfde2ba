"""The iptables rules of one family as text, from the configuration.

Pure. The chains, jumps and rules are those of kube-proxy's IPVS mode, in its order. Where kube-proxy writes a rule only
while the set that it refers to has members, it is always there: all sets exist from the start and an empty set matches
nothing, so the text depends on the configuration alone and not on the Services.

The chains whose names start with ``IPVS-PROXY-`` are our own. Where the policy is ``Local``, they give packets of
clients in the cluster the mark that leads to all endpoints: right before IPVS, and they take it off right after it;
``plan.marks`` says where and why. A packet that needs an address of the node leaves with the masquerade mark, as all
others do. ``SOURCES`` applies the source ranges of a load balancer to the node's own connections; kube-proxy needs a
rule for each address and port there, because its filter comes after IPVS has rewritten the packet.

Rules are written as ``iptables-save`` prints them (1.8.9, both variants), so a rule is right if it is the same string.

Two rules have two texts. ``-m physdev ! --physdev-is-in`` keeps what comes in through a bridge out of a shortcut, but
inserting it makes the kernel load br_netfilter (``physdev_mt_check`` of net/netfilter/xt_physdev.c), which from then on
sends all bridged traffic of the node through iptables. Where br_netfilter is not loaded, netfilter sees no packet that
comes from a bridge port: the match would always be true, and is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Final, NamedTuple

from ipvs_proxy.kernel.filter.ipset.names import definition_of, name_of
from ipvs_proxy.kernel.filter.iptables.chains import (
    ALONE,
    CHAINS,
    FILTER,
    FIREWALL,
    FORWARD,
    IPVS_FILTER,
    IPVS_OUT_FILTER,
    LOAD_BALANCER,
    MANGLE,
    MARK_MASQUERADE,
    NAT,
    NODE_PORT,
    OWN_INPUT,
    OWN_OUTPUT,
    OWN_POSTROUTING,
    OWN_SOURCES,
    POSTROUTING,
    RAW,
    SERVICES,
    SOURCE_RANGES,
    Chain,
    Layout,
)
from ipvs_proxy.plan import roles
from ipvs_proxy.plan.marks import CLASS, CLASS_MASK, PROTOCOL_BITS
from ipvs_proxy.plan.masquerading import Interface, Masquerading
from ipvs_proxy.plan.roles import Roles
from ipvs_proxy.plan.tables import Family

_OURS: Final = f"-m mark --mark {CLASS:#x}/{CLASS_MASK:#x}"
_NOT_OURS: Final = f"-m mark ! --mark {CLASS:#x}/{CLASS_MASK:#x}"
_CHAIN_NAME: Final = re.compile(r"(?<=-A )\S+|(?<= -j )\S+")
_TAKE_OFF: Final = f"{_OURS} -j MARK --set-xmark 0x0/0xffffffff"


class Rule(NamedTuple):
    """A rule of a table, as ``iptables-save`` prints it: ``-A CHAIN ...``."""

    table: str
    text: str


class Ruleset(NamedTuple):
    """The rules of our chains, and the rules of other chains that lead to ours.

    ``late`` are those of the latter that have to come first and do not.
    """

    chains: Mapping[Chain, Sequence[str]]
    jumps: Sequence[Rule]
    late: Sequence[Rule] = ()


def render(
    settings: Masquerading, *, family: Family, random_fully: bool, bridge_netfilter: bool, layout: Layout = ALONE
) -> Ruleset:
    """Return the rules of one family.

    ``random_fully``: iptables knows the option (1.6.2). ``bridge_netfilter``: br_netfilter is loaded. ``layout`` has
    the names of the chains.

    Raises:
        ValueError: if the local network is of the other family.

    """
    rules: dict[str, dict[str, Sequence[str]]] = {
        RAW: {OWN_OUTPUT: _after_ipvs(settings)},
        NAT: _nat(settings, family=family, random_fully=random_fully, bridge_netfilter=bridge_netfilter),
        FILTER: _filter(settings, family=family),
        MANGLE: _mangle(settings, family=family),
    }
    chains = {
        named: tuple(_named(f"-A {chain.name} {rule}", layout.names) for rule in rules[chain.table][chain.name])
        for chain, named in zip(CHAINS, layout.chains, strict=True)
    }
    return Ruleset(chains, tuple(Rule(jump.table, jump.text) for jump in layout.jumps))


def _named(rule: str, names: Mapping[str, str]) -> str:
    """Return a rule with other names of chains: its own, and the one that it leads to. Sets may have the same names."""
    return _CHAIN_NAME.sub(lambda found: names.get(found[0], found[0]), rule) if names else rule


class _Sets:
    """How rules refer to the sets of one family."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def match(self, role: Roles, directions: str) -> str:
        return f"-m set --match-set {name_of(role[self._family])} {directions}"

    def match_not(self, role: Roles, directions: str) -> str:
        return f"-m set ! --match-set {name_of(role[self._family])} {directions}"

    def commented(self, role: Roles, directions: str) -> str:
        return f"{_comment(definition_of(role[self._family]).comment)} {self.match(role, directions)}"


def _comment(text: str) -> str:
    quoted = re.sub(r"([\"'\\])", r"\\\1", text)
    return f'-m comment --comment "{quoted}"'


def _nat(
    settings: Masquerading, *, family: Family, random_fully: bool, bridge_netfilter: bool
) -> dict[str, Sequence[str]]:
    refer = _Sets(family)
    mark = settings.mark
    external, external_local = (
        refer.commented(role, "dst,dst") for role in (roles.EXTERNAL_IP, roles.EXTERNAL_IP_LOCAL)
    )
    from_outside = f"{'-m physdev ! --physdev-is-in ' * bridge_netfilter}-m addrtype ! --src-type LOCAL"
    to_node = "-m addrtype --dst-type LOCAL"
    return {
        SERVICES: (
            f"-s {'127.0.0.0/8' if family is Family.IPV4 else '::1/128'} -j RETURN",
            f"{refer.commented(roles.LOAD_BALANCER, 'dst,dst')} -j {LOAD_BALANCER}",
            _masquerade_cluster_ips(settings, family),
            f"{external} -j {MARK_MASQUERADE}",
            f"{external} {from_outside} -j ACCEPT",
            f"{external} {to_node} -j ACCEPT",
            f"{external_local} {from_outside} -j ACCEPT",
            f"{external_local} {to_node} -j ACCEPT",
            f"{to_node} -j {NODE_PORT}",
            # The last two keep later rules, such as those of host ports, off traffic to virtual servers.
            f"{refer.match(roles.CLUSTER_IP, 'dst,dst')} -j ACCEPT",
            f"{refer.match(roles.LOAD_BALANCER, 'dst,dst')} -j ACCEPT",
        ),
        POSTROUTING: (
            f"{refer.commented(roles.LOOP_BACK, 'dst,dst,src')} -j MASQUERADE",
            f"-m mark ! --mark {mark}/{mark} -j RETURN",
            f"-j MARK --set-xmark {mark}/0x0",
            _comment("kubernetes service traffic requiring SNAT") + " -j MASQUERADE" + " --random-fully" * random_fully,
        ),
        NODE_PORT: tuple(
            f"-p {protocol} {refer.commented(role, directions)} -j {target}"
            for protocol, role, directions, target in (
                ("tcp", roles.NODE_PORT_LOCAL_TCP, "dst", "RETURN"),
                ("tcp", roles.NODE_PORT_TCP, "dst", MARK_MASQUERADE),
                ("udp", roles.NODE_PORT_LOCAL_UDP, "dst", "RETURN"),
                ("udp", roles.NODE_PORT_UDP, "dst", MARK_MASQUERADE),
                ("sctp", roles.NODE_PORT_LOCAL_SCTP, "dst,dst", "RETURN"),
                ("sctp", roles.NODE_PORT_SCTP, "dst,dst", MARK_MASQUERADE),
            )
        ),
        LOAD_BALANCER: (
            f"{refer.commented(roles.LOAD_BALANCER_LOCAL, 'dst,dst')} -j RETURN",
            f"-j {MARK_MASQUERADE}",
        ),
        MARK_MASQUERADE: (f"-j MARK --set-xmark {mark}/{mark}",),
        OWN_INPUT: (_TAKE_OFF,) if settings.has_marks else (),
        OWN_OUTPUT: _own_clients(refer) if settings.has_marks else (),
    }


def _own_clients(refer: _Sets) -> tuple[str, ...]:
    """Return the rules that put the mark of the node's own packets together, bit by bit."""
    return (
        _TAKE_OFF,
        f"{refer.match_not(roles.INTERNAL, 'dst,dst')} -j RETURN",
        f"-j MARK --set-xmark {CLASS:#x}/0xffffffff",
        *(
            f"-p {protocol.name.lower()} -j MARK --set-xmark {bits:#x}/{bits:#x}"
            for protocol, bits in PROTOCOL_BITS.items()
        ),
        *(
            f"{refer.match(role, 'dst,dst')} -j MARK --set-xmark {bit:#x}/{bit:#x}"
            for bit, role in roles.MARK_BITS.items()
        ),
        # Later rules might add to it.
        "-j ACCEPT",
    )


def _after_ipvs(settings: Masquerading) -> tuple[str, ...]:
    """Return the rules that take marks off; for packets that need an address of the node, they ask for masquerading.

    The answer has to come back through this node, which is certain only for pods of this node: any other address of
    the cluster's network may be a pod of another node. Only the first packet of a connection is not confirmed yet, and
    it is the only one whose masquerade mark ``KUBE-POSTROUTING`` sees and takes off.
    """
    if not settings.has_marks:
        return ()
    first = f"{_OURS} -m conntrack ! --ctstatus CONFIRMED"
    ask = f"-j MARK --set-xmark {settings.mark}/0xffffffff"
    from_node = f"{first} -m addrtype --src-type LOCAL {ask}"
    if settings.local is None or isinstance(settings.local, Interface) or settings.local == settings.own_pods:
        return (from_node, _TAKE_OFF)
    not_own = "" if settings.own_pods is None else f"! -s {settings.own_pods} "
    return (from_node, f"{not_own}{first} {ask}", _TAKE_OFF)


def _mangle(settings: Masquerading, *, family: Family) -> dict[str, Sequence[str]]:
    refer = _Sets(family)
    unserved = f"{refer.match(roles.NO_LOCAL, 'dst,dst')} {refer.match_not(roles.INTERNAL, 'dst,dst')}"
    incoming: tuple[str, ...] = (_TAKE_OFF,) if settings.has_marks else ()
    if settings.has_marks and settings.local is not None:
        give = f"-j SET --map-set {name_of(roles.INTERNAL[family])} dst,dst --map-mark"
        incoming += (f"{_from_local(settings.local, family)}-m conntrack --ctstate NEW {give}",)
    return {
        OWN_INPUT: incoming,
        OWN_OUTPUT: (
            f"{refer.match(roles.LOAD_BALANCER_FW, 'dst,dst')} -j {OWN_SOURCES}",
            f"-m conntrack --ctstate NEW {unserved} -j DROP",
        ),
        # What the node sends and IPVS delivers on the node itself passes no other chain.
        OWN_POSTROUTING: tuple(f"-o lo {rule}" for rule in (*_after_ipvs(settings)[:1], *_after_ipvs(settings)[-1:])),
        OWN_SOURCES: (*_allowed_sources(refer), "-j DROP"),
    }


def _allowed_sources(refer: _Sets) -> tuple[str, ...]:
    return tuple(
        f"{refer.commented(role, 'dst,dst,src')} -j RETURN"
        for role in (roles.LOAD_BALANCER_SOURCE_CIDR, roles.LOAD_BALANCER_SOURCE_IP)
    )


def _from_local(local: IPv4Network | IPv6Network | Interface, family: Family, *, negation: str = "") -> str:
    """Match what pods send (or with the negation ``! `` what others send)."""
    if isinstance(local, Interface):
        return f"{negation}-i {local.name}{'+' * local.is_prefix} "
    if local.version != (4 if family is Family.IPV4 else 6):
        raise ValueError(f"the local network {local} is not of the family {family.label}")
    return f"{negation}-s {local} "


def _masquerade_cluster_ips(settings: Masquerading, family: Family) -> str:
    origin, directions = "", "dst,dst"
    if settings.masquerade_all:
        pass
    elif settings.local is None:
        directions = "src,dst"
    else:
        origin = _from_local(settings.local, family, negation="! ")
    return f"{origin}{_Sets(family).commented(roles.CLUSTER_IP, directions)} -j {MARK_MASQUERADE}"


def _filter(settings: Masquerading, *, family: Family) -> dict[str, Sequence[str]]:
    refer = _Sets(family)
    mark = settings.mark
    reject = "icmp-port-unreachable" if family is Family.IPV4 else "icmp6-port-unreachable"
    unserved = f"-m conntrack --ctstate NEW {refer.commented(roles.NO_ENDPOINT, 'dst,dst')}"
    known = (roles.LOAD_BALANCER, roles.CLUSTER_IP, roles.EXTERNAL_IP, roles.EXTERNAL_IP_LOCAL)
    return {
        FORWARD: (
            f"{_comment('kubernetes forwarding rules')} -m mark --mark {mark}/{mark} -j ACCEPT",
            f"{_comment('kubernetes forwarding conntrack rule')} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        ),
        NODE_PORT: (f"{refer.commented(roles.HEALTH_CHECK_NODE_PORT, 'dst')} -j ACCEPT",),
        FIREWALL: (
            f"{refer.commented(roles.LOAD_BALANCER_FW, 'dst,dst')} -j {SOURCE_RANGES}",
            f"{_NOT_OURS} -m conntrack --ctstate NEW {refer.commented(roles.NO_LOCAL, 'dst,dst')} -j DROP",
            f"-p tcp {unserved} -j REJECT --reject-with tcp-reset",
            f"{unserved} -j REJECT --reject-with {reject}",
        ),
        SOURCE_RANGES: (*_allowed_sources(refer), "-j DROP"),
        IPVS_FILTER: (
            *(f"{refer.match(role, 'dst,dst')} -j RETURN" for role in known),
            f"{refer.match(roles.HEALTH_CHECK_NODE_PORT, 'dst')} -j RETURN",
            f"-m conntrack --ctstate NEW {refer.match(roles.IPVS_IPS, 'dst')} -j REJECT --reject-with {reject}",
        ),
        # What kube-proxy has here is in our own chain for sources.
        IPVS_OUT_FILTER: (),
    }
