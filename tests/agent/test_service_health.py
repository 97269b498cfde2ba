"""The healthCheckNodePort servers: real sockets on the loopback, raw bytes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import pytest
import structlog

from ipvs_proxy.agent.web import service_health
from ipvs_proxy.agent.web.service_health import ServiceHealth
from ipvs_proxy.plan.fragment import HealthCheck, ServiceName
from ipvs_proxy.plan.tables import Family

LB, OTHER = ServiceName("ns", "lb"), ServiceName("ns", "other")
LOOPBACK = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}

BODY = """{
	"service": {
		"namespace": "ns",
		"name": "lb"
	},
	"localEndpoints": %d,
	"serviceProxyHealthy": %s
}"""


class Node:
    """What the caller gives: health and addresses, to be changed by a test; and what it was told."""

    def __init__(self) -> None:
        self.healthy = True
        self.addresses: dict[Family, Sequence[str] | None] = {Family.IPV4: None, Family.IPV6: None}
        self.refused: list[tuple[ServiceName, int, int | None]] = []


@asynccontextmanager
async def serving(node: Node) -> AsyncIterator[ServiceHealth]:
    servers = ServiceHealth(
        healthy=lambda: node.healthy,
        addresses=lambda family: node.addresses[family],
        refused=lambda name, port, error: node.refused.append((name, port, error.errno)),
    )
    task = asyncio.create_task(servers.serve_for_ever())
    try:
        yield servers
    finally:
        task.cancel()
        async with asyncio.timeout(2):
            assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(service_health, "BIND_RETRY", 0.02)
    return Node()


def free_port() -> int:
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::", 0))
        return int(probe.getsockname()[1])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  conditions of sockets and of the code under test
            await asyncio.sleep(0.005)


async def ask(port: int, request: bytes = b"GET / HTTP/1.1\r\nHost: x\r\n", address: str = "127.0.0.1") -> bytes:
    """Send a request that asks for the end of the connection, and return all bytes that come back."""
    reader, writer = await asyncio.open_connection(address, port)
    try:
        writer.write(request + b"Connection: close\r\n\r\n")
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


async def answer(port: int, address: str = "127.0.0.1") -> bytes:
    """Ask, as soon as somebody listens."""
    async with asyncio.timeout(5):
        while True:
            try:
                return await ask(port, address=address)
            except ConnectionError:
                await asyncio.sleep(0.005)


async def silent(port: int, address: str = "127.0.0.1") -> None:
    """Wait until nobody listens."""
    async with asyncio.timeout(5):
        while True:
            try:
                await ask(port, address=address)
            except ConnectionError:
                return
            await asyncio.sleep(0.005)


def weight(reply: bytes) -> int | None:
    """Read the weight off an answer; none if the connection was closed instead."""
    _, found, rest = reply.partition(b"X-Load-Balancing-Endpoint-Weight: ")
    return int(rest.split(b"\r\n")[0]) if found else None


async def weight_becomes(port: int, wanted: int) -> None:
    async with asyncio.timeout(5):
        while weight(await answer(port)) != wanted:
            pass


def ipv4(port: int, local_endpoints: int = 1) -> dict[Family, HealthCheck]:
    return {Family.IPV4: HealthCheck(port, local_endpoints)}


@pytest.mark.parametrize(
    ("local_endpoints", "healthy", "status"),
    [
        (1, True, b"200 OK"),
        (3, True, b"200 OK"),
        (0, True, b"503 Service Unavailable"),
        (2, False, b"503 Service Unavailable"),
        (0, False, b"503 Service Unavailable"),
    ],
)
async def test_answer_is_kube_proxys_byte_for_byte(
    node: Node, local_endpoints: int, healthy: bool, status: bytes
) -> None:
    node.healthy = healthy
    port = free_port()
    async with serving(node) as servers:
        servers.wish(LB, ipv4(port, local_endpoints))
        reply = await answer(port)
    head, _, body = reply.partition(b"\r\n\r\n")
    assert body == (BODY % (local_endpoints, "true" if healthy else "false")).encode()
    status_line, *headers = head.split(b"\r\n")
    assert status_line == b"HTTP/1.1 " + status
    assert [header for header in headers if not header.startswith(b"Date: ")] == [
        b"Content-Type: application/json",
        b"X-Content-Type-Options: nosniff",
        f"X-Load-Balancing-Endpoint-Weight: {local_endpoints}".encode(),
        f"Content-Length: {len(body)}".encode(),
        b"Connection: close",
    ]


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET / HTTP/1.1",
        b"GET /healthz?x=1 HTTP/1.1",
        b"GET /%0a/..//%ff HTTP/1.1",
        b"GET http://elsewhere/path HTTP/1.1",
        b"GET / HTTP/1.0",
        b"HEAD / HTTP/1.1",
        b"POST /x HTTP/1.1\r\nContent-Length: 0",
        b"PUT /x HTTP/1.1\r\nContent-Length: 00",
        b"DELETE / HTTP/1.1",
        b"PATCH / HTTP/1.1",
        b"OPTIONS / HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"TRACE / HTTP/1.1",
        b"PROPFIND / HTTP/1.1",
        b"PURGE / HTTP/1.1",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue",
        b"GET / HTTP/1.1\r\nUpgrade: websocket",
    ],
)
async def test_any_path_and_any_method_gets_the_same_answer(node: Node, request_line: bytes) -> None:
    port = free_port()
    async with serving(node) as servers:
        servers.wish(LB, ipv4(port, 7))
        await answer(port)
        reply = await ask(port, request_line + b"\r\nHost: x\r\n")
    reply = reply.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0][len("HTTP/1.x ") :] == b"200 OK"
    assert weight(head + b"\r\n") == 7
    assert body == (b"" if request_line.startswith(b"HEAD") else (BODY % (7, "true")).encode())


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\r\n", b"\r\n" * 10, b"x" * 100_000])
async def test_garbage_gets_no_answer_of_ours_and_no_log(
    node: Node, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    async with serving(node) as servers:
        servers.wish(LB, ipv4(port))
        await answer(port)
        with suppress(ConnectionError):  # closed before all of it was read
            assert weight(await ask(port, garbage)) is None
        assert weight(await answer(port)) == 1
    assert caplog.records == []


async def test_new_count_and_health_change_the_answer_only(node: Node) -> None:
    port = free_port()
    async with serving(node) as servers:
        servers.wish(LB, ipv4(port, 1))
        await answer(port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for local_endpoints, healthy in ((2, True), (0, True), (5, False), (5, True)):
            servers.wish(LB, ipv4(port, local_endpoints))
            node.healthy = healthy
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")  # on the same connection: it was not closed
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
            assert await reader.readexactly(length) == (BODY % (local_endpoints, str(healthy).lower())).encode()
        writer.close()


async def test_each_family_has_its_own_socket_and_count(node: Node) -> None:
    port = free_port()
    async with serving(node) as servers:
        servers.wish(LB, {Family.IPV4: HealthCheck(port, 4), Family.IPV6: HealthCheck(port, 6)})
        assert weight(await answer(port)) == 4
        assert weight(await answer(port, "::1")) == 6
        assert node.refused == []
        servers.wish(LB, {Family.IPV6: HealthCheck(port, 6)})
        await silent(port)  # the IPv6 socket does not take IPv4 connections
        assert weight(await ask(port, address="::1")) == 6


async def test_changed_port_closes_the_old_and_opens_the_new(node: Node) -> None:
    old, new = free_port(), free_port()
    async with serving(node) as servers:
        servers.wish(LB, ipv4(old))
        await answer(old)
        servers.wish(LB, ipv4(new, 2))
        assert weight(await answer(new)) == 2
        await silent(old)


async def test_closed_listener_answers_nothing_also_not_on_open_connections(node: Node) -> None:
    port = free_port()
    async with serving(node) as servers:
        servers.wish(LB, ipv4(port))
        await answer(port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n")
        servers.wish(LB, {})
        await silent(port)
        writer.write(b"Host: x\r\n\r\n")
        with suppress(ConnectionError):  # closed before the rest of the request was read
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_port_that_is_taken_is_told_once_and_served_when_it_is_free(node: Node) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with serving(node) as servers:
            servers.wish(LB, ipv4(port))
            await until(lambda: bool(node.refused))
            attempts = 0
            bind = service_health.socket.create_server

            def count(*arguments: object, **keywords: object) -> socket.socket:
                nonlocal attempts
                attempts += 1
                return bind(*arguments, **keywords)  # type: ignore[arg-type]

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(service_health.socket, "create_server", count)
                await until(lambda: attempts >= 3)
            assert node.refused == [(LB, port, 98)]
            taken.close()
            assert weight(await answer(port)) == 1
            assert node.refused == [(LB, port, 98)]


async def test_second_row_of_failures_is_told_again(node: Node) -> None:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ports = [taken.getsockname()[1] for taken in (first, second)]
        async with serving(node) as servers:
            for count, port in enumerate((*ports, ports[0]), start=1):
                servers.wish(LB, ipv4(port))
                await until(lambda count=count: len(node.refused) == count)
    assert [port for _, port, _ in node.refused] == [*ports, ports[0]]


async def test_refused_service_that_goes_is_not_tried_again(node: Node) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with serving(node) as servers:
            servers.wish(LB, ipv4(port))
            await until(lambda: bool(node.refused))
            servers.wish(LB, {})
            await until(lambda: not servers._failing)
            taken.close()
            servers.wish(OTHER, ipv4(other := free_port()))
            await answer(other)
            with pytest.raises(ConnectionError):
                await ask(port)


async def test_two_services_with_one_port_are_served_one_after_the_other(node: Node) -> None:
    port = free_port()
    async with serving(node) as servers:
        servers.wish(LB, ipv4(port, 1))
        await answer(port)
        servers.wish(OTHER, ipv4(port, 2))
        await until(lambda: bool(node.refused))
        assert node.refused == [(OTHER, port, 98)]
        assert weight(await ask(port)) == 1
        servers.wish(LB, {})
        await weight_becomes(port, 2)


async def test_port_goes_from_one_service_to_another_in_one_change(node: Node) -> None:
    port = free_port()
    async with serving(node) as servers:
        servers.wish(LB, ipv4(port, 1))
        await answer(port)
        servers.wish(ServiceName("a", "a"), ipv4(port, 2))  # sorts before the one that leaves
        servers.wish(LB, {})
        await weight_becomes(port, 2)
    assert node.refused == []


async def test_restricted_addresses_have_a_socket_each(node: Node) -> None:
    node.addresses[Family.IPV4] = ["127.0.0.2", "127.0.0.3"]
    port = free_port()
    async with serving(node) as servers:
        servers.wish(LB, ipv4(port))
        assert weight(await answer(port, "127.0.0.2")) == 1
        assert weight(await answer(port, "127.0.0.3")) == 1
        with pytest.raises(ConnectionError):
            await ask(port, address="127.0.0.1")
        reader, writer = await asyncio.open_connection("127.0.0.3", port)
        node.addresses[Family.IPV4] = ["127.0.0.3", "127.0.0.4"]
        servers.readdress()
        assert weight(await answer(port, "127.0.0.4")) == 1
        await silent(port, "127.0.0.2")
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")  # what stays is not disturbed
        assert (await asyncio.wait_for(reader.readline(), 5)) == b"HTTP/1.1 200 OK\r\n"
        writer.close()


async def test_no_address_is_no_socket_and_no_complaint(node: Node) -> None:
    node.addresses[Family.IPV4] = []
    port, other = free_port(), free_port()
    async with serving(node) as servers:
        servers.wish(LB, {Family.IPV4: HealthCheck(port, 1), Family.IPV6: HealthCheck(other, 1)})
        await answer(other, "::1")
        with pytest.raises(ConnectionError):
            await ask(port)
        node.addresses[Family.IPV4] = None
        servers.readdress()
        assert weight(await answer(port)) == 1
    assert node.refused == []


async def test_one_address_that_is_refused_closes_the_others(node: Node) -> None:
    with socket.create_server(("127.0.0.3", 0)) as taken:
        port = taken.getsockname()[1]
        node.addresses[Family.IPV4] = ["127.0.0.2", "127.0.0.3"]
        async with serving(node) as servers:
            servers.wish(LB, ipv4(port))
            await until(lambda: bool(node.refused))
            await silent(port, "127.0.0.2")
            taken.close()
            assert weight(await answer(port, "127.0.0.3")) == 1
            assert weight(await answer(port, "127.0.0.2")) == 1


async def test_slow_clients_are_closed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_health, "CONNECTION_AGE", 0.1)
    port = free_port()
    beginnings = {
        "says nothing": b"",
        "half a request": b"GET / HTTP/1.1\r\nHost",
        "a body that never ends": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1",
        "does not read": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 20_000,
    }
    async with serving(node) as servers:
        servers.wish(LB, ipv4(port))
        await answer(port)
        clients = {}
        for name, beginning in beginnings.items():
            client = socket.create_connection(("127.0.0.1", port))
            client.setblocking(False)
            if beginning:
                client.send(beginning)
            clients[name] = client
        (listener,) = next(iter(servers._open.values())).values()
        await until(lambda: len(listener.connections) >= len(clients))
        await until(lambda: not listener.connections)
        for client in clients.values():
            client.close()


async def test_idle_clients_keep_no_probe_out(node: Node) -> None:
    port = free_port()
    async with serving(node) as servers:
        servers.wish(LB, ipv4(port))
        await answer(port)
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2 * service_health.CONNECTIONS)]
        for _ in range(70):
            assert weight(await ask(port)) == 1
        (listener,) = next(iter(servers._open.values())).values()
        assert len(listener) <= service_health.CONNECTIONS
        assert await asyncio.wait_for(held[0][0].read(), 5) == b""
        for _, writer in held:
            writer.close()


async def test_fault_of_the_caller_does_not_end_the_loop(node: Node) -> None:
    port, other = free_port(), free_port()
    del node.addresses[Family.IPV6]  # asking for them raises a KeyError
    async with serving(node) as servers:
        with structlog.testing.capture_logs() as logs:
            servers.wish(LB, {Family.IPV6: HealthCheck(port, 1)})
            servers.wish(OTHER, ipv4(other))
            assert weight(await answer(other)) == 1
        assert logs[0]["event"] == "service_health_not_served"
        assert (logs[0]["service"], logs[0]["family"]) == ("ns/lb", "IPv6")
        node.addresses[Family.IPV6] = None
        assert weight(await answer(port, "::1")) == 1
        await until(lambda: not servers._failing)


async def test_end_closes_all_sockets(node: Node) -> None:
    port = free_port()
    async with serving(node) as servers:
        servers.wish(LB, {family: HealthCheck(port, 1) for family in Family})
        for address in LOOPBACK.values():
            await answer(port, address)
    for address in LOOPBACK.values():
        with pytest.raises(ConnectionError):
            await ask(port, address=address)


async def test_wish_that_changes_nothing_wakes_nobody() -> None:
    servers = ServiceHealth(healthy=lambda: True, addresses=lambda _: None, refused=lambda *_: None)
    servers.wish(LB, {})
    assert not servers._wake.is_set()
    servers.wish(LB, ipv4(1, 1))
    assert servers._wake.is_set()
    servers._wake.clear()
    servers.wish(LB, ipv4(1, 1))
    servers.wish(LB, ipv4(1, 2))
    assert not servers._wake.is_set()
