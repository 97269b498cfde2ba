"""Lists and watches one resource of the API for ever, and passes the changes to a sink.

Invariants: no fault ends the loop. It waits, longer each time, and tries again, and what was delivered stays in use
meanwhile. Only a list or an event of the requested kind counts as a response. An empty list counts; a proxy's web page,
a Status or half a list does not.

The first choice is a streaming list: a watch that begins with all existing objects. If the server does not support it,
the list is read in pages. The first list is passed on as it arrives, so that work can begin early. ``synced`` reports
that it is complete; objects that were deleted in the meantime are then removed.

After that, the watch continues from the last resource version. Nothing is read twice after the stream ends or goes
silent, or after the server restarts. All objects are listed again only if the server no longer knows that version
(410), and only real differences reach the sink.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http import HTTPStatus
from typing import NamedTuple, Protocol

import aiohttp
import structlog

from ipvs_proxy.kube.decode import DecodedList, DecodeError, Event, ListDecoder, Skipped, decode_event, message_of
from ipvs_proxy.kube.lines import LineSplitter
from ipvs_proxy.kube.objects import KubernetesObject
from ipvs_proxy.kube.resources import Resource
from ipvs_proxy.kube.sinks import NOBODY, Interruption, Observer, Sink
from ipvs_proxy.kube.store import Change, Store
from ipvs_proxy.kube.texts import quote
from ipvs_proxy.pacing import Backoff

log = structlog.get_logger(__name__)

#: Objects in one page of a list.
PAGE_SIZE = 500
#: Maximum number of pages of one list: two million objects.
MAX_PAGES = 4000
#: Longest ``Retry-After`` that is honoured, in seconds, before jitter.
LONGEST_RETRY_AFTER = 120.0
#: Bytes read of the body of a refusal.
REFUSAL_SIZE = 2048
#: A watch that ends within this many seconds without an event is a fault.
SHORT_WATCH = 1.0
#: The first bytes of every line of a watch.
_EVENT_BEGINNING = b'{"type":'
#: Statuses of servers that do not support streaming lists, or refuse the parameters.
_NO_STREAMING = frozenset((HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY))


class Response(Protocol):
    """A response of the API server whose body arrives in chunks."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The HTTP headers."""

    def chunks(self, *, is_bulk: Callable[[], bool] = ...) -> AsyncIterator[bytes]:
        """Return the chunks of the body as they arrive, in large ones for as long as ``is_bulk`` says so."""

    async def read(self, limit: int) -> bytes:
        """Return at most the first ``limit`` bytes of the body."""


class Transport(Protocol):
    """Sends authenticated requests to the API server."""

    def get(self, path: str, query: Mapping[str, str], *, inactivity: float) -> AbstractAsyncContextManager[Response]:
        """Send a GET request, which fails with TimeoutError if no byte arrives for ``inactivity`` seconds."""

    async def reauthenticate(self) -> None:
        """Read the credentials again."""


class Timing(NamedTuple):
    """Durations in seconds.

    ``watch`` is the minimum duration that is requested for a watch, ``inactivity`` the longest silence before it counts
    as broken, and ``pauses`` are the delays after faults.
    """

    watch: float = 300.0
    inactivity: float = 150.0
    pauses: Backoff = Backoff(first=0.5, longest=30.0)


DEFAULT_TIMING = Timing()


class RefusedError(Exception):
    """The server responded with a status that is not success.

    ``retry_after`` is the server's ``Retry-After`` in seconds, or 0 without one.
    """

    def __init__(self, status: int, retry_after: float, text: str) -> None:
        super().__init__(f"HTTP {status}: {text}")
        self.status = status
        self.retry_after = retry_after


class _ExpiredError(Exception):
    """The server no longer knows the resource version (410)."""


