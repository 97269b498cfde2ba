"""What receives the objects, and what tracks how well they are received: the two ends that a reflector calls."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, Protocol

from ipvs_proxy.kube.store import Change


class Sink(Protocol):
    """Receives the changes. None of its methods may block."""

    def changed(self, changes: Sequence[Change]) -> None:
        """Objects have changed."""

    def synced(self, kind: str) -> None:
        """All objects of a kind have been delivered once."""

    def skipped(self, kind: str, key: str, error: str) -> None:
        """An object could not be decoded. Its last good version, if any, stays in use."""


class Interruption(StrEnum):
    """Why a list or watch was interrupted."""

    EXPIRED = "expired"
    REFUSED = "refused"
    SILENT = "silent"
    BROKEN = "broken"
    MALFORMED = "malformed"


class Observer(Protocol):
    """Tracks the progress and the failures of lists and watches. None of its methods may block."""

    def heard(self, kind: str) -> None:
        """Something was received: events, a bookmark or a list."""

    def interrupted(self, kind: str, cause: Interruption, error: Exception | None) -> None:
        """A list or watch was interrupted. ``error`` is ``None`` if the next attempt, made at once, may fix it."""


class _Nobody:
    """An observer that tracks nothing."""

    def heard(self, kind: str) -> None:
        """Ignore it."""

    def interrupted(self, kind: str, cause: Interruption, error: Exception | None) -> None:
        """Ignore it."""


#: For whoever need not know.
NOBODY: Final[Observer] = _Nobody()
