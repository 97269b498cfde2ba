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
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

from ipvs_proxy.plan import roles
from ipvs_proxy.plan.fragment import Fragment, ServiceName
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import RealServerKey, Role, SetEntry, VirtualServer, VirtualServerKey, family_of

T = TypeVar("T")
#: A member of a set, with its role.
Member = tuple[Role, SetEntry]


class Conflict(NamedTuple):
    """Two Services claim one virtual server."""

    key: VirtualServerKey
    winner: ServiceName
    loser: ServiceName


class _Claim(NamedTuple):
    """A Service's wish for a virtual server; the smallest claim wins."""

    created: datetime
    name: ServiceName


class _Contribution(NamedTuple):
    """What one Service contributes to the tables: what is kept of its fragment after it has been merged.

    ``members`` are those that go with a virtual server, ``entries`` the others. All are in the order of the plan, and
    in tuples, because a set of two takes three times the memory. Reasons and choices are computed again when somebody
    asks for them.
    """

    claim: _Claim
    virtual_servers: dict[VirtualServerKey, VirtualServer]
    members: dict[VirtualServerKey, tuple[Member, ...]]
    addresses: tuple[bytes, ...]
    entries: tuple[Member, ...]


_NOTHING = _Contribution(_Claim(datetime.max.replace(tzinfo=UTC), ServiceName("", "")), {}, {}, (), ())
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
        self._contested: dict[VirtualServerKey, set[ServiceName]] = {}

    def replace(self, name: ServiceName, fragment: Fragment | None) -> TableKeys:
        """Replace the fragment of a Service; ``None`` removes it.

        Returns the keys of what may have changed: everything in which the old and the new fragment differ.
        """
        old = self._contributions.get(name)
        new = None if fragment is None else _contribution_of(name, fragment)
        if new is not None and (new.virtual_servers or new.addresses or new.entries):
            self._contributions[name] = new
        else:
            self._contributions.pop(name, None)
            new = None
        touched = TableKeys()
        before, after = old or _NOTHING, new or _NOTHING
        _count(self.addresses, before.addresses, after.addresses, touched.addresses)
        _count(self.entries, before.entries, after.entries, touched.entries)
        same_claim = before.claim == after.claim
        for key in before.virtual_servers.keys() | after.virtual_servers.keys():
            only = _differing(before, after, key, fragment)
            same = same_claim and _same(before.virtual_servers.get(key), after.virtual_servers.get(key), only)
            if same and before.members.get(key) == after.members.get(key):
                continue
            counted = self._members(key, name, before)
            if not same:
                owner = self.owners.get(key)
                self._settle(key, name, claims=key in after.virtual_servers)
                touched.virtual_servers.add(key)
                if only is not None and owner == name == self.owners[key]:
                    touched.only[key] = only
            _count(self.entries, counted, self._members(key, name, after), touched.entries)
        return touched

    def conflicts_of(self, key: VirtualServerKey) -> list[Conflict]:
        """Return the claims to one virtual server that lost, by name."""
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
        contribution = self._contributions.get(name)
        return () if contribution is None else tuple(contribution.virtual_servers)

    def claims_of(self, name: ServiceName) -> Mapping[VirtualServerKey, VirtualServer]:
        """Return the virtual servers that a Service claims, as its plan has them, whoever owns them."""
        contribution = self._contributions.get(name)
        return {} if contribution is None else contribution.virtual_servers

    def _members(self, key: VirtualServerKey, name: ServiceName, contribution: _Contribution) -> tuple[Member, ...]:
        """Return the members that go with a virtual server, by its owner; ``contribution`` is that of ``name``."""
        owner = self.owners.get(key)
        if owner is None:
            return _NO_MEMBERS
        return (contribution if owner == name else self._contributions[owner]).members.get(key, _NO_MEMBERS)

    def _settle(self, key: VirtualServerKey, name: ServiceName, *, claims: bool) -> None:
        """Decide who owns a virtual server now that one Service's claim has changed."""
        claimants = self._contested.pop(key, None) or ({self.owners[key]} if key in self.owners else set())
        claimants = claimants | {name} if claims else claimants - {name}
        if not claimants:
            self.virtual_servers.pop(key, None)
            self.owners.pop(key, None)
            return
        winner = min(self._contributions[claimant].claim for claimant in claimants).name
        self.owners[key] = winner
        self.virtual_servers[key] = self._contributions[winner].virtual_servers[key]
        if len(claimants) > 1:
            self._contested[key] = claimants


def _differing(
    before: _Contribution, after: _Contribution, key: VirtualServerKey, fragment: Fragment | None
) -> frozenset[RealServerKey] | None:
    """Return all real servers in which a virtual server may differ from before, or ``None`` if that is unknown."""
    old, new = before.virtual_servers.get(key), after.virtual_servers.get(key)
    if old is None or new is None or fragment is None:
        return None
    choices = fragment.choices[key]
    if new.real_servers is not choices.real_servers:
        return None  # they were changed after the plan: some warm up
    differing = choices.differing(old.real_servers)
    return None if differing is None else differing | (old.lingering ^ new.lingering)


def _same(old: VirtualServer | None, new: VirtualServer | None, only: frozenset[RealServerKey] | None) -> bool:
    """Return whether two virtual servers are the same in everything; ``only`` as ``_differing`` returns it.

    Where it is empty, both have the very same dictionary of real servers, which a comparison of both does not walk.
    """
    return not only and old == new


def _count(counter: Counter[T], before: tuple[T, ...], after: tuple[T, ...], touched: set[T]) -> None:
    """Count a fragment's new references and drop its old ones; add to ``touched`` what appears or disappears."""
    if before == after:
        return
    for item in set(after).difference(before):
        counter[item] += 1
        if counter[item] == 1:
            touched.add(item)
    for item in set(before).difference(after):
        counter[item] -= 1
        if not counter[item]:
            del counter[item]
            touched.add(item)


def _contribution_of(name: ServiceName, fragment: Fragment) -> _Contribution:
    node_ports = {
        (family_of(key.address), key.protocol, key.port): key
        for key, (_, reason) in fragment.virtual_servers.items()
        if reason is Reason.NODE_PORT
    }
    members: dict[VirtualServerKey, list[Member]] = {}
    others: list[Member] = []
    for member in fragment.entries:
        role, entry = member
        key: VirtualServerKey | None = VirtualServerKey(*entry[:3])
        if not entry.address and role in _NODE_PORTS:
            key = node_ports.get((*_NODE_PORTS[role], entry.port))
        if key in fragment.virtual_servers:
            members.setdefault(key, []).append(member)
        else:
            others.append(member)
    return _Contribution(
        claim=_Claim(fragment.created, name),
        virtual_servers={key: server for key, (server, _) in fragment.virtual_servers.items()},
        members={key: tuple(found) for key, found in members.items()},
        addresses=tuple(fragment.addresses),
        entries=tuple(others),
    )
