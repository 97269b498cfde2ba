"""The objects as they are now, and which Services a change concerns.

The cache joins EndpointSlices to Services by their label. It keeps nothing about a Service that is gone and has no
slice, so its size follows the cluster's, however names churn.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from ipvs_proxy.kube.objects import EndpointSlice, KubernetesObject, Node, Service
from ipvs_proxy.plan.fragment import ServiceName
from ipvs_proxy.plan.services import SERVICE_NAME
from ipvs_proxy.plan.slice_cache import SliceCache

#: Annotation of the EndpointSlice controller: when the change happened that led to this version (RFC 3339).
LAST_CHANGE_TRIGGER_TIME = "endpoints.kubernetes.io/last-change-trigger-time"


#: What is read of so many slices is kept, about 400 bytes an endpoint: one slice's change does not cost them all.
MANY_SLICES = 3


class Effect(NamedTuple):
    """What a change leads to."""

    services: frozenset[ServiceName] = frozenset()
    node: Node | None = None
    triggered: datetime | None = None


class Cache:
    """Services, their EndpointSlices and the own Node."""

    def __init__(self) -> None:
        self.services: dict[ServiceName, Service] = {}
        self.node: Node | None = None
        self._slices: dict[ServiceName, dict[str, EndpointSlice]] = {}
        self._slice_caches: dict[ServiceName, SliceCache] = {}

    def slices(self, name: ServiceName) -> Iterable[EndpointSlice]:
        """Return the EndpointSlices of a Service."""
        return self._slices.get(name, {}).values()

    def has_slices(self, name: ServiceName) -> bool:
        """Return whether a Service has an EndpointSlice."""
        return name in self._slices

    def slice_cache(self, name: ServiceName) -> SliceCache | None:
        """Return the place for what is remembered of a Service; ``None`` for one with few slices, as most have."""
        if len(self._slices.get(name, ())) < MANY_SLICES:
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
                return Effect(frozenset((name,)))
            case EndpointSlice():
                return self._change_slice(_slice(old), _slice(new))
            case Node():
                # A deleted Node keeps its last known state: a mistake at the API must not move traffic.
                if isinstance(new, Node):
                    self.node = new
                return Effect(node=self.node)
        return Effect()

    def _change_slice(self, old: EndpointSlice | None, new: EndpointSlice | None) -> Effect:
        concerned = set()
        before, after = _service_of(old), _service_of(new)
        if old is not None and before is not None:
            concerned.add(before)
            known = self._slices.get(before, {})
            known.pop(old.metadata.name, None)
            if not known:
                self._slices.pop(before, None)
                self._slice_caches.pop(before, None)
        if new is not None and after is not None:
            concerned.add(after)
            self._slices.setdefault(after, {})[new.metadata.name] = new
        return Effect(frozenset(concerned), triggered=_trigger_time(new))


def _slice(candidate: KubernetesObject | None) -> EndpointSlice | None:
    return candidate if isinstance(candidate, EndpointSlice) else None


def _service_of(piece: EndpointSlice | None) -> ServiceName | None:
    name = (piece.metadata.labels or {}).get(SERVICE_NAME) if piece is not None else None
    return ServiceName(piece.metadata.namespace, name) if piece is not None and name else None


def _trigger_time(piece: EndpointSlice | None) -> datetime | None:
    text = (piece.metadata.annotations or {}).get(LAST_CHANGE_TRIGGER_TIME) if piece is not None else None
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None
