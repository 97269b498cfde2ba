"""The HTTP servers over the loopback."""

from __future__ import annotations

import asyncio
import json
import socket

import aiohttp
import pytest

from ipvs_proxy.agent.observe.health import HealthTracker
from ipvs_proxy.agent.observe.metrics import Metrics
from ipvs_proxy.agent.web import server
from ipvs_proxy.agent.web.server import health_application, metrics_application, serve_for_ever
from ipvs_proxy.kube.objects import Node, ObjectMeta
from ipvs_proxy.netlink.errors import Unusable
from ipvs_proxy.plan.tables import Family
from ipvs_proxy.settings.merge import effective
from ipvs_proxy.settings.model import Settings
from tests.support.loopback import get, serving


def effective_defaults() -> Settings:
    return effective({})


async def test_health_server_answers_its_two_paths_and_counts_them() -> None:
    metrics, tracker = Metrics(tuple(Family)), HealthTracker(tuple(Family), sync_period=30.0)
    async with serving(health_application(tracker, metrics)) as url:
        assert (await get(f"{url}/healthz"))[0] == 503  # the Node was never seen
        tracker.node_changed(Node(ObjectMeta("node")))
        assert (await get(f"{url}/healthz"))[0] == 200
        assert (await get(f"{url}/livez"))[:2] == (200, "application/json")
        assert await get(f"{url}/other") == (404, "text/plain; charset=utf-8", "404 page not found\n")
    text = metrics.render("")[0].decode()
    assert 'kubeproxy_proxy_healthz_total{code="503"} 1.0' in text
    assert 'kubeproxy_proxy_healthz_total{code="200"} 1.0' in text


async def test_metrics_server_answers_as_kube_proxy_does() -> None:
    metrics = Metrics(tuple(Family))
    async with serving(metrics_application(metrics, settings=effective_defaults)) as url:
        assert (await get(f"{url}/proxyMode"))[2] == "ipvs"
        assert (await get(f"{url}/healthz"))[2] == "ok"
        assert (await get(f"{url}/healthz?verbose"))[2] == "[+]ping ok\nhealthz check passed\n"
        assert (await get(f"{url}/healthz/ping"))[2] == "ok"
        metrics.synced(seconds=0.003, complete=True)
        status, content_type, text = await get(f"{url}/metrics")
        assert (status, content_type.split(";")[0]) == (200, "text/plain")
        assert 'kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1.0' in text
        assert (await get(f"{url}/"))[0] == 404


async def test_client_that_hangs_does_not_hold_up_the_end() -> None:
    async with serving(metrics_application(Metrics(tuple(Family)), settings=effective_defaults)) as url:
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
        await writer.drain()
    writer.close()


async def test_flood_of_silent_clients_keeps_no_probe_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 20)
    async with (
        serving(health_application(HealthTracker(tuple(Family), sync_period=30.0), Metrics(tuple(Family)))) as url,
        asyncio.timeout(10),
    ):
        clients = []
        for number in range(150):
            clients.append(await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2])))
            clients[-1][1].write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
            if number % 50 == 0:
                assert (await get(f"{url}/livez"))[0] == 200
        ended = [asyncio.create_task(reader.read()) for reader, _ in clients]
        assert (await get(f"{url}/livez"))[0] == 200
        done, _ = await asyncio.wait(ended, timeout=0.5)
        assert 130 <= len(done) < 150
        for _, writer in clients:
            writer.close()
        await asyncio.gather(*ended)


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"\0\xff garbage\r\n\r\n",
    ],
    ids=["path", "header", "garbage"],
)
async def test_huge_and_broken_requests_are_refused(request_head: bytes) -> None:
    async with (
        serving(metrics_application(Metrics(tuple(Family)), settings=effective_defaults)) as url,
        asyncio.timeout(10),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(request_head)
        assert (await reader.readline()).split()[1] == b"400"
        writer.close()
        assert (await get(f"{url}/proxyMode"))[2] == "ipvs"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_metrics_server_takes_nothing_but_reads(method: str) -> None:
    async with (
        serving(metrics_application(Metrics(tuple(Family)), settings=effective_defaults)) as url,
        aiohttp.ClientSession() as session,
    ):
        for path in ("/metrics", "/proxyMode", "/healthz"):
            async with session.request(method, url + path, data=b"x" * 2_000) as response:
                assert response.status == 405


async def test_settings_are_shown_without_secrets() -> None:
    async with serving(metrics_application(Metrics(tuple(Family)), settings=effective_defaults)) as url:
        status, content_type, text = await get(f"{url}/configz")
    assert (status, content_type.split(";")[0]) == (200, "application/json")
    assert json.loads(text)["kubeproxy.config.k8s.io"]["ipvs"]["scheduler"] == "rr"


async def test_address_that_is_taken_ends_the_agent_where_that_is_asked_for() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        application = metrics_application(Metrics(tuple(Family)), settings=effective_defaults)
        with pytest.raises(Unusable, match=rf"the test server cannot listen at {address} \(.*\): choose another"):
            await serve_for_ever(application, address, name="test", hard_fail=True)


async def test_address_that_is_taken_is_served_once_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipvs_proxy.agent.web.server.BIND_RETRY", 0.05)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        application = metrics_application(Metrics(tuple(Family)), settings=effective_defaults)
        task = asyncio.create_task(serve_for_ever(application, f"127.0.0.1:{port}", name="test"))
        await asyncio.sleep(0.1)
        assert not task.done()
    async with asyncio.timeout(5):
        while True:
            try:
                answer = await get(f"http://127.0.0.1:{port}/proxyMode")
                break
            except aiohttp.ClientError:
                await asyncio.sleep(0.02)
    assert answer[2] == "ipvs"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
