"""The tables that the kernel should hold: the union of the fragments of all Services.

Objects that several Services ask for (an address, a member of a set) are counted and stay until the last one lets go. A
virtual server has one owner. Where two Services claim the same address, port and protocol, the older one wins, then the
lower name; the other takes over as soon as the winner goes. Replacing a fragment costs in proportion to that fragment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

from ipvs_proxy.plan.fragment import Fragment, ServiceName
from ipvs_proxy.plan.tables import SetEntry, VirtualServer, VirtualServerKey

T = TypeVar("T")


@dataclass(slots=True)
class Touched:
    """Keys of table objects that may have to change, whatever the change is."""

    virtual_servers: set[VirtualServerKey] = field(default_factory=set)
    addresses: set[bytes] = field(default_factory=set)
    entries: set[tuple[str, SetEntry]] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.virtual_servers or self.addresses or self.entries)

    def add(self, other: Touched) -> None:
        """Take in the keys of another one."""
        self.virtual_servers |= other.virtual_servers
        self.addresses |= other.addresses
        self.entries |= other.entries


class Conflict(NamedTuple):
    """Two Services claim one virtual server."""

    key: VirtualServerKey
    winner: ServiceName
    loser: ServiceName


class _Claim(NamedTuple):
    """A Service's wish for a virtual server; the smallest claim wins."""

    created: datetime
    name: ServiceName


class _Held(NamedTuple):
    """What is kept of a fragment after it has been merged.

    The reasons and choices are computed again when somebody asks for them.
    """

    claim: _Claim
    virtual_servers: dict[VirtualServerKey, VirtualServer]
    addresses: frozenset[bytes]
    entries: frozenset[tuple[str, SetEntry]]


_NOTHING = _Held(_Claim(datetime.max.replace(tzinfo=UTC), ServiceName("", "")), {}, frozenset(), frozenset())


class DesiredTables:
    """The desired state of all tables, and who asks for what."""

    def __init__(self) -> None:
        self.virtual_servers: dict[VirtualServerKey, VirtualServer] = {}
        self.addresses: Counter[bytes] = Counter()
        self.entries: Counter[tuple[str, SetEntry]] = Counter()
        self.owners: dict[VirtualServerKey, ServiceName] = {}
        self._held: dict[ServiceName, _Held] = {}
        self._contested: dict[VirtualServerKey, set[ServiceName]] = {}

    def replace(self, name: ServiceName, fragment: Fragment | None) -> Touched:
        """Put a fragment in the place of the one that the Service had; ``None`` takes it out.

        Returns the keys that may differ from before: all of the old and the new fragment that are not the same in both.
        """
        old = self._held.get(name)
        new = None if fragment is None else _hold(name, fragment)
        if new is not None and (new.virtual_servers or new.addresses or new.entries):
            self._held[name] = new
        else:
            self._held.pop(name, None)
            new = None
        touched = Touched()
        before, after = old or _NOTHING, new or _NOTHING
        _count(self.addresses, before.addresses, after.addresses, touched.addresses)
        _count(self.entries, before.entries, after.entries, touched.entries)
        same_claim = before.claim == after.claim
        for key in before.virtual_servers.keys() | after.virtual_servers.keys():
            if not (same_claim and before.virtual_servers.get(key) == after.virtual_servers.get(key)):
                self._settle(key, name, claims=key in after.virtual_servers)
                touched.virtual_servers.add(key)
        return touched

    def conflicts_of(self, key: VirtualServerKey) -> list[Conflict]:
        """Give the claims to one virtual server that lost, by name."""
        winner = self.owners.get(key)
        return [
            Conflict(key, winner, name)
            for name in sorted(self._contested.get(key, ()))
            if winner is not None and name != winner
        ]

    def conflicts(self) -> list[Conflict]:
        """Give every claim that lost."""
        return [conflict for key in self._contested for conflict in self.conflicts_of(key)]

    def services(self) -> Iterable[ServiceName]:
        """Give the Services that ask for anything."""
        return self._held.keys()

    def _settle(self, key: VirtualServerKey, name: ServiceName, *, claims: bool) -> None:
        """Decide anew who owns a virtual server after one Service's claim changed."""
        claimants = self._contested.pop(key, None) or ({self.owners[key]} if key in self.owners else set())
        claimants = claimants | {name} if claims else claimants - {name}
        if not claimants:
            self.virtual_servers.pop(key, None)
            self.owners.pop(key, None)
            return
        winner = min(self._held[claimant].claim for claimant in claimants).name
        self.owners[key] = winner
        self.virtual_servers[key] = self._held[winner].virtual_servers[key]
        if len(claimants) > 1:
            self._contested[key] = claimants


def _count(counter: Counter[T], before: AbstractSet[T], after: AbstractSet[T], touched: set[T]) -> None:
    """Move a fragment's references; what appears or disappears altogether is touched."""
    for item in after - before:
        counter[item] += 1
        if counter[item] == 1:
            touched.add(item)
    for item in before - after:
        counter[item] -= 1
        if not counter[item]:
            del counter[item]
            touched.add(item)


def _hold(name: ServiceName, fragment: Fragment) -> _Held:
    return _Held(
        claim=_Claim(fragment.created, name),
        virtual_servers={key: server for key, (server, _) in fragment.virtual_servers.items()},
        addresses=frozenset(fragment.addresses),
        entries=frozenset(fragment.entries),
    )
