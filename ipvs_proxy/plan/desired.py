"""The tables that the kernel should hold: the union of the fragments of all Services.

**The invariant: the tables are a function of the fragments that are in them, in whatever order these came and went.**
A restart, which hears of Services in another order, therefore finds nothing to change. For that

* what several Services ask for (an address, a member of a set) is counted, and stays until the last of them lets go;
* a virtual server has one owner. Where several Services claim the same address, port and protocol, the oldest has it,
  then the one with the lowest name; when it lets go, the next one takes over;
* members of sets that say how a virtual server is reached (its policy, its source ranges) are those of its owner alone.

The second rule of this module is that of cost: replacing a fragment costs in proportion to that fragment. ``replace``
returns the keys of everything that it may have changed, and nothing else has to be looked at. Virtual servers are
compared as whole values, so that a field of theirs is never overlooked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple, TypeVar

from msgspec import structs

from ipvs_proxy.plan import roles
from ipvs_proxy.plan.fragment import Fragment, ServiceName
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import (
    Family,
    RealServerKey,
    Record,
    Role,
    SetEntry,
    VirtualServer,
    VirtualServerKey,
    family_of,
)

T = TypeVar("T")
#: A member of a set, with its role.
Member = tuple[Role, SetEntry]


class Conflict(NamedTuple):
    """Two Services claim one virtual server."""

    key: VirtualServerKey
    winner: ServiceName
    loser: ServiceName


class _Claim(Record, frozen=True):
    """A Service's wish for a virtual server, with the members of sets that go with it.

    The oldest claim wins, then the one of the lowest name.

    Reasons and choices are computed again when somebody asks for them.
    """

    created: datetime
    name: ServiceName
    server: VirtualServer
    members: tuple[Member, ...]


class _Contribution(Record, frozen=True):
    """What one Service contributes to the tables: which virtual servers it claims, and what does not go with them.

    All are in the order of the plan, and in tuples: a dictionary or set of one takes five times the memory.
    """

    keys: tuple[VirtualServerKey, ...]
    addresses: tuple[bytes, ...]
    entries: tuple[Member, ...]


_NOTHING = _Contribution((), (), ())
_NO_MEMBERS: tuple[Member, ...] = ()
#: The family and protocol of each role of node ports.
_NODE_PORTS = {
    role: (family, protocol)
    for of_protocols in (roles.NODE_PORTS, roles.LOCAL_NODE_PORTS)
    for protocol, both in of_protocols.items()
    for family, role in both.items()
}


class DesiredTables:
    """The desired state of all tables, and who asks for what."""

    def __init__(self) -> None:
        self.virtual_servers: dict[VirtualServerKey, VirtualServer] = {}
        self.addresses: Counter[bytes] = Counter()
        self.entries: Counter[Member] = Counter()
        self.owners: dict[VirtualServerKey, ServiceName] = {}
        self._contributions: dict[ServiceName, _Contribution] = {}
        #: The claim of each owner, and all claims where there are several.
        self._claims: dict[VirtualServerKey, _Claim] = {}
        self._contested: dict[VirtualServerKey, dict[ServiceName, _Claim]] = {}

    def replace(self, name: ServiceName, fragment: Fragment | None) -> TableKeys:
        """Replace the fragment of a Service; ``None`` removes it.

        Returns the keys of what may have changed: everything in which the old and the new fragment differ.
        """
        before = self._contributions.get(name, _NOTHING)
        claims, after = ({}, _NOTHING) if fragment is None else _divide(name, fragment)
        if after != _NOTHING:
            self._contributions[name] = after
        else:
            self._contributions.pop(name, None)
        touched = TableKeys()
        _count(self.addresses, before.addresses, after.addresses, touched.addresses)
        _count(self.entries, before.entries, after.entries, touched.entries)
        for key in dict.fromkeys(before.keys + after.keys):
            self._replace_claim(key, name, claims.get(key), fragment, touched)
        return touched

    def conflicts_of(self, key: VirtualServerKey) -> list[Conflict]:
        """Return the claims to one virtual server that lost, by name."""
        if key not in self._contested:
            return []
        winner = self.owners.get(key)
        return [
            Conflict(key, winner, name)
            for name in sorted(self._contested.get(key, ()))
            if winner is not None and name != winner
        ]

    def conflicts(self) -> list[Conflict]:
        """Return every claim that lost."""
        return [conflict for key in list(self._contested) for conflict in self.conflicts_of(key)]

    def internal(self) -> dict[VirtualServerKey, frozenset[RealServerKey]]:
        """Return the real servers for clients in the cluster, by the addresses where they differ: a snapshot."""
        return {
            key: frozenset(internal.real_servers) | internal.lingering
            for key, server in self.virtual_servers.items()
            if server.internal is not None and (internal := self.virtual_servers.get(server.internal)) is not None
        }

    def services(self) -> Iterable[ServiceName]:
        """Return the Services that ask for anything."""
        return self._contributions.keys()

    def virtual_servers_of(self, name: ServiceName) -> tuple[VirtualServerKey, ...]:
        """Return the virtual servers that a Service claims, including those that another Service owns."""
        return self._contributions.get(name, _NOTHING).keys

    def claims_of(self, name: ServiceName) -> Mapping[VirtualServerKey, VirtualServer]:
        """Return the virtual servers that a Service claims, as its plan has them, whoever owns them."""
        claims = [self._claim_of(key, name) for key in self.virtual_servers_of(name)]
        return {claim.server.key: claim.server for claim in claims if claim is not None}

    def _claim_of(self, key: VirtualServerKey, name: ServiceName) -> _Claim | None:
        """Return the claim of one Service to a virtual server."""
        claim = self._claims.get(key)
        if claim is None or claim.name == name:
            return claim
        return self._contested[key].get(name) if key in self._contested else None

    def _replace_claim(
        self,
        key: VirtualServerKey,
        name: ServiceName,
        claim: _Claim | None,
        fragment: Fragment | None,
        touched: TableKeys,
    ) -> None:
        """Replace the claim of one Service to a virtual server, ``None`` for none; add what changed to ``touched``."""
        before = self._claim_of(key, name)
        only = _differing(before, claim, fragment)
        same = _same(before, claim, only)
        if same and before is not None and claim is not None:
            if before.members == claim.members:
                return
            claim = structs.replace(claim, server=before.server)
        holder = self._claims.get(key)
        winner = self._settle(key, name, claim)
        if not same:
            touched.virtual_servers.add(key)
            if only is not None and holder is before and winner is claim:
                touched.only[key] = only
        _count(
            self.entries,
            _NO_MEMBERS if holder is None else holder.members,
            _NO_MEMBERS if winner is None else winner.members,
            touched.entries,
        )

    def _settle(self, key: VirtualServerKey, name: ServiceName, claim: _Claim | None) -> _Claim | None:
        """Decide who owns a virtual server now that one Service's claim has changed; return the winning claim."""
        holder, winner = self._claims.get(key), claim
        if key in self._contested or (holder is not None and holder.name != name):
            claims = self._contested.pop(key, {} if holder is None else {holder.name: holder})
            claims = {rival: one for rival, one in claims.items() if rival != name}
            if claim is not None:
                claims[name] = claim
            if len(claims) > 1:
                self._contested[key] = claims
            winner = min(claims.values(), key=lambda one: (one.created, one.name))
        if winner is None:
            self.virtual_servers.pop(key, None)
            self.owners.pop(key, None)
            self._claims.pop(key, None)
            return None
        self.virtual_servers[key], self.owners[key], self._claims[key] = winner.server, winner.name, winner
        return winner


