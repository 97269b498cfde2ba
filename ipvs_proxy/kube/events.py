"""Events about a Service or the node, which ``kubectl describe`` shows to an operator (events.k8s.io/v1).

Invariant: memory and the rate of requests are bounded, however much the agent has to report, and even if the API server
does not respond. ``emit`` only records an event. It never waits and never fails, so any code path may call it.

A loop writes the recorded events to the API. The same fact about the same object is one Event with a ``series`` that
counts it, as the API documents. It is written when the fact first occurs, when it occurs again, and from then on every
few minutes while it keeps occurring.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from itertools import count
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import structlog

from ipvs_proxy.kube.responses import Reply
from ipvs_proxy.pacing import Backoff, TokenBucket

log = structlog.get_logger(__name__)

REPORTING_CONTROLLER = "ipvs-proxy"

#: Seconds without a repetition after which a series ends, and seconds between two writes of a series that continues.
SERIES_END = 360.0
SERIES_REFRESH = 300.0
#: Token bucket of each object: a burst of events, then one per five minutes. The values are client-go's.
OBJECT_BURST, OBJECT_RATE = 25, 1 / 300
#: Token bucket of all requests: a burst, then this many per second. The values are those of kube-proxy's client.
REQUEST_BURST, REQUEST_RATE = 10, 5.0
#: Maximum number of series, written or not, and maximum number of objects, that are kept.
LIMIT = 4096
#: Maximum number of attempts for one write, and the delays in seconds between them.
ATTEMPTS = 6
BACKOFF = Backoff(first=1.0, longest=16.0)
#: Seconds to wait before the next attempt after the server has said that the agent may not write events.
FORBIDDEN_PAUSE = 600.0
#: Minimum seconds between two log lines about dropped events.
DROPPED_INTERVAL = 600.0

#: Limits of the API: bytes of a note, characters of the instance, and characters that a name takes from the object. A
#: name has at most 253 characters, 17 of which are the suffix that ``_name`` adds.
NOTE_BYTES = 1024
INSTANCE_LENGTH = 128
NAME_LENGTH = 236

_API_VERSIONS = {"EndpointSlice": "discovery.k8s.io/v1"}

#: Statuses for which another attempt may succeed, besides 500 and above.
_TRANSIENT = frozenset(
    (HTTPStatus.UNAUTHORIZED, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS)
)

EventType = Literal["Normal", "Warning"]
Send = Callable[[Literal["POST", "PATCH"], str, bytes], Awaitable[Reply]]


class Regarding(NamedTuple):
    """The object that an event is about. ``namespace`` is empty for a Node."""

    kind: str
    namespace: str
    name: str
    uid: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


class _Fact(NamedTuple):
    """The fields that identify an event: two events with equal facts belong to one series."""

    regarding: Regarding
    type: EventType
    reason: str
    action: str
    note: str


@dataclass(slots=True)
class _Series:
    """One fact and how often it occurred.

    Times are seconds of the monotonic clock, except for those in nanoseconds, which count from the epoch.
    """

    fact: _Fact
    name: str
    first_nanoseconds: int
    last_nanoseconds: int
    seen_at: float
    due: float
    count: int = 1
    #: The count that the API server has; 0 if the event has not been posted yet.
    written: int = 0
    written_at: float = 0.0
    attempts: int = 0

    def next_due(self) -> float:
        """Return when the series is due, either to write a new count or to end, in seconds of the monotonic clock."""
        if self.count == self.written:
            return self.seen_at + SERIES_END
        return self.written_at + SERIES_REFRESH if self.written > 1 else self.seen_at


class Events:
    """The events of one agent. All methods must be called from the event loop's thread.

    ``dropped`` counts the events that exceeded a limit or could not be written.

    Args:
        send: sends a request; see ``ipvs_proxy.kube.client.Client.send``.
        reporting_instance: identifies this agent: ``ipvs-proxy-<node>``.
        clock: monotonic clock, in seconds.
        now: returns nanoseconds since the epoch.

    """

    def __init__(
        self,
        send: Send,
        *,
        reporting_instance: str,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self.dropped = 0
        self._send = send
        self._instance = reporting_instance[:INSTANCE_LENGTH]
        self._clock = clock
        self._now = now
        self._series: dict[_Fact, _Series] = {}
        self._heap: list[tuple[float, int, _Series]] = []
        self._order = count()
        self._last_name = 0
        self._objects: OrderedDict[Regarding, TokenBucket] = OrderedDict()
        self._requests = TokenBucket(REQUEST_BURST, REQUEST_RATE, clock())
        self._forbidden_until = clock()
        self._forbidden_told = False
        self._dropped_told_at: float | None = None
        self._wake = asyncio.Event()

    def emit(
        self,
        regarding: Regarding,
        *,
        type: EventType,  # noqa: A002  the API's name
        reason: str,
        action: str,
        note: str,
    ) -> None:
        """Record that something happened. Never waits and never fails.

        Args:
            regarding: the object that the event is about.
            type: ``Warning`` if an operator should look into it.
            reason: why it happened, as one CamelCase word of at most 128 characters.
            action: what the agent did or tried, as one CamelCase word of at most 128 characters.
            note: a sentence for the operator, not empty. It is cut to 1024 bytes.

        """
        note = note.encode(errors="replace")[:NOTE_BYTES].decode(errors="ignore")
        fact = _Fact(regarding, type, reason, action, note)
        now, nanoseconds = self._clock(), self._now()
        series = self._series.get(fact)
        if series is None:
            if len(self._series) >= LIMIT:
                self._drop(fact, "too many events")
            elif self._object(regarding, now).take(now) > 0:
                self._drop(fact, "too many events of this object")
            else:
                series = _Series(fact, self._name(fact, nanoseconds), nanoseconds, nanoseconds, now, now)
                self._series[fact] = series
                self._schedule(series, now)
            return
        idle = series.count == series.written  # otherwise a write is already due or in progress
        series.count += 1
        series.last_nanoseconds, series.seen_at = nanoseconds, now
        if idle:
            self._schedule(series, series.next_due())

    async def post_for_ever(self) -> None:
        """Write recorded events until cancelled."""
        while True:
            self._wake.clear()
            try:
                pause = await self.post_due()
            except Exception:
                log.exception("events_not_posted")
                pause = FORBIDDEN_PAUSE
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def post_due(self) -> float | None:
        """Write what is due now; return the seconds until the next series is due, or ``None`` if none is left."""
        while self._heap:
            due, _, series = self._heap[0]
            now = self._clock()
            if due != series.due or self._series.get(series.fact) is not series:
                heapq.heappop(self._heap)  # it was rescheduled, or has ended
            elif due > now:
                return due - now
            elif series.count == series.written:
                heapq.heappop(self._heap)
                self._settle(series, now)
            elif wait := max(self._forbidden_until - now, 0) or self._requests.take(now):
                return wait
            else:
                heapq.heappop(self._heap)
                # ``emit`` took the token of the first write. A later write may have to wait: nothing is lost by that,
                # because occurrences are still counted.
                if series.written and (wait := self._object(series.fact.regarding, now).take(now)):
                    self._schedule(series, now + wait)
                else:
                    await self._write(series)
        return None

    async def _write(self, series: _Series) -> None:
        """Post an event or patch its series, and handle the response."""
        method: Literal["POST", "PATCH"] = "PATCH" if series.written else "POST"
        written = series.count
        try:
            reply = await self._send(method, *self._request(series))
        except Exception as error:  # noqa: BLE001  no failure of a request may stop the other events
            self._failed(series, f"{type(error).__name__}: {error}")
            return
        now = self._clock()
        if 200 <= reply.status < 300 or (reply.status == HTTPStatus.CONFLICT and method == "POST"):
            # A conflict means that the event exists: it was posted before, but the response was lost.
            series.written, series.written_at, series.attempts = written, now, 0
            self._forbidden_told = False
            self._settle(series, now)
        elif reply.status == HTTPStatus.NOT_FOUND and method == "PATCH":
            series.written = 0  # the server deletes events after about an hour
            self._schedule(series, now)
        elif reply.status == HTTPStatus.FORBIDDEN and "NamespaceTerminating" not in reply.text:
            self._forbid(series, reply, now)
        elif reply.status >= 500 or reply.status in _TRANSIENT:
            self._failed(series, f"HTTP {reply.status}: {reply.text}")
        else:
            self._give_up(series, f"HTTP {reply.status}: {reply.text}")

    def _request(self, series: _Series) -> tuple[str, bytes]:
        """Return the path and the JSON body of the request that writes a series."""
        fact, regarding = series.fact, series.fact.regarding
        namespace = regarding.namespace or "default"
        path = f"/apis/events.k8s.io/v1/namespaces/{quote(namespace, safe='')}/events"
        counted = {"count": series.count, "lastObservedTime": _micro_time(series.last_nanoseconds)}
        if series.written:
            return f"{path}/{quote(series.name, safe='')}", json.dumps({"series": counted}).encode()
        reference = {
            "apiVersion": _API_VERSIONS.get(regarding.kind, "v1"),
            "kind": regarding.kind,
            "namespace": regarding.namespace,
            "name": regarding.name,
            "uid": regarding.uid,
        }
        event: dict[str, Any] = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": series.name, "namespace": namespace},
            "eventTime": _micro_time(series.first_nanoseconds),
            "reportingController": REPORTING_CONTROLLER,
            "reportingInstance": self._instance,
            "regarding": {key: value for key, value in reference.items() if value},
            "type": fact.type,
            "reason": fact.reason,
            "action": fact.action,
            "note": fact.note,
        }
        if series.count > 1:
            event["series"] = counted
        return path, json.dumps(event).encode()

    def _settle(self, series: _Series, now: float) -> None:
        """Schedule the next step of a series, or remove a series that has ended."""
        due = series.next_due()
        if series.count == series.written and due <= now:
            del self._series[series.fact]
        else:
            self._schedule(series, due)

    def _schedule(self, series: _Series, due: float) -> None:
        series.due = due
        heapq.heappush(self._heap, (due, next(self._order), series))
        self._wake.set()

    def _failed(self, series: _Series, error: str) -> None:
        series.attempts += 1
        if series.attempts >= ATTEMPTS:
            self._give_up(series, error)
        else:
            self._schedule(series, self._clock() + BACKOFF.delay(series.attempts - 1))

    def _give_up(self, series: _Series, error: str) -> None:
        fact = series.fact
        self.dropped += 1
        log.warning(
            "event_not_posted", regarding=str(fact.regarding), reason=fact.reason, note=fact.note, error=error[:500]
        )
        del self._series[fact]

    def _forbid(self, series: _Series, reply: Reply, now: float) -> None:
        self._forbidden_until = now + FORBIDDEN_PAUSE
        self._schedule(series, self._forbidden_until)
        if not self._forbidden_told:
            self._forbidden_told = True
            log.error(
                "events_forbidden",
                error=reply.text[:500],
                retry_in=FORBIDDEN_PAUSE,
                hint="allow create and patch of events in the API group events.k8s.io in the agent's ClusterRole",
            )

    def _drop(self, fact: _Fact, why: str) -> None:
        self.dropped += 1
        now = self._clock()
        if self._dropped_told_at is None or now - self._dropped_told_at >= DROPPED_INTERVAL:
            self._dropped_told_at = now
            log.warning(
                "events_dropped", dropped=self.dropped, why=why, regarding=str(fact.regarding), reason=fact.reason
            )

    def _object(self, regarding: Regarding, now: float) -> TokenBucket:
        """Return the token bucket of an object. If there are too many, the least recently used one is removed."""
        bucket = self._objects.get(regarding)
        if bucket is None:
            bucket = self._objects[regarding] = TokenBucket(OBJECT_BURST, OBJECT_RATE, now)
            if len(self._objects) > LIMIT:
                self._objects.popitem(last=False)
        self._objects.move_to_end(regarding)
        return bucket

    def _name(self, fact: _Fact, nanoseconds: int) -> str:
        """Return a unique name for an event: the object's name and a time, as in all Kubernetes components."""
        self._last_name = max(self._last_name + 1, nanoseconds)
        return f"{fact.regarding.name[:NAME_LENGTH].rstrip('-.')}.{self._last_name:016x}"


def _micro_time(nanoseconds: int) -> str:
    """Return a time in the API's MicroTime format: RFC 3339 with six fractional digits."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1000:06d}Z"
