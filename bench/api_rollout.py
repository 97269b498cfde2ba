"""How many writes of EndpointSlices a rolling update causes, by the rules of the EndpointSlice controller.

The controller works on one Service at a time: what has changed since its last pass is written slice by slice, so the
changes of a batching period, or of the time that its limit of writes makes it wait, are joined. Endpoints that are
added go into slices that are written anyway, then into one that takes all of them, then into new ones (KEP-752).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple


@dataclass(frozen=True, kw_only=True, slots=True)
class Controller:
    """Settings of kube-controller-manager; the defaults are its own.

    ``period``: --endpointslice-updates-batch-period in seconds. ``writes_per_second``: --kube-api-qps.
    """

    period: float = 0.0
    writes_per_second: float = 20.0
    slice_size: int = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """A rolling update: pods, pods replaced a second, seconds until a new one is ready and until an old one ends."""

    pods: int = 5_000
    replaced_per_second: float = 50.0
    until_ready: float = 5.0
    until_gone: float = 30.0


class Rollout(NamedTuple):
    """What every agent receives: events, the endpoints in all of them, and the seconds that the update took."""

    writes: int
    endpoints: int
    seconds: float


class _Do(IntEnum):
    ADD = 0
    CHANGE = 1
    REMOVE = 2


_UPDATE = Update()
#: The least seconds that a pass of the controller takes.
_PASS = 0.01


def rolling_update(controller: Controller, update: Update = _UPDATE, *, seed: int = 1) -> Rollout:
    """Simulate the update of one Service. Each pod changes four times: there, ready, terminating, gone."""
    slices = Slices(controller.slice_size, update.pods)
    pending = sorted(_changes(update, random.Random(seed)), reverse=True)
    now, writes, endpoints = 0.0, 0, 0
    while pending:
        batch = []
        while pending and pending[-1][0] <= now:
            batch.append(pending.pop())
        written = slices.apply([(do, pod) for _, do, pod in batch])
        writes += len(written)
        endpoints += sum(written)
        now += max(controller.period, len(written) / controller.writes_per_second, _PASS)
    return Rollout(writes, endpoints, now)


def _changes(update: Update, source: random.Random) -> list[tuple[float, _Do, int]]:
    """Return what happens when; a new pod replaces an old one of any slice."""
    old = list(range(update.pods))
    source.shuffle(old)
    changes = []
    for number, victim in enumerate(old):
        begun = number / update.replaced_per_second
        ready = begun + update.until_ready
        changes += [
            (begun, _Do.ADD, update.pods + number),
            (ready, _Do.CHANGE, update.pods + number),
            (ready, _Do.CHANGE, victim),
            (ready + update.until_gone, _Do.REMOVE, victim),
        ]
    return changes


class Slices:
    """The slices of one Service, with the pods in each."""

    def __init__(self, slice_size: int, pods: int) -> None:
        self._size = slice_size
        self._place = {pod: pod // slice_size for pod in range(pods)}
        self._count: dict[int, int] = {}
        for place in self._place.values():
            self._count[place] = self._count.get(place, 0) + 1
        self._next = len(self._count)

    def apply(self, batch: list[tuple[_Do, int]]) -> list[int]:
        """Apply the changes of one pass; return the number of endpoints in each slice that is written."""
        written: set[int] = set()
        added = []
        for do, pod in batch:
            if do is _Do.ADD:
                added.append(pod)
                continue
            if pod not in self._place:
                continue  # it was added and became ready in one batch
            place = self._place[pod]
            if do is _Do.REMOVE:
                del self._place[pod]
                self._count[place] -= 1
            written.add(place)
        for place in sorted(written):
            if self._count[place]:
                added = self._fill(place, added)
        while added:
            place = self._with_room(len(added))
            written.add(place)
            added = self._fill(place, added)
        sizes = [self._count[place] for place in written]
        self._count = {place: count for place, count in self._count.items() if count}
        return sizes

    def _fill(self, place: int, added: list[int]) -> list[int]:
        room = self._size - self._count[place]
        for pod in added[:room]:
            self._place[pod] = place
        self._count[place] += len(added[:room])
        return added[room:]

    def _with_room(self, needed: int) -> int:
        """Return the fullest slice with room for all, or a new one."""
        fitting = [(count, place) for place, count in self._count.items() if 0 < count <= self._size - needed]
        if fitting:
            return max(fitting)[1]
        self._next += 1
        self._count[self._next] = 0
        return self._next
