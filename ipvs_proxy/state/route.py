"""Traces a new connection to a virtual server's address: its path through rules, sets and IPVS.

The steps follow the order of the packet filter's rules. The result depends on what the kernel's tables hold, not on
what is desired. Rules of other programs are considered where they come before IPVS in the tables raw, mangle and nat
(see ``encounters``). Network policies, which are in the filter table, are not considered. Tables may change meanwhile,
so they are copied in one step before they are iterated over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address, ip_network
from types import MappingProxyType
from typing import Final

from ipvs_proxy.kernel.filter.backend import NameOfRole
from ipvs_proxy.kernel.filter.foreign.rules import Effect
from ipvs_proxy.plan import roles
from ipvs_proxy.plan.marks import mark_key
from ipvs_proxy.plan.masquerading import Interface, Masquerading
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.node_addresses import is_confined
from ipvs_proxy.plan.roles import Roles
from ipvs_proxy.plan.tables import Protocol, RealServerKey, SetEntry, VirtualServerKey, family_of, text_of
from ipvs_proxy.state.encounters import meet

_NO_RULES: Final[Mapping[str, str]] = MappingProxyType({})


class Verdict(StrEnum):
    """The outcome of a new connection."""

    BALANCED = "balanced"
    TAKEN = "taken"
    DROPPED = "dropped"
    REFUSED = "refused"
    NOT_SERVED = "not-served"


class Origin(StrEnum):
    """Where a client is."""

    NODE = "this node"
    CLUSTER = "in the cluster"
    OUTSIDE = "outside the cluster"


@dataclass(frozen=True, slots=True)
class Route:
    """The path of a connection: its steps in words, the verdict, and the virtual server that it ends at.

    ``masqueraded`` tells whether real servers see this node's address instead of the client's.
    """

    origin: Origin
    steps: tuple[str, ...]
    verdict: Verdict
    virtual_server: VirtualServerKey
    real_servers: tuple[RealServerKey, ...] = ()
    masqueraded: bool = False


def trace(
    client: bytes,
    key: VirtualServerKey,
    *,
    tables: KernelTables,
    rules: Masquerading,
    host_addresses: Collection[bytes],
    name_of_role: NameOfRole,
    others: Mapping[str, str] = _NO_RULES,
) -> Route:
    """Follow a new connection from a client to a virtual server.

    Args:
        client: packed source address, of the same family as the virtual server's.
        key: the virtual server that the connection is for.
        tables: the agent's objects in the kernel.
        rules: which connections of the family are masqueraded.
        host_addresses: packed addresses of this node.
        name_of_role: returns the kernel's name for the set of a role.
        others: the output of ``iptables-save`` for the address family, by variant of iptables.

    """
    walk = _Walk(client, key, tables, rules, name_of_role)
    walk.origin = _origin(client, tables, rules, host_addresses)
    walk.say(f"the client {text_of(client)} is {walk.origin}{_why_there(walk.origin, rules)}")
    return walk.taken_by(others) or walk.route()


def _origin(client: bytes, tables: KernelTables, rules: Masquerading, host_addresses: Collection[bytes]) -> Origin:
    if client in host_addresses or client in tables.addresses or is_confined(client):
        return Origin.NODE
    network = rules.own_pods if isinstance(rules.local, Interface) else rules.local
    return Origin.CLUSTER if network is not None and ip_address(client) in network else Origin.OUTSIDE


def _why_there(origin: Origin, rules: Masquerading) -> str:
    if isinstance(rules.local, Interface):
        return f" (packets that come in by the interface {rules.local.name} count as from the cluster)"
    if origin is Origin.NODE:
        return ""
    return f" (clusterCIDR {rules.local})" if rules.local is not None else " (no clusterCIDR is known)"


class _Walk:
    """A trace in progress: the steps taken so far, and what they depend on."""

    def __init__(
        self,
        client: bytes,
        key: VirtualServerKey,
        tables: KernelTables,
        rules: Masquerading,
        name_of_role: NameOfRole,
    ) -> None:
        self.origin = Origin.OUTSIDE
        self._client = client
        self._key = key
        self._tables = tables
        self._rules = rules
        self._family = family_of(key.address)
        self._name_of_role = name_of_role
        self._entry = SetEntry(*key[:3])
        self._steps: list[str] = []

    def say(self, step: str) -> None:
        self._steps.append(step)

    def taken_by(self, rules: Mapping[str, str]) -> Route | None:
        """Return where the path ends if rules of other programs end it before IPVS, otherwise ``None``."""
        own = self.origin is Origin.NODE
        # A connection from the node itself may have the virtual server's address as its source.
        client = None if own else self._client
        steps, end = meet(client, self._key, own=own, tables=self._tables, rules=rules)
        self._steps += steps
        if end is None:
            return None
        return self._end(Verdict.TAKEN if end is Effect.TAKES else Verdict.DROPPED, self._key)

    def route(self) -> Route:
        key = self._key
        if not self._source_may():
            return self._end(Verdict.DROPPED, key)
        marked = self._marked()
        if marked is not None:
            key = marked
        elif self._has(roles.NO_LOCAL):
            self.say(f"{self._name(roles.NO_LOCAL)} has it: the policy is Local and no endpoint is on this node")
            return self._end(Verdict.DROPPED, key)
        if self._has(roles.NO_ENDPOINT):
            self.say(f"{self._name(roles.NO_ENDPOINT)} has it: the Service has no endpoint that could be used")
            return self._end(Verdict.REFUSED, key)
        server = self._tables.virtual_servers.get(key)
        if server is None:
            return self._not_served(key)
        ready = tuple(
            sorted(server_key for server_key, settings in server.real_servers.copy().items() if settings.weight)
        )
        if not ready:
            self.say(f"IPVS has {key}, but no real server with a weight above 0: it answers with ICMP")
            return self._end(Verdict.REFUSED, key)
        plural = "" if len(ready) == 1 else "s"
        self.say(f"IPVS has {key} with the scheduler {server.scheduler} and {len(ready)} real server{plural}")
        masqueraded, why = self._masquerade(marked=marked is not None)
        self.say(f"{'masqueraded' if masqueraded else 'the client keeps its address'}: {why}")
        if any(address == self._client for address, _ in ready) and self._is_local(ready):
            self.say("if the choice falls on the client itself, that connection is masqueraded (hairpin)")
        return self._end(Verdict.BALANCED, key, ready, masqueraded=masqueraded)

    def _end(
        self,
        verdict: Verdict,
        key: VirtualServerKey,
        real_servers: tuple[RealServerKey, ...] = (),
        *,
        masqueraded: bool = False,
    ) -> Route:
        return Route(self.origin, tuple(self._steps), verdict, key, real_servers, masqueraded)

    def _name(self, role: Roles) -> str:
        return self._name_of_role(role[self._family])

    def _members(self, role: Roles) -> Collection[SetEntry]:
        return self._tables.entries.get(role[self._family], ())

    def _has(self, role: Roles, entry: SetEntry | None = None) -> bool:
        return (self._entry if entry is None else entry) in self._members(role)

    def _source_may(self) -> bool:
        """Return whether source ranges admit the client. This is true if there are none."""
        if not self._has(roles.LOAD_BALANCER_FW):
            return True
        networks = [
            f"{text_of(member.source)}/{member.prefix_length}"
            for member in tuple(self._members(roles.LOAD_BALANCER_SOURCE_CIDR))
            if member[:3] == self._entry[:3]
        ]
        # A connection from the node itself has the virtual server's address as its source.
        sources = [self._client, self._key.address] if self.origin is Origin.NODE else [self._client]
        allowed = any(_contains(networks, source) for source in sources) or any(
            self._has(roles.LOAD_BALANCER_SOURCE_IP, self._entry._replace(source=source)) for source in sources
        )
        listed = ", ".join(sorted(networks)) or "none"
        self.say(f"source ranges ({listed}) {'let it in' if allowed else 'keep it out'}")
        return allowed

    def _marked(self) -> VirtualServerKey | None:
        """Return the virtual server of the packet mark that this client gets, or ``None`` if it gets none."""
        if self.origin is Origin.OUTSIDE:
            return None
        mark = next(
            (member.mark for member in tuple(self._members(roles.INTERNAL)) if member[:3] == self._entry[:3]), 0
        )
        if not mark:
            return None
        self.say(f"{self._name(roles.INTERNAL)} gives it the mark {mark:#x}: clients in the cluster get all endpoints")
        return mark_key(mark, family_of(self._key.address))

    def _not_served(self, key: VirtualServerKey) -> Route:
        if key.address in self._tables.addresses:
            self.say(f"IPVS has no {key}, and the address is a Service's: no other port of it is open")
            return self._end(Verdict.REFUSED, key)
        self.say(f"IPVS has no {key}: the packet goes on as if there were no agent")
        return self._end(Verdict.NOT_SERVED, key)

    def _is_local(self, ready: Iterable[RealServerKey]) -> bool:
        protocol = self._key.protocol
        return any(
            self._has(roles.LOOP_BACK, SetEntry(address, protocol, port, address))
            for address, port in ready
            if address == self._client
        )

    def _masquerade(self, *, marked: bool) -> tuple[bool, str]:
        """Return whether the client's address is replaced, and which rule decides that, in words."""
        if marked:
            own = self._rules.own_pods
            if self.origin is Origin.CLUSTER and own is not None and ip_address(self._client) in own:
                return False, f"it is a pod of this node ({own}), so answers come back through it"
            return True, "a marked connection may leave for any endpoint, and its answer has to come back here"
        if is_confined(self._client):
            return False, "loopback addresses are left alone"
        if self._has(roles.LOAD_BALANCER):
            local = self._has(roles.LOAD_BALANCER_LOCAL)
            return not local, f"{self._name(roles.LOAD_BALANCER_LOCAL)} {'has' if local else 'does not have'} it"
        if self._has(roles.CLUSTER_IP):
            return self._masquerade_cluster_ip()
        if self._has(roles.EXTERNAL_IP):
            return True, f"{self._name(roles.EXTERNAL_IP)} has it"
        if self._has(roles.EXTERNAL_IP_LOCAL):
            return False, f"{self._name(roles.EXTERNAL_IP_LOCAL)} has it"
        protocol = Protocol(self._key.protocol)
        member = self._entry if protocol is Protocol.SCTP else SetEntry(port=self._key.port)
        if self._has(roles.LOCAL_NODE_PORTS[protocol], member):
            return False, f"{self._name(roles.LOCAL_NODE_PORTS[protocol])} has it"
        port_set = self._name(roles.NODE_PORTS[protocol])
        if self._has(roles.NODE_PORTS[protocol], member):
            return True, f"{port_set} has it"
        return False, "no set has it"

    def _masquerade_cluster_ip(self) -> tuple[bool, str]:
        rules = self._rules
        if rules.masquerade_all:
            return True, "masqueradeAll is on"
        if rules.local is None:
            own = self.origin is Origin.NODE
            return own, f"there is no clusterCIDR, and the source is {'' if own else 'not '}a Service's address"
        outside = self.origin is not Origin.CLUSTER
        return outside, f"a cluster IP, and the client is {'not ' if outside else ''}a pod by clusterCIDR"


def _contains(networks: Iterable[str], address: bytes) -> bool:
    return any(ip_address(address) in ip_network(network) for network in networks)
