"""What clients of the agent's servers can do to each other, and to the agent: raw bytes over the loopback."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from time import monotonic

import pytest
import structlog
from aiohttp import web

from ipvs_proxy.agent.web.listener import Doorkeeper, Listener

#: Everything that is not HTTP, or no longer.
GARBAGE = {
    "binary": b"\0\xff garbage\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "no such version": b"GET / HTTP/x.y\r\nHost: x\r\n\r\n",
    "huge path": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "length and chunks": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "broken chunk": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "NUL in a header": b"GET / HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n",
}


class Counts(Doorkeeper):
    """A doorkeeper that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []
        super().__init__(malformed=self._tell, displaced=self._tell)

    def _tell(self, *what: str) -> None:
        self.told.append(what)


@asynccontextmanager
async def serving(counts: Doorkeeper, limit: int = 4) -> AsyncIterator[int]:
    """Serve ``/``, ``/slow``, which never answers, and ``/fault``, which fails; return the port."""

    async def at_once(_: web.Request) -> web.Response:
        return web.Response(text="here")

    async def never(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async def fault(_: web.Request) -> web.Response:
        raise RuntimeError("a fault of ours")

    application = web.Application()
    for path, handler in (("/", at_once), ("/slow", never), ("/fault", fault)):
        application.router.add_route("*", path, handler)
    sock = counts.listen("127.0.0.1", 0, family=socket.AF_INET)
    port = sock.getsockname()[1]
    listener = await Listener.open(counts, application, [sock], name="test", limit=limit, keepalive_timeout=15.0)
    try:
        async with asyncio.timeout(20):
            yield port
    finally:
        await listener.close()


async def answer_to(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        with suppress(ConnectionError):
            return await reader.read()
        return b""
    finally:
        writer.close()


async def probe(port: int, path: str = "/") -> bytes:
    return await answer_to(port, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())


async def test_one_connection_too_many_costs_the_oldest_that_waits_for_a_request() -> None:
    counts = Counts()
    async with serving(counts) as port:
        busy = await asyncio.open_connection("127.0.0.1", port)
        busy[1].write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        idle[0][1].write(b"GET / HTTP/1.1\r\nHost:")  # half a request is none
        for number in range(3):
            assert (await probe(port)).startswith(b"HTTP/1.1 200"), number
        assert await idle[0][0].read() == b""
        assert not busy[0].at_eof()
        assert counts.told == [("test", "connections")]
        for _, writer in (busy, *idle):
            writer.close()


async def test_where_all_are_being_answered_the_oldest_goes() -> None:
    async with serving(Counts()) as port:
        busy = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
        for _, writer in busy:
            writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await probe(port)).startswith(b"HTTP/1.1 200")
        assert await busy[0][0].read() == b""
        for _, writer in busy:
            writer.close()


async def test_client_that_never_reads_can_be_displaced() -> None:
    async with serving(Counts(), limit=1) as port:
        with socket.create_connection(("127.0.0.1", port)) as deaf:
            deaf.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    deaf.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 1_000)
                    await asyncio.sleep(0)
            assert (await probe(port)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage_is_refused_in_one_line_counted_and_not_logged(
    garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    counts = Counts()
    async with serving(counts) as port:
        with structlog.testing.capture_logs() as logs:
            answer = await answer_to(port, garbage)
        head, _, body = answer.partition(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200"):  # a broken body comes after a good head
            assert (head.split(b"\r\n")[0][8:], body) == (b" 400 Bad Request", b"400 Bad Request\n")
        assert b"\r\nServer:" not in head
        assert counts.told == [("test",)]
        assert (logs, caplog.records) == ([], [])
        assert (await probe(port)).startswith(b"HTTP/1.1 200")


async def test_no_answer_names_the_software() -> None:
    async with serving(Counts()) as port:
        with structlog.testing.capture_logs():
            for path in ("/", "/fault", "/missing"):
                head, _, body = (await probe(port, path)).partition(b"\r\n\r\n")
                assert b"\r\nServer:" not in head, path
                assert b"Traceback" not in body, path


async def test_fault_of_ours_is_logged_but_not_as_often_as_a_client_likes() -> None:
    async with serving(Counts(), limit=64) as port:
        with structlog.testing.capture_logs() as logs:
            for _ in range(20):
                assert (await probe(port, "/fault")).startswith(b"HTTP/1.1 500")
    assert {line["event"] for line in logs} == {"request_failed"}
    assert repr(logs[0]["exc_info"]) == "RuntimeError('a fault of ours')"
    assert 1 <= len(logs) <= 5


#: A process with few descriptors that serves ten health checks, tells their ports, and at the end of its input says
#: what became of it.
FEW_DESCRIPTORS = """
import asyncio, json, resource, sys
import structlog
from ipvs_proxy.agent.web.listener import Doorkeeper
from ipvs_proxy.agent.web.service_health import ServiceHealth
from ipvs_proxy.plan.fragment import HealthCheck, ServiceName
from ipvs_proxy.plan.tables import Family

async def main():
    refused, lines = [], []
    structlog.configure(processors=[lambda _, __, event: lines.append(event["event"]) or repr(event)],
                        logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
    displaced = []
    servers = ServiceHealth(healthy=lambda: True, addresses=lambda _: ["127.0.0.1"],
        refused=lambda name, port, error: refused.append(error.errno),
        doorkeeper=Doorkeeper(displaced=lambda *why: displaced.append(why)))
    task = asyncio.create_task(servers.serve_for_ever())
    for number, port in enumerate(json.loads(sys.argv[1])):
        servers.wish(ServiceName("ns", f"lb{number}"), {Family.IPV4: HealthCheck(port, 1)})
    await asyncio.sleep(0)
    print("ready", flush=True)
    held = []
    while line := await asyncio.to_thread(sys.stdin.readline):
        if line == "exhaust\\n":
            try:
                while True:
                    held.append(open("/dev/null"))
            except OSError as error:
                print(json.dumps(error.errno), flush=True)
        elif line == "release\\n":
            held.clear()
            print("released", flush=True)
        else:
            files = [open("/dev/null") for _ in range(50)]
            print(json.dumps({"refused": refused, "lines": lines, "displaced": len(displaced)}), flush=True)

asyncio.run(main())
"""


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [sock.getsockname()[1] for sock in sockets]


class FewDescriptors:
    """That process."""

    def __init__(self, process: subprocess.Popen[str], ports: list[int]) -> None:
        self.process = process
        self.ports = ports

    def say(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()


@asynccontextmanager
async def few_descriptors() -> AsyncIterator[FewDescriptors]:
    ports = free_ports(10)
    with subprocess.Popen(  # noqa: ASYNC220  it starts in no time
        [sys.executable, "-c", FEW_DESCRIPTORS, json.dumps(ports)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield FewDescriptors(process, ports)
        finally:
            process.kill()


@asynccontextmanager
async def idle_clients(ports: list[int]) -> AsyncIterator[None]:
    """Connect to each of the ports, and say nothing."""
    with ExitStack() as stack:
        for port in ports:
            stack.enter_context(await asyncio.to_thread(socket.create_connection, ("127.0.0.1", port)))
        yield


async def test_flood_of_many_ports_leaves_descriptors_for_everything_else() -> None:
    async with few_descriptors() as child, asyncio.timeout(60), idle_clients(child.ports * 40):
        for port in child.ports:
            assert b" 200 OK" in await probe(port)
        said = json.loads(child.say("report"))  # it opens 50 files
        assert (said["refused"], said["lines"]) == ([], [])
        assert said["displaced"] >= 400 - 200


async def test_out_of_descriptors_is_a_pause_and_a_line_not_a_loop() -> None:
    async with few_descriptors() as child, asyncio.timeout(60):
        assert b" 200 OK" in await probe(child.ports[0])
        assert json.loads(child.say("exhaust")) == 24
        async with idle_clients([child.ports[0]] * 20):
            await asyncio.sleep(0.5)
            assert child.say("release") == "released\n"
            begun = monotonic()
            assert b" 200 OK" in await probe(child.ports[0])
            assert monotonic() - begun < 5
        said = json.loads(child.say("report"))
        assert said["lines"] == ["connections_wait"]


def test_soft_limit_of_descriptors_becomes_the_hard_one() -> None:
    code = (
        "import resource; from ipvs_proxy.agent.tuning import raise_descriptor_limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 300)); raise_descriptor_limit()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(300, 300)\n"


async def test_clients_that_break_off_anywhere_leave_no_line_and_no_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = (
        b"POST /slow HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\n"
    )
    counts, trouble = Counts(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: trouble.append(context))
    with structlog.testing.capture_logs() as logs:
        async with serving(counts, limit=64) as port:
            for end in range(len(whole)):
                with socket.create_connection(("127.0.0.1", port)) as client:
                    if end % 2:  # close with a reset
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    client.sendall(whole[:end])
                    await asyncio.sleep(0)
            assert (await probe(port)).startswith(b"HTTP/1.1 200")
            async with asyncio.timeout(5):
                while counts.connected:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        assert (counts.listening, counts.listeners) == (0, set())
    assert (logs, caplog.records, trouble) == ([], [], [])
