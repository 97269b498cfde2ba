"""Events: what ``kubectl describe`` shows an operator about a Service or the node (events.k8s.io/v1).

To emit is to note: it neither waits nor fails, so any path may do it. A loop writes to the API what was noted. The
same fact about the same object is one Event with a ``series`` that counts it, as the API documents: written when it
first happens, when it happens again, and from then on every few minutes while it goes on. Promised: an agent that
has much to say, or an API server that does not listen, costs bounded memory and a bounded rate of requests.
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

from ipvs_proxy.kube.client import Reply
from ipvs_proxy.pacing import Backoff, TokenBucket

log = structlog.get_logger(__name__)

REPORTING_CONTROLLER = "ipvs-proxy"

#: Seconds without a repetition after which a series is over, and between two writes of one that goes on.
SERIES_END = 360.0
SERIES_REFRESH = 300.0
#: Tokens of one object: this many events at once, then one per five minutes. The numbers are client-go's.
OBJECT_BURST, OBJECT_RATE = 25, 1 / 300
#: Tokens of all requests: this many at once, then this many per second. The numbers are kube-proxy's client's.
REQUEST_BURST, REQUEST_RATE = 10, 5.0
#: Series, written or not, and objects that are remembered at most.
LIMIT = 4096
#: How often a write is tried, and the pauses in between.
ATTEMPTS = 6
BACKOFF = Backoff(first=1.0, longest=16.0)
#: Seconds for which no event is tried after the server said that the agent may not write any.
FORBIDDEN_PAUSE = 600.0
#: Seconds between two log lines about events that were dropped.
DROPPED_INTERVAL = 600.0

#: Limits of the API: bytes of a note, characters of the instance. A name has at most 253; 17 are ours.
NOTE_BYTES = 1024
INSTANCE_LENGTH = 128
NAME_LENGTH = 236

_API_VERSIONS = {"EndpointSlice": "discovery.k8s.io/v1"}

#: Refusals that may be over at the next attempt, besides those of 500 and more.
_TRANSIENT = frozenset(
    (HTTPStatus.UNAUTHORIZED, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS)
)

EventType = Literal["Normal", "Warning"]
Send = Callable[[Literal["POST", "PATCH"], str, bytes], Awaitable[Reply]]


class Regarding(NamedTuple):
    """The object that an event is about; the namespace of a Node is empty."""

    kind: str
    namespace: str
    name: str
    uid: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


class _Fact(NamedTuple):
    """What makes two events the same."""

    regarding: Regarding
    type: EventType
    reason: str
    action: str
    note: str


@dataclass(slots=True)
class _Series:
    """One fact and how often it was seen. Times are seconds of the monotonic clock, except for those in nanoseconds."""

    fact: _Fact
    name: str
    first_nanoseconds: int
    last_nanoseconds: int
    seen_at: float
    due: float
    count: int = 1
    #: The count that the API server knows; 0 if the event was not posted yet.
    written: int = 0
    written_at: float = 0.0
    attempts: int = 0

    def next_due(self) -> float:
        """Return when there is something to do: to write what is new, or to end the series."""
        if self.count == self.written:
            return self.seen_at + SERIES_END
        return self.written_at + SERIES_REFRESH if self.written > 1 else self.seen_at


class Events:
    """The events of one agent; all methods belong to the event loop's thread.

    Args:
        send: makes a request; see ``ipvs_proxy.kube.client.Client.send``.
        reporting_instance: which agent this is: ``ipvs-proxy-<node>``.
        clock: returns seconds that never go back.
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
        """Note that something happened; never waits, never fails.

        Args:
            regarding: the object it is about.
            type: ``Warning`` for what an operator should look at.
            reason: why, a word in CamelCase; at most 128 characters, as ``action``.
            action: what the agent did or tried, a word in CamelCase.
            note: the sentence for the operator, not empty; what is over 1024 bytes is cut off.

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
        idle = series.count == series.written  # else a write is due, or under way, in any case
        series.count += 1
        series.last_nanoseconds, series.seen_at = nanoseconds, now
        if idle:
            self._schedule(series, series.next_due())

    async def post_for_ever(self) -> None:
        """Write what was emitted until cancelled."""
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
        """Write what is due now; return the seconds until something else is, ``None`` if nothing will be."""
        while self._heap:
            due, _, series = self._heap[0]
            now = self._clock()
            if due != series.due or self._series.get(series.fact) is not series:
                heapq.heappop(self._heap)  # it was scheduled again, or is gone
            elif due > now:
                return due - now
            elif series.count == series.written:
                heapq.heappop(self._heap)
                self._settle(series, now)
            elif wait := max(self._forbidden_until - now, 0) or self._requests.take(now):
                return wait
            else:
                heapq.heappop(self._heap)
                # The token of the first write was taken by ``emit``; what has to wait later is not lost, but counted.
                if series.written and (wait := self._object(series.fact.regarding, now).take(now)):
                    self._schedule(series, now + wait)
                else:
                    await self._write(series)
        return None

    async def _write(self, series: _Series) -> None:
        """Post an event, or patch its series, and see to what the server says."""
        method: Literal["POST", "PATCH"] = "PATCH" if series.written else "POST"
        written = series.count
        try:
            reply = await self._send(method, *self._request(series))
        except Exception as error:  # noqa: BLE001  whatever a request does, the other events go on
            self._failed(series, f"{type(error).__name__}: {error}")
            return
        now = self._clock()
        if 200 <= reply.status < 300 or (reply.status == HTTPStatus.CONFLICT and method == "POST"):
            # A conflict is an event of this name: ours, whose first answer was lost.
            series.written, series.written_at, series.attempts = written, now, 0
            self._forbidden_told = False
            self._settle(series, now)
        elif reply.status == HTTPStatus.NOT_FOUND and method == "PATCH":
            series.written = 0  # the server forgets events after an hour or so
            self._schedule(series, now)
        elif reply.status == HTTPStatus.FORBIDDEN and "NamespaceTerminating" not in reply.text:
            self._forbid(series, reply, now)
        elif reply.status >= 500 or reply.status in _TRANSIENT:
            self._failed(series, f"HTTP {reply.status}: {reply.text}")
        else:
            self._give_up(series, f"HTTP {reply.status}: {reply.text}")

    def _request(self, series: _Series) -> tuple[str, bytes]:
        """Return the path and the body of the request that writes a series."""
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
        """Schedule what comes next, or forget a series that is over."""
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
        """Return the bucket of an object; the one that was silent for longest is forgotten first."""
        bucket = self._objects.get(regarding)
        if bucket is None:
            bucket = self._objects[regarding] = TokenBucket(OBJECT_BURST, OBJECT_RATE, now)
            if len(self._objects) > LIMIT:
                self._objects.popitem(last=False)
        self._objects.move_to_end(regarding)
        return bucket

    def _name(self, fact: _Fact, nanoseconds: int) -> str:
        """Make a name that no other event has: the object's and a time, as all Kubernetes components do."""
        self._last_name = max(self._last_name + 1, nanoseconds)
        return f"{fact.regarding.name[:NAME_LENGTH].rstrip('-.')}.{self._last_name:016x}"


def _micro_time(nanoseconds: int) -> str:
    """Write a time as the API's MicroTime: RFC 3339 with six digits."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1000:06d}Z"
