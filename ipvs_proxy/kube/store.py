"""The objects of one kind as last seen, and what really changed.

Invariants: only real differences are returned as changes, although a relist or a rewritten file repeats every object.
An object that can no longer be decoded keeps its last good version, and traffic continues with it until the object is
repaired or deleted.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import NamedTuple

import msgspec

from ipvs_proxy.kube.decode import Event, key_of
from ipvs_proxy.kube.objects import KubernetesObject


class Change(NamedTuple):
    """A change of one object. ``old`` is ``None`` if it was added, ``new`` is ``None`` if it was deleted."""

    kind: str
    old: KubernetesObject | None
    new: KubernetesObject | None


class Store:
    """The objects of one kind by namespace ("" for none), then by name.

    Both texts are the objects' own. Keys made of both would take 70 bytes of each object.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._objects: dict[str, dict[str, KubernetesObject]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._objects.values()))

    def replace(
        self, objects: Iterable[KubernetesObject], skipped_keys: AbstractSet[str] = frozenset()
    ) -> list[Change]:
        """Replace all objects with those of a complete list; return the changes, deletions first.

        Objects in ``skipped_keys`` exist but could not be decoded; they stay as they were. If not even the key could be
        read (""), the object may be any of those that seem to be deleted, so none is removed.
        """
        fresh = {(item.metadata.namespace, item.metadata.name): item for item in objects}
        known = [(namespace, name) for namespace, found in self._objects.items() for name in found]
        changes = []
        for namespace, name in sorted(pair for pair in known if pair not in fresh):
            if skipped_keys.isdisjoint(("", key_of(self._objects[namespace][name]))):
                changes += self._remove(namespace, name)
        for item in fresh.values():
            changes += self._put(item)
        return changes

    def put(self, objects: Iterable[KubernetesObject]) -> list[Change]:
        """Add or update the objects of an incomplete list; return the changes. Nothing is removed."""
        return [change for item in objects for change in self._put(item)]

    def apply(self, event: Event) -> list[Change]:
        """Apply one event of a watch; return the changes, at most one."""
        if event.type == "DELETED":
            namespace, slash, name = event.key.partition("/")
            return self._remove(namespace, name) if slash else self._remove("", event.key)
        return [] if event.object is None else self._put(event.object)

    def _put(self, item: KubernetesObject) -> list[Change]:
        namespace, name = item.metadata.namespace, item.metadata.name
        found = self._objects.get(namespace)
        if found is None:
            found = self._objects[namespace] = {}
        old = found.get(name)
        if old is item or (old is not None and _same(old, item)):
            return []
        found[name] = item
        return [Change(self.kind, old, item)]

    def _remove(self, namespace: str, name: str) -> list[Change]:
        found = self._objects.get(namespace, {})
        old = found.pop(name, None)
        if not found:
            self._objects.pop(namespace, None)
        return [] if old is None else [Change(self.kind, old, None)]


def _same(old: KubernetesObject, new: KubernetesObject) -> bool:
    """Return whether two versions of an object are equal. A new resourceVersion alone does not count as a change."""
    if old.metadata.resource_version == new.metadata.resource_version:
        return old == new
    metadata = msgspec.structs.replace(new.metadata, resource_version=old.metadata.resource_version)
    return old == msgspec.structs.replace(new, metadata=metadata)
