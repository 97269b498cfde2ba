"""The objects as they are now, and which Services a change concerns.

The cache joins EndpointSlices to Services by their label. It keeps nothing about a Service that is gone and has no
slice, so its size follows the cluster's, however names churn.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Final

from ipvs_proxy.kube.objects import EndpointSlice, KubernetesObject, Node, Service
from ipvs_proxy.plan.fragment import ServiceName
from ipvs_proxy.plan.slice_cache import SliceCache
from ipvs_proxy.plan.tables import Record

#: From this number of slices on, what is read of them is kept, at about 400 bytes an endpoint: a change of one slice
#: then costs no look at the others.
MANY_SLICES = 3
_NO_SLICES: Final[dict[str, EndpointSlice]] = {}


class Effect(Record, frozen=True):
    """What a change leads to."""

    services: tuple[ServiceName, ...] = ()
    node: Node | None = None
    triggered: datetime | None = None


class ObjectCache:
    """Services, their EndpointSlices and the own Node."""

    def __init__(self) -> None:
        self.services: dict[ServiceName, Service] = {}
        self.node: Node | None = None
        #: By name, or the slice itself where there is one: a dictionary of one takes 200 bytes.
        self._slices: dict[ServiceName, EndpointSlice | dict[str, EndpointSlice]] = {}
        self._slice_caches: dict[ServiceName, SliceCache] = {}

    def slices(self, name: ServiceName) -> Iterable[EndpointSlice]:
        """Return the EndpointSlices of a Service."""
        found = self._slices.get(name, _NO_SLICES)
        return (found,) if isinstance(found, EndpointSlice) else found.values()

    def having_slices(self, names: AbstractSet[ServiceName]) -> AbstractSet[ServiceName]:
        """Return those of some Services that have an EndpointSlice.

        The cost is that of the shorter side: while a start waits for slices, few have theirs, or few are left.
        """
        return names & self._slices.keys()

    def slice_cache(self, name: ServiceName) -> SliceCache | None:
        """Return the place for what is remembered of a Service; ``None`` for one with few slices, as most have."""
        found = self._slices.get(name)
        if not isinstance(found, dict) or len(found) < MANY_SLICES:
            self._slice_caches.pop(name, None)
            return None
        return self._slice_caches.setdefault(name, SliceCache())

    def change(self, old: KubernetesObject | None, new: KubernetesObject | None) -> Effect:
        """Take in one change (``old`` is ``None`` for an added object, ``new`` for a deleted one)."""
        match new if new is not None else old:
            case Service(metadata=metadata):
                name = ServiceName(metadata.namespace, metadata.name)
                if isinstance(new, Service):
                    self.services[name] = new
                else:
                    self.services.pop(name, None)
                return Effect((name,))
            case EndpointSlice():
                return self._change_slice(_slice(old), _slice(new))
            case Node():
                # A deleted Node keeps its last known state: a mistake at the API must not move traffic.
                if isinstance(new, Node):
                    self.node = new
                return Effect(node=self.node)
        return Effect()

    def _change_slice(self, old: EndpointSlice | None, new: EndpointSlice | None) -> Effect:
        before, after = _service_of(old), _service_of(new)
        if old is not None and before is not None:
            self._remove_slice(before, old.metadata.name)
        if new is not None and after is not None:
            self._add_slice(after, new)
        concerned = dict.fromkeys(name for name in (before, after) if name is not None)
        return Effect(tuple(concerned), triggered=_trigger_time(new))

    def _add_slice(self, name: ServiceName, piece: EndpointSlice) -> None:
        found = self._slices.get(name, _NO_SLICES)
        if not found:
            self._slices[name] = piece
        elif isinstance(found, EndpointSlice):
            self._slices[name] = {one.metadata.name: one for one in (found, piece)}
        else:
            found[piece.metadata.name] = piece

    def _remove_slice(self, name: ServiceName, piece: str) -> None:
        found = self._slices.get(name, _NO_SLICES)
        if isinstance(found, dict):
            found.pop(piece, None)
        if not found or (isinstance(found, EndpointSlice) and found.metadata.name == piece):
            self._slices.pop(name, None)
            self._slice_caches.pop(name, None)


def _slice(candidate: KubernetesObject | None) -> EndpointSlice | None:
    return candidate if isinstance(candidate, EndpointSlice) else None


def _service_of(piece: EndpointSlice | None) -> ServiceName | None:
    if piece is None or piece.metadata.labels is None or not piece.metadata.labels.service_name:
        return None
    return ServiceName(piece.metadata.namespace, piece.metadata.labels.service_name)


def _trigger_time(piece: EndpointSlice | None) -> datetime | None:
    if piece is None or piece.metadata.annotations is None or piece.metadata.annotations.trigger_time is None:
        return None
    try:
        moment = datetime.fromisoformat(piece.metadata.annotations.trigger_time)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None
