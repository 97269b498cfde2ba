"""The objects of one kind as last seen, and what really changed.

Invariants: only real differences are returned as changes, although a relist or a rewritten file repeats every object.
An object that can no longer be decoded keeps its last good version, and traffic continues with it until the object is
repaired or deleted.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

import msgspec

from ipvs_proxy.kube.decode import Event, key_of
from ipvs_proxy.kube.objects import KubernetesObject


class Change(msgspec.Struct, frozen=True, gc=False):
    """A change of one object. ``old`` is ``None`` if it was added, ``new`` is ``None`` if it was deleted."""

    kind: str
    old: KubernetesObject | None
    new: KubernetesObject | None


class Store:
    """The objects of one kind by key: ``namespace/name``, or the name alone if there is no namespace."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._objects: dict[str, KubernetesObject] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def replace(
        self, objects: Iterable[KubernetesObject], skipped_keys: AbstractSet[str] = frozenset()
    ) -> list[Change]:
        """Replace all objects with those of a complete list; return the changes, deletions first.

        Objects in ``skipped_keys`` exist but could not be decoded; they stay as they were. If not even the key could be
        read (""), the object may be any of those that seem to be deleted, so none is removed.
        """
        fresh = {key_of(item): item for item in objects}
        gone = () if "" in skipped_keys else self._objects.keys() - fresh.keys() - skipped_keys
        changes = [Change(self.kind, self._objects.pop(key), None) for key in sorted(gone)]
        for key, item in fresh.items():
            changes += self._put(key, item)
        return changes

    def put(self, objects: Iterable[KubernetesObject]) -> list[Change]:
        """Add or update the objects of an incomplete list; return the changes. Nothing is removed."""
        return [change for item in objects for change in self._put(key_of(item), item)]

    def apply(self, event: Event) -> list[Change]:
        """Apply one event of a watch; return the changes, at most one."""
        if event.type == "DELETED":
            old = self._objects.pop(event.key, None)
            return [] if old is None else [Change(self.kind, old, None)]
        return [] if event.object is None else self._put(event.key, event.object)

    def _put(self, key: str, item: KubernetesObject) -> list[Change]:
        old = self._objects.get(key)
        if old is item or (old is not None and _same(old, item)):
            return []
        self._objects[key] = item
        return [Change(self.kind, old, item)]


def _same(old: KubernetesObject, new: KubernetesObject) -> bool:
    """Return whether two versions of an object are equal. A new resourceVersion alone does not count as a change."""
    if old.metadata.resource_version == new.metadata.resource_version:
        return old == new
    metadata = msgspec.structs.replace(new.metadata, resource_version=old.metadata.resource_version)
    return old == msgspec.structs.replace(new, metadata=metadata)