def _differing(
    before: _Claim | None, claim: _Claim | None, fragment: Fragment | None
) -> frozenset[RealServerKey] | None:
    """Return all real servers in which a virtual server may differ from before, or ``None`` if that is unknown."""
    if before is None or claim is None or fragment is None:
        return None
    old, new = before.server, claim.server
    choices = fragment.choices[new.key]
    if new.real_servers is not choices.real_servers:
        return None  # they were changed after the plan: some warm up
    differing = choices.differing(old.real_servers)
    return None if differing is None else differing | (old.lingering ^ new.lingering)


def _same(before: _Claim | None, claim: _Claim | None, only: frozenset[RealServerKey] | None) -> bool:
    """Return whether two claims to a virtual server are the same but for members; ``only`` as ``_differing`` has it.

    Where it is empty, both have the very same dictionary of real servers, which a comparison of both does not walk.
    """
    if before is None or claim is None:
        return before is claim
    return not only and before.created == claim.created and before.server == claim.server


def _count(counter: Counter[T], before: tuple[T, ...], after: tuple[T, ...], touched: set[T]) -> None:
    """Count a fragment's new references and drop its old ones; add to ``touched`` what appears or disappears."""
    if before == after:
        return
    for item in set(after).difference(before) if before else after:
        references = counter[item] = counter.get(item, 0) + 1
        if references == 1:
            touched.add(item)
    for item in set(before).difference(after):
        counter[item] -= 1
        if not counter[item]:
            del counter[item]
            touched.add(item)


def _divide(name: ServiceName, fragment: Fragment) -> tuple[dict[VirtualServerKey, _Claim], _Contribution]:
    """Return what a fragment claims, with the members that go with each virtual server, and what else it asks for."""
    servers = fragment.virtual_servers
    node_ports: dict[tuple[Family, int, int], list[VirtualServerKey]] = {}
    for node_port, (_, reason) in servers.items():
        if reason is Reason.NODE_PORT:
            at = family_of(node_port.address), node_port.protocol, node_port.port
            node_ports.setdefault(at, []).append(node_port)
    members: dict[tuple[bytes, int, int, int], list[Member]] = {}
    others: list[Member] = []
    for member in fragment.entries:
        role, entry = member
        # Equal to the ``VirtualServerKey``, which takes five times as long to make.
        key: tuple[bytes, int, int, int] = (*entry[:3], 0)
        # One without an address goes with each address of the node, any of which another Service may have.
        if not entry.address and role in _NODE_PORTS and (keys := node_ports.get((*_NODE_PORTS[role], entry.port))):
            for node_port in keys:
                members.setdefault(node_port, []).append(member)
        elif key in servers:
            members.setdefault(key, []).append(member)
        else:
            others.append(member)
    claims = {
        key: _Claim(fragment.created, name, server, tuple(members.get(key, _NO_MEMBERS)))
        for key, (server, _) in servers.items()
    }
    return claims, _Contribution(tuple(claims), tuple(fragment.addresses), tuple(others))