class Reflector:
    """The state of following one resource: the known objects, and where to continue.

    ``progress`` grows with each event and each complete list.
    """

    def __init__(
        self,
        resource: Resource,
        transport: Transport,
        sink: Sink,
        *,
        timing: Timing,
        jitter: Callable[[], float],
        observer: Observer,
    ) -> None:
        self.progress = 0
        self._resource = resource
        self._transport = transport
        self._sink = sink
        self._timing = timing
        self._jitter = jitter
        self._observer = observer
        self._store = Store(resource.kind)
        self._version = ""
        self._streaming = True
        self._synced = False

    async def step(self) -> None:
        """Make one list or one watch. Returns when it has ended without a fault.

        After a fault, the next step continues from where this one ended.

        Raises:
            RefusedError: the server refused the request, or ended the watch with an error.
            DecodeError: the response is not what was requested.
            aiohttp.ClientError, OSError: the server could not be reached, or the connection broke. It is a
                ``TimeoutError`` after a silence.

        """
        try:
            if self._version:
                await self._watch()
            elif self._streaming:
                await self._list_by_watch()
            else:
                await self._list_by_pages()
        except _ExpiredError:
            log.info("relist", resource=self._resource.kind, reason="resource version expired")
            self._observer.interrupted(self._resource.kind, Interruption.EXPIRED, None)
            self._version = ""

    async def _list_by_watch(self) -> None:
        query = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        initial: dict[str, KubernetesObject] = {}
        skipped: dict[str, Skipped] = {}
        try:
            async for events in self._events(query):
                if self._version:
                    self._deliver(events)
                    continue
                for index, event in enumerate(events):
                    if event.initial_events_end:
                        self._version = event.resource_version
                        self._replace(initial.values(), list(skipped.values()))
                        self._deliver(events[index + 1 :])
                        break
                    _collect(event, initial, skipped)
                self._hand_on([event.object for event in events if event.object is not None])
        except (RefusedError, DecodeError) as error:
            # This includes a server that ignores the parameters of a streaming list and sends an ordinary list.
            if self._version or (isinstance(error, RefusedError) and error.status not in _NO_STREAMING):
                raise
            log.info("streaming_list_not_supported", resource=self._resource.kind, answer=str(error))
            self._streaming = False
            return
        if not self._version:
            # A server that ignores the parameters may send an ordinary list, which contains no event.
            self._streaming = bool(initial or skipped)
            raise ConnectionError("the streaming list ended before all objects had come")

    async def _list_by_pages(self) -> None:
        self._streaming = True  # unless this works: whatever refused the streaming list may not be an API server
        objects: list[KubernetesObject] = []
        skipped: list[Skipped] = []
        token, version = "", ""
        tokens: set[str] = set()
        while True:
            page = await self._page({"continue": token} if token else {"resourceVersion": "0"})
            self._observer.heard(self._resource.kind)
            objects += page.objects
            self._hand_on(page.objects)
            skipped += page.skipped
            token, version = page.continue_token, page.resource_version or version
            if not token:
                break
            if token in tokens or len(tokens) == MAX_PAGES:
                raise DecodeError("the list has no end: its pages lead back to one that was read, or are too many")
            tokens.add(token)
        self._version, self._streaming = version or "0", False
        self._replace(objects, skipped)

    async def _page(self, query: Mapping[str, str]) -> DecodedList:
        page = ListDecoder(self._resource)
        async with self._get({"limit": str(PAGE_SIZE), **query}) as response:
            async for chunk in response.chunks(is_bulk=lambda: True):
                page.feed(chunk)
        return page.finish()

    async def _watch(self) -> None:
        begun, before = asyncio.get_running_loop().time(), self.progress
        async for events in self._events({"resourceVersion": self._version}):
            self._deliver(events)
        if self.progress == before and asyncio.get_running_loop().time() - begun < SHORT_WATCH:
            raise ConnectionError("the watch ended at once, without an event")

    async def _events(self, query: Mapping[str, str]) -> AsyncIterator[list[Event]]:
        """Yield the events of one watch as they arrive, one list per chunk. An incomplete line at the end is lost."""
        seconds = str(int(self._timing.watch * (1 + self._jitter())) or 1)
        watch = {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": seconds, **query}
        lines = LineSplitter()
        async with self._get(watch) as response:
            # An event is urgent, an object of a list is not.
            async for chunk in response.chunks(is_bulk=lambda: not self._version):
                events = [decode_event(line, self._resource) for line in lines.feed(chunk)]
                for event in events:
                    if event.type == "ERROR":
                        if event.code == HTTPStatus.GONE:
                            raise _ExpiredError
                        raise RefusedError(event.code, 0.0, event.message)
                if events:
                    self.progress += len(events)
                    self._observer.heard(self._resource.kind)
                    yield events
        rest = lines.rest.lstrip()
        if rest and not _EVENT_BEGINNING.startswith(rest[: len(_EVENT_BEGINNING)]):
            beginning = quote(rest.decode(errors="replace"))
            raise DecodeError(f"the answer is no watch of {self._resource.kind}: it begins {beginning!r}")

    def _get(self, query: Mapping[str, str]) -> AbstractAsyncContextManager[Response]:
        return _checked(
            self._transport.get(
                self._resource.path, {**self._resource.selectors, **query}, inactivity=self._timing.inactivity
            )
        )

    def _hand_on(self, objects: Sequence[KubernetesObject]) -> None:
        """Deliver a part of the first list. A later list is compared once it is complete."""
        if self._synced:
            return
        changes = self._store.put(objects)
        if changes:
            self._sink.changed(changes)

    def _deliver(self, events: Sequence[Event]) -> None:
        changes: list[Change] = []
        for event in events:
            if event.skipped is not None:
                self._sink.skipped(*event.skipped)
            changes += self._store.apply(event)
            self._version = event.resource_version or self._version
        if changes:
            self._sink.changed(changes)

    def _replace(self, objects: Iterable[KubernetesObject], skipped: Sequence[Skipped]) -> None:
        for fault in skipped:
            self._sink.skipped(*fault)
        changes = self._store.replace(objects, {fault.key for fault in skipped})
        self.progress += 1
        if changes:
            self._sink.changed(changes)
        if not self._synced:
            self._synced = True
            log.info("listed", resource=self._resource.kind, objects=len(self._store))
            self._sink.synced(self._resource.kind)


async def reflect(
    resource: Resource,
    transport: Transport,
    sink: Sink,
    *,
    timing: Timing = DEFAULT_TIMING,
    jitter: Callable[[], float] = random.random,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    observer: Observer = NOBODY,
) -> None:
    """Follow a resource for ever.

    Args:
        resource: the kind to follow, and its selectors.
        transport: sends the requests.
        sink: receives the changes.
        timing: durations of watches, silences and pauses.
        jitter: returns numbers from 0 to 1, which spread the requests of many agents.
        sleep: waits for a number of seconds.
        observer: is notified of everything received and of every interruption.

    """
    reflector = Reflector(resource, transport, sink, timing=timing, jitter=jitter, observer=observer)
    fruitless, reauthenticated = 0, False
    while True:
        before, delay = reflector.progress, 0.0
        try:
            await reflector.step()
        except RefusedError as error:
            # The first 401 is not a fault yet: fresh credentials may fix it.
            mends = error.status == HTTPStatus.UNAUTHORIZED and not reauthenticated
            observer.interrupted(resource.kind, Interruption.REFUSED, None if mends else error)
            if error.status == HTTPStatus.UNAUTHORIZED:
                try:
                    await transport.reauthenticate()
                except Exception as fault:  # noqa: BLE001  no failure of a credential plugin may end the loop
                    observer.interrupted(resource.kind, Interruption.REFUSED, fault)
            if mends:
                reauthenticated = True
                continue
            delay = min(error.retry_after, LONGEST_RETRY_AFTER)
        except (DecodeError, OSError, aiohttp.ClientError) as error:
            observer.interrupted(resource.kind, _cause_of(error), error)
        if reflector.progress > before:
            fruitless, reauthenticated = 0, False
        # A Retry-After gets jitter as well, because a server refuses many agents in the same second.
        await sleep(max(delay * (1 + jitter()), timing.pauses.delay(fruitless) * (0.5 + jitter() / 2)))
        if reflector.progress == before:
            fruitless += 1


def _cause_of(error: Exception) -> Interruption:
    match error:
        case DecodeError():
            return Interruption.MALFORMED
        case aiohttp.ConnectionTimeoutError():
            return Interruption.BROKEN
        case TimeoutError():
            return Interruption.SILENT
    return Interruption.BROKEN


def _collect(event: Event, objects: dict[str, KubernetesObject], skipped: dict[str, Skipped]) -> None:
    """Record one of the initial events of a streaming list. The last event of an object counts."""
    objects.pop(event.key, None)
    skipped.pop(event.key, None)
    if event.object is not None:
        objects[event.key] = event.object
    elif event.skipped is not None:
        skipped[event.key] = event.skipped


@asynccontextmanager
async def _checked(request: AbstractAsyncContextManager[Response]) -> AsyncIterator[Response]:
    """Make a request and yield its response. Raise RefusedError, or _ExpiredError on 410, if it is not a success."""
    async with request as response:
        if response.status == HTTPStatus.GONE:
            raise _ExpiredError
        if response.status != HTTPStatus.OK:
            text = message_of(await response.read(REFUSAL_SIZE))
            after = response.headers.get("Retry-After", "")
            raise RefusedError(response.status, float(after) if after.isdecimal() else 0.0, text)
        yield response
