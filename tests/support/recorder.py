"""Records what a reflector reports to its sink and its observer."""

from __future__ import annotations

from collections.abc import Sequence

from ipvs_proxy.kube.objects import KubernetesObject
from ipvs_proxy.kube.sinks import Interruption
from ipvs_proxy.kube.store import Change


class Recorder:
    """A sink that keeps objects by name, and every change; and an observer that counts."""

    def __init__(self) -> None:
        self.known: dict[str, KubernetesObject] = {}
        self.changes: list[tuple[str | None, str | None]] = []
        self.batches: list[int] = []
        self.faults: list[str] = []
        self.synced_kinds: list[str] = []
        self.words = 0
        self.causes: list[Interruption] = []
        self.errors: list[Exception | None] = []

    def changed(self, changes: Sequence[Change]) -> None:
        self.batches.append(len(changes))
        for _, old, new in changes:
            self.changes.append((old and old.metadata.name, new and new.metadata.name))
            if new is None:
                assert old is not None
                del self.known[old.metadata.name]
            else:
                self.known[new.metadata.name] = new

    def synced(self, kind: str) -> None:
        self.synced_kinds.append(kind)

    def skipped(self, kind: str, key: str, error: str) -> None:
        assert error
        self.faults.append(f"{kind} {key}")

    def heard(self, kind: str) -> None:
        assert kind == "Service"
        self.words += 1

    def interrupted(self, kind: str, cause: Interruption, error: Exception | None) -> None:
        assert kind == "Service"
        self.causes.append(cause)
        self.errors.append(error)
