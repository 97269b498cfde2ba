"""Reading in large pieces: how often the reader is woken, what waits, and what is left of it on the connection."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from ipvs_proxy.kube import bulk
from lab.certificates import make_authority
from tests.support.api_client import connected, serving

PIECE, PIECES = b"x" * 4096, 256
WHOLE = len(PIECE) * PIECES
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    make_authority(directory, "api")
    return directory


@asynccontextmanager
async def answering(answer: Answer, certificates: Path | None = None) -> AsyncIterator[aiohttp.ClientResponse]:
    """Send a request to a server that answers it so, and then is silent; yield the response."""
    seen = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        await answer(writer)
        await seen.wait()
        writer.close()

    server_tls = client_tls = None
    if certificates is not None:
        server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_tls.load_cert_chain(certificates / "api-leaf.crt", certificates / "api-leaf.key")
        client_tls = ssl.create_default_context(cafile=certificates / "api.crt")
        client_tls.verify_flags &= ~ssl.VERIFY_X509_STRICT  # as the client
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_tls)
    scheme, port = "https" if server_tls else "http", server.sockets[0].getsockname()[1]
    async with (
        server,
        aiohttp.ClientSession(read_bufsize=1 << 20) as session,
        session.get(f"{scheme}://127.0.0.1:{port}/", ssl=client_tls or True) as response,
    ):
        yield response
        seen.set()


def connection_of(response: aiohttp.ClientResponse) -> socket.socket:
    assert response.connection is not None
    assert response.connection.transport is not None
    connection: socket.socket = response.connection.transport.get_extra_info("socket")
    return connection


async def drip(writer: asyncio.StreamWriter) -> None:
    """Write piece by piece, each when the reader has had its turn."""
    for _ in range(PIECES):
        writer.write(chunk(PIECE))
        await writer.drain()
        await asyncio.sleep(0)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
async def test_what_drips_is_read_in_large_pieces_until_the_list_has_come(
    monkeypatch: pytest.MonkeyPatch, certificates: Path, encrypted: bool
) -> None:
    monkeypatch.setattr(bulk, "PATIENCE", 30.0)
    sizes: list[int] = []
    listed = WHOLE - 2 * bulk.ENOUGH

    async with answering(drip, certificates if encrypted else None) as response, asyncio.timeout(20):
        connection = connection_of(response)
        async for piece in bulk.read(response.content, connection, inactivity=60, is_bulk=lambda: sum(sizes) < listed):
            sizes.append(len(piece))
            if sum(sizes) == WHOLE:
                break
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1

    while_listing = [size for index, size in enumerate(sizes) if sum(sizes[:index]) < listed]
    assert len(while_listing) <= listed // (bulk.ENOUGH // 2), f"woken for {sizes}"
    # What comes afterwards is an event each, and comes as it is sent.
    assert len(sizes) - len(while_listing) >= 8, f"woken for {sizes}"


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
async def test_little_is_not_waited_with(certificates: Path, encrypted: bool) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(chunk(b"first"))
        await asyncio.sleep(5 * bulk.PATIENCE)
        writer.write(chunk(b"second"))

    async with answering(answer, certificates if encrypted else None) as response, asyncio.timeout(20):
        pieces = bulk.read(response.content, connection_of(response), inactivity=60, is_bulk=lambda: True)
        assert [await anext(pieces), await anext(pieces)] == [b"first", b"second"]


async def test_answers_one_after_the_other_come_over_one_connection() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=b"x" * 3 * bulk.ENOUGH)

    async with serving() as server, connected(master=f"http://127.0.0.1:{server.port}") as client, asyncio.timeout(20):
        server.answer = answer
        for _ in range(3):
            async with client.get("/api/v1/services", {}, inactivity=5) as response:
                pieces = [piece async for piece in response.chunks(is_bulk=lambda: True)]
            assert sum(map(len, pieces)) == 3 * bulk.ENOUGH
        assert len(set(server.peers)) == 1


class Content:
    """A body whose pieces are there at once; an exception is raised in its turn."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self._pieces = list(pieces)

    async def readany(self) -> bytes:
        piece = self._pieces.pop(0) if self._pieces else b""
        if isinstance(piece, Exception):
            raise piece
        return piece


class Connection:
    """A socket that remembers what it was asked to report."""

    def __init__(self, *, is_closed: bool = False) -> None:
        self.marks: list[int] = []
        self._is_closed = is_closed

    def setsockopt(self, level: int, option: int, value: int) -> None:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_RCVLOWAT)
        if self._is_closed:
            raise OSError(9, "Bad file descriptor")
        self.marks.append(value)


async def test_the_connection_is_as_it_was_whenever_a_piece_is_handed_on() -> None:
    connection = Connection()
    pieces = bulk.read(Content(b"a", b"b"), connection, inactivity=60, is_bulk=lambda: True)
    async for _ in pieces:
        assert connection.marks[-1] == 1
    assert connection.marks == [bulk.ENOUGH, 1] * 3


@pytest.mark.parametrize("fault", [TimeoutError("no byte for 150 s"), ConnectionResetError()])
async def test_a_fault_is_raised_and_the_connection_left_as_it_was(fault: Exception) -> None:
    connection = Connection()
    pieces = bulk.read(Content(b"a", fault), connection, inactivity=60, is_bulk=lambda: True)
    assert await anext(pieces) == b"a"
    with pytest.raises(type(fault)) as raised:
        await anext(pieces)
    assert raised.value is fault
    assert connection.marks == [bulk.ENOUGH, 1] * 2


class Silent:
    """Nothing comes and nobody tells, as after aiohttp has closed a connection on which something else than HTTP came."""

    async def readany(self) -> bytes:
        await asyncio.Event().wait()
        return b""


@pytest.mark.parametrize("is_bulk", [True, False], ids=["list", "watch"])
async def test_silence_ends_after_the_longest_that_is_allowed(is_bulk: bool) -> None:
    pieces = bulk.read(Silent(), Connection(), inactivity=0.02, is_bulk=lambda: is_bulk)
    with pytest.raises(TimeoutError, match=r"nothing came for 0\.02 s"):
        async with asyncio.timeout(5):
            await anext(pieces)


async def test_who_is_cancelled_leaves_the_connection_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "PATIENCE", 30.0)
    connection = Connection()
    waiting = asyncio.ensure_future(anext(bulk.read(Silent(), connection, inactivity=60, is_bulk=lambda: True)))
    await asyncio.sleep(0)
    assert connection.marks == [bulk.ENOUGH]
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert connection.marks == [bulk.ENOUGH, 1]


@pytest.mark.parametrize("connection", [None, Connection(is_closed=True)], ids=["none", "closed"])
async def test_without_the_socket_the_body_comes_all_the_same(connection: Connection | None) -> None:
    pieces = bulk.read(Content(b"a", b"b"), connection, inactivity=60, is_bulk=lambda: True)
    assert [piece async for piece in pieces] == [b"a", b"b"]


@pytest.mark.parametrize(("release", "marks"), [("4.17.19-1", []), ("4.18.0-553.el8", [bulk.ENOUGH, 1] * 2), ("?", [])])
async def test_a_kernel_that_would_keep_the_rest_to_itself_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, release: str, marks: list[int]
) -> None:
    monkeypatch.setattr("platform.release", lambda: release)
    bulk.reports_at_once.cache_clear()
    connection = Connection()
    try:
        assert [piece async for piece in bulk.read(Content(b"a"), connection, inactivity=60, is_bulk=lambda: True)] == [
            b"a"
        ]
    finally:
        bulk.reports_at_once.cache_clear()
    assert connection.marks == marks
