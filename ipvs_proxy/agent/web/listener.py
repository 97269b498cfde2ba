"""Accepts the connections of the agent's servers, so that no client keeps another out, or the agent from its work.

Promised: a server holds a bounded number of connections, and one more costs the oldest that waits for a request. All
servers together leave ``RESERVE`` file descriptors to the sockets of kernel and API, to files and to iptables; half of
the rest is for connections, however many ports there are. Running out of descriptors all the same costs one connection
and a pause. Garbage gets one short answer, is counted, and leaves no line in the log. No answer names the software.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import sys
import time
from collections.abc import Callable, Sequence
from errno import EMFILE
from typing import Any, Final, cast

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_exceptions import HTTPBadRequest

from ipvs_proxy.pacing import TokenBucket

log = structlog.get_logger(__name__)

#: Descriptors that are left for everything else: an agent has some 40, and a repair takes six more for iptables.
RESERVE: Final = 128
#: Connections that are taken at once, before others get their turn.
ACCEPTED_AT_ONCE: Final = 16
#: Seconds without accepting, after the kernel refused to.
PAUSE: Final = 1.0
#: Connections that may wait to be accepted.
BACKLOG: Final = 128
#: Lines about trouble with clients at once, and seconds for each from then on: clients make the trouble.
_LINES, _SECONDS_PER_LINE = 5, 30.0

#: Is told the name of the server, and why if there is more than one reason.
Count = Callable[..., None]


def _count_nothing(*_: str) -> None:
    """Leave it at that."""


class Doorkeeper:
    """Knows all listeners of this process, which share its descriptors; belongs to the event loop's thread.

    Args:
        malformed: counts a request that cannot be read, by the server's name.
        displaced: counts a connection that had to go for others, by the server's name and the reason: ``connections``
            (too many on one listener) or ``descriptors``.

    """

    def __init__(self, *, malformed: Count = _count_nothing, displaced: Count = _count_nothing) -> None:
        self.malformed = malformed
        self.displaced = displaced
        self.listeners: set[Listener] = set()
        #: How many descriptors there are of each kind.
        self.listening = 0
        self.connected = 0
        self._lines = TokenBucket(_LINES, 1 / _SECONDS_PER_LINE, time.monotonic())

    def listen(self, address: str, port: int, *, family: socket.AddressFamily) -> socket.socket:
        """Return a socket that listens on an address of one family alone, and that never waits.

        Raises:
            OSError: if the address is refused, or if there are no descriptors left for it.

        """
        if self.listening >= _available() // 2:
            raise OSError(EMFILE, "the limit of open files is too low for another listening socket")
        # IPV6_V6ONLY and SO_REUSEADDR are what this function sets.
        sock = socket.create_server((address, port), family=family, backlog=BACKLOG)
        sock.setblocking(False)
        return sock

    def has_room(self) -> bool:
        """Return whether there is a descriptor for another connection."""
        return self.listening + self.connected < _available()

    def make_room(self) -> bool:
        """Close a connection of the listener that has the most; return whether there was one."""
        fullest = max(self.listeners, key=len, default=None)
        return fullest is not None and fullest.displace("descriptors")

    def may_log(self) -> bool:
        """Return whether another line about trouble with clients may be logged."""
        return not self._lines.take(time.monotonic())


def _available() -> int:
    """Return how many descriptors the servers may have."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit - min(RESERVE, limit // 2)


class _Refusal(web.Response):
    """The answer to garbage. It belongs to no application, so nobody else takes the library's name off it."""

    def __init__(self) -> None:
        super().__init__(status=HTTPBadRequest.status_code, text="400 Bad Request\n")
        self.force_close()

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.popall("Server", None)


