"""How well the API server is heard: since when a resource fails, and why; each trouble is logged once.

Three watches meet the same trouble, and each tries again twice a minute: a token that has expired would fill the log.
One line says what is wrong; another one, every ten minutes, that it still is; and a last one that it is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, NamedTuple, Protocol

import structlog

from ipvs_proxy.kube.reflector import Interruption, RefusedError
from ipvs_proxy.kube.resources import Resource
from ipvs_proxy.kube.texts import quote
from ipvs_proxy.snapshots import snapshot

log = structlog.get_logger(__name__)

#: Seconds until a trouble that goes on is logged again.
REMINDER: Final = 600.0
#: Seconds for which one that is over and comes back is not.
QUIET: Final = 60.0


class Counts(Protocol):
    """What counts."""

    def heard(self, kind: str) -> None:
        """Something came of a resource."""

    def interrupted(self, kind: str, cause: Interruption) -> None:
        """A list or watch broke off."""


class _Failure(NamedTuple):
    """Why nothing is heard of a resource: since when (seconds of a clock that never goes back), and what is wrong."""

    since: float
    cause: Interruption
    error: str
    #: What makes two troubles the same.
    trouble: str


class Hearing:
    """Keeps account of lists and watches, as their observer."""

    def __init__(
        self, resources: tuple[Resource, ...], counts: Counts, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._paths = {resource.kind: resource.path for resource in resources}
        self._counts = counts
        self._clock = clock
        self._failures: dict[str, _Failure] = {}
        #: When each trouble was last logged.
        self._told: dict[str, float] = {}

    def heard(self, kind: str) -> None:
        """Note that something came of a resource."""
        self._counts.heard(kind)
        failure = self._failures.pop(kind, None)
        if failure is None or failure.trouble not in self._told:
            return
        if all(other.trouble != failure.trouble for other in self._failures.values()):
            log.info("api_heard_again", resource=kind, after=round(self._clock() - failure.since, 1))

    def interrupted(self, kind: str, cause: Interruption, error: Exception | None) -> None:
        """Note that a list or watch broke off."""
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
        """Return for each resource that fails for how many seconds, and what is wrong. Safe in any thread."""
        now = self._clock()
        return {kind: (now - failure.since, failure.error) for kind, failure in snapshot(self._failures).items()}

    def failing_for(self, kind: str) -> float:
        """Return for how many seconds a resource has failed; 0 if it does not. Safe in any thread."""
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
    """Name what is the same trouble for all resources, however it is worded; a permission is one resource's."""
    if isinstance(error, RefusedError):
        return f"{error.status} {kind}" if error.status == HTTPStatus.FORBIDDEN else str(error.status)
    return type(error).__name__


def _text(error: Exception) -> str:
    return quote(" ".join(str(error).split())) or type(error).__name__
