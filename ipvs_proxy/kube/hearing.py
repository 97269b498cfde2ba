"""Tracks failures to list or watch resources: since when each resource fails, and why.

Invariant: a problem gets one log line when it begins, one every ten minutes while it persists, and one when it is over,
however many watches run into it. Without that, an expired token would fill the log: three watches run into the same
problem, and each tries again twice a minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, NamedTuple, Protocol

import structlog

from ipvs_proxy.kube.reflector import RefusedError
from ipvs_proxy.kube.resources import Resource
from ipvs_proxy.kube.sinks import Interruption
from ipvs_proxy.kube.texts import quote
from ipvs_proxy.snapshots import snapshot

log = structlog.get_logger(__name__)

#: Seconds after which a persisting problem is logged again.
REMINDER: Final = 600.0
#: Seconds within which a problem that is over and comes back is not logged again.
QUIET: Final = 60.0


class Counts(Protocol):
    """Counters of what is received, and of interruptions."""

    def heard(self, kind: str) -> None:
        """Count that something was received for a resource."""

    def interrupted(self, kind: str, cause: Interruption) -> None:
        """Count that a list or watch was interrupted."""


class _Failure(NamedTuple):
    """Why a resource fails. ``since`` is in seconds of a monotonic clock."""

    since: float
    cause: Interruption
    error: str
    #: Identifies the problem: failures with the same value are logged as one.
    trouble: str


class Hearing:
    """Tracks lists and watches, as their observer (see ``reflector.Observer``)."""

    def __init__(
        self, resources: tuple[Resource, ...], counts: Counts, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._paths = {resource.kind: resource.path for resource in resources}
        self._counts = counts
        self._clock = clock
        self._failures: dict[str, _Failure] = {}
        #: When each problem was last logged, in seconds of the clock.
        self._told: dict[str, float] = {}

    def heard(self, kind: str) -> None:
        """Record that something was received for a resource."""
        self._counts.heard(kind)
        failure = self._failures.pop(kind, None)
        if failure is None or failure.trouble not in self._told:
            return
        if all(other.trouble != failure.trouble for other in self._failures.values()):
            log.info("api_heard_again", resource=kind, after=round(self._clock() - failure.since, 1))

    def interrupted(self, kind: str, cause: Interruption, error: Exception | None) -> None:
        """Record that a list or watch was interrupted. If ``error`` is ``None``, it is only counted."""
        self._counts.interrupted(kind, cause)
        if error is None:
            return
        now = self._clock()
        before = self._failures.get(kind)
        failure = _Failure(before.since if before else now, cause, _text(error), _trouble(kind, error))
        goes_on = before is not None or any(other.trouble == failure.trouble for other in self._failures.values())
        self._failures[kind] = failure
        if now - self._told.get(failure.trouble, -REMINDER) >= (REMINDER if goes_on else QUIET):
            self._told = {trouble: at for trouble, at in self._told.items() if now - at < REMINDER}
            self._told[failure.trouble] = now
            self._tell(kind, failure, error, now - failure.since)

    def failures(self) -> dict[str, tuple[float, str]]:
        """Return the resources that fail: for each kind, for how many seconds and why. Safe in any thread."""
        now = self._clock()
        return {kind: (now - failure.since, failure.error) for kind, failure in snapshot(self._failures).items()}

    def failing_for(self, kind: str) -> float:
        """Return for how many seconds a resource has been failing, or 0 if it is not. Safe in any thread."""
        failure = self._failures.get(kind)
        return 0.0 if failure is None else self._clock() - failure.since

    def _tell(self, kind: str, failure: _Failure, error: Exception, seconds: float) -> None:
        fields = {"resource": kind, "error": failure.error, **({"since": round(seconds, 1)} if seconds else {})}
        if isinstance(error, RefusedError):
            if error.status == HTTPStatus.FORBIDDEN:
                log.error("permission_missing", verbs="list, watch", path=self._paths.get(kind, ""), **fields)
            elif error.status == HTTPStatus.UNAUTHORIZED:
                log.error("credentials_refused", hint="the token or certificate is expired or revoked", **fields)
            else:
                log.warning("request_refused", retry_after=error.retry_after, **fields)
        elif failure.cause is Interruption.REFUSED:
            log.error("credentials_not_readable", **fields)
        elif failure.cause is Interruption.SILENT:
            log.warning("api_silent", hint="nothing was heard of the API server, not even a bookmark", **fields)
        else:
            log.warning("watch_interrupted", **fields)


def _trouble(kind: str, error: Exception) -> str:
    """Return what identifies a problem. It is the same for all resources, whatever the error's wording.

    The exception is a missing permission (403), which concerns one resource.
    """
    if isinstance(error, RefusedError):
        return f"{error.status} {kind}" if error.status == HTTPStatus.FORBIDDEN else str(error.status)
    return type(error).__name__


def _text(error: Exception) -> str:
    return quote(" ".join(str(error).split())) or type(error).__name__