class Connection(web.RequestHandler):
    """A connection of a listener, from the moment that it is accepted until it is gone."""

    __slots__ = ("_listener", "_pipe")

    def __init__(self, listener: Listener, server: web.Server, **options: Any) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), access_log=None, **options)  # type: ignore[arg-type]
        self._listener = listener
        self._pipe: asyncio.Transport | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return not self._request_in_progress and not self._messages

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport: the library forgets it when it closes one whose client does not read."""
        self._pipe = cast("asyncio.Transport", transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Leave the listener."""
        self._listener.left(self)
        super().connection_lost(exc)

    def abort(self) -> bool:
        """Close at once, also if the client does not read; return whether there was something to close."""
        if self._pipe is None:
            return False
        self._pipe.abort()
        return True

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what cannot be read in one line."""
        if isinstance(exc, HttpProcessingError) and not request.writer.output_size:
            self._listener.malformed()
            return _Refusal()
        return super().handle_error(request, status, exc, message)

    def log_exception(self, *_: object, exc_info: BaseException | None = None, **__: object) -> None:
        """Log a fault of ours; what a client sends that cannot be read is only counted."""
        if isinstance(exc_info, HttpProcessingError | web.RequestPayloadError):
            self._listener.malformed()
        else:
            self._listener.failed(exc_info)


class Listener:
    """Listening sockets with one application behind them, and its connections, the oldest first.

    ``len()`` is the number of connections. ``limit`` is the largest number of them, ``options`` are those of aiohttp's
    ``RequestHandler``.
    """

    def __init__(
        self,
        doorkeeper: Doorkeeper,
        runner: web.AppRunner,
        sockets: Sequence[socket.socket],
        *,
        name: str,
        limit: int,
        **options: Any,
    ) -> None:
        self._doorkeeper = doorkeeper
        self._runner = runner
        self._sockets = sockets
        self._name = name
        self._limit = limit
        self._options = options
        self._connections: dict[Connection, None] = {}
        self._arriving: set[asyncio.Task[None]] = set()
        self._paused: set[asyncio.TimerHandle] = set()

    @classmethod
    async def open(
        cls,
        doorkeeper: Doorkeeper,
        application: web.Application,
        sockets: Sequence[socket.socket],
        *,
        name: str,
        limit: int,
        **options: Any,
    ) -> Listener:
        """Serve an application on sockets that listen already; they are closed with the listener."""
        application.on_response_prepare.append(_hide_software)
        # A reader that is gone needs no answer.
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        listener = cls(doorkeeper, runner, sockets, name=name, limit=limit, **options)
        doorkeeper.listeners.add(listener)
        doorkeeper.listening += len(sockets)
        for sock in sockets:
            listener._watch(sock)
        return listener

    def __len__(self) -> int:
        return len(self._connections)

    @property
    def connections(self) -> list[Connection]:
        """Those that are there, the oldest first."""
        return list(self._connections)

    async def close(self) -> None:
        """Free the addresses at once and end the connections, also with clients that do not read."""
        self._doorkeeper.listeners.discard(self)
        self._doorkeeper.listening -= len(self._sockets)
        for handle in self._paused:
            handle.cancel()
        for sock in self._sockets:
            asyncio.get_running_loop().remove_reader(sock.fileno())
            sock.close()
        await asyncio.gather(*self._arriving)
        for connection in self.connections:
            connection.abort()
            self.left(connection)
        await self._runner.cleanup()

    def displace(self, reason: str) -> bool:
        """Close the oldest connection that waits for a request, or else the oldest; return whether there was one."""
        connections = self.connections
        for connection in (*(one for one in connections if one.is_idle), *connections):
            if connection.abort():
                self.left(connection)
                self._doorkeeper.displaced(self._name, reason)
                return True
        return False

    def left(self, connection: Connection) -> None:
        """Forget a connection."""
        if connection in self._connections:
            del self._connections[connection]
            self._doorkeeper.connected -= 1

    def malformed(self) -> None:
        """Count a request that cannot be read."""
        self._doorkeeper.malformed(self._name)

    def failed(self, error: BaseException | None) -> None:
        """Log that a request could not be answered, through a fault of ours."""
        if self._doorkeeper.may_log():
            log.error("request_failed", server=self._name, exc_info=error)

    def _watch(self, sock: socket.socket) -> None:
        asyncio.get_running_loop().add_reader(sock.fileno(), self._accept, sock)

    def _accept(self, sock: socket.socket) -> None:
        """Take the connections that wait, a few at a time."""
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                accepted, _ = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._rest(sock, error)
                return
            accepted.setblocking(False)
            if not self._admit(accepted):
                return

    def _admit(self, accepted: socket.socket) -> bool:
        """Take a connection in, if need be at the cost of another; return whether more may be accepted just now."""
        server, is_crowded = self._runner.server, len(self) >= self._limit
        is_full = is_crowded or not self._doorkeeper.has_room()
        if server is None or (
            is_full and not (self.displace("connections") if is_crowded else self._doorkeeper.make_room())
        ):
            accepted.close()
            return False
        connection = Connection(self, server, **self._options)
        self._connections[connection] = None
        self._doorkeeper.connected += 1
        arriving = asyncio.create_task(self._take(connection, accepted))
        self._arriving.add(arriving)
        arriving.add_done_callback(self._arriving.discard)
        # A descriptor that was given back is free after a turn of the event loop.
        return not is_full

    async def _take(self, connection: Connection, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, accepted)
        except OSError:
            self.left(connection)
            accepted.close()

    def _rest(self, sock: socket.socket, error: OSError) -> None:
        """Make room and accept nothing for a while: the kernel has no descriptor or no memory for a connection."""
        self._doorkeeper.make_room()
        if self._doorkeeper.may_log():
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            remedy = {"limit": limit, "remedy": "raise the limit of open files"} if error.errno == EMFILE else {}
            log.warning("connections_wait", server=self._name, error=error.strerror, retry_in=PAUSE, **remedy)
        loop = asyncio.get_running_loop()
        loop.remove_reader(sock.fileno())

        def resume() -> None:
            self._paused.discard(handle)
            self._watch(sock)

        handle = loop.call_later(PAUSE, resume)
        self._paused.add(handle)


async def _hide_software(_: web.Request, response: web.StreamResponse) -> None:
    # kube-proxy sends no such header, and some of the ports are open to the world.
    response.headers.popall("Server", None)
