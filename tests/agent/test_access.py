"""Who may read what of the metrics server: by the connection's own addresses, and by the name it is asked by."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ipvs_proxy.agent.observe.metrics import Metrics
from ipvs_proxy.agent.web.access import is_local, is_own
from ipvs_proxy.agent.web.server import metrics_application
from ipvs_proxy.plan.tables import Family
from ipvs_proxy.settings.merge import effective
from ipvs_proxy.settings.model import Settings
from tests.support.loopback import serving

OPEN = ["/metrics", "/healthz", "/healthz/ping", "/proxyMode"]
PROTECTED = ["/configz", "/state", "/", "/flagz", "/../configz", "/%63onfigz", "/metrics/", "/nothing"]


class Between(asyncio.BaseTransport):
    """A connection with these addresses at its ends."""

    def __init__(self, own: str, peer: str) -> None:
        super().__init__({"sockname": (own, 10249), "peername": (peer, 40000)})


@pytest.mark.parametrize(
    ("own", "peer", "local"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.9.9.9", True),
        ("::1", "::1", True),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1", True),
        ("10.0.0.7", "10.0.0.9", False),
        ("10.0.0.7", "10.0.0.7", False),
        ("127.0.0.1", "10.0.0.9", False),  # a rule of the node leads others to its loopback
        ("10.0.0.7", "127.0.0.1", False),
        ("fe80::1%eth0", "fe80::2%eth0", False),
        ("::ffff:10.0.0.7", "::ffff:10.0.0.9", False),
    ],
)
def test_connection_is_local_if_both_of_its_ends_are_on_the_loopback(own: str, peer: str, local: bool) -> None:
    assert is_local(Between(own, peer)) is local


def test_connection_that_is_gone_is_not_local() -> None:
    assert not is_local(None)


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1:10249", True),
        ("127.0.0.1", True),
        ("[::1]:10249", True),
        ("10.0.0.7:10249", True),
        ("[fd00::7]", True),
        ("localhost:8080", True),
        ("LOCALHOST", True),
        ("localhost.:10249", True),
        ("node-7:10249", True),
        ("Node-7", True),
        ("evil.example", False),
        ("evil.example:10249", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("node-7.evil.example", False),
        ("127.0.0.1:10249:1", False),
        ("127.0.0.1@evil.example", False),
        ("127.1", False),  # what a resolver may take for an address
        ("2130706433", False),
        ("", False),
        (":10249", False),
        ("[::1", False),
        ("a" * 100_000, False),
    ],
)
def test_host_is_an_address_localhost_or_the_node(host: str, own: bool) -> None:
    assert is_own(host, {"node-7"}) is own


async def ask(url: str, path: str, host: str | None) -> tuple[int, dict[str, Any]]:
    """Ask with a path as it is and a Host of our choice."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    try:
        name = "" if host is None else f"Host: {host}\r\n"
        writer.write(f"GET {path} HTTP/1.0\r\n{name}\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    is_refusal = body.startswith(b'{"error"')
    return int(head.split()[1]), json.loads(body) if is_refusal else {}


def settings(**changes: Any) -> Settings:
    return effective({"hostname_override": "node-7", **changes})


async def test_web_site_that_leads_its_name_here_reads_nothing() -> None:
    async with serving(metrics_application(Metrics(tuple(Family)), settings=settings)) as url, asyncio.timeout(10):
        for path in PROTECTED:
            status, said = await ask(url, path, "evil.example:10249")
            assert status == 421, path
            assert "evil.example" in said["error"]
        for path in OPEN:
            assert (await ask(url, path, "ipvs-proxy.monitoring.svc:10249"))[0] == 200, path
        for host in ("localhost:10249", "node-7", "127.0.0.1", None):
            assert (await ask(url, "/configz", host))[0] == 200, host


@pytest.mark.parametrize("exposed", [False, True])
async def test_only_what_kube_proxys_users_scrape_is_answered_beyond_the_loopback(
    exposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipvs_proxy.agent.web.access.is_local", lambda _: False)
    application = metrics_application(Metrics(tuple(Family)), settings=lambda: settings(expose_state=str(exposed)))
    async with serving(application) as url, asyncio.timeout(10):
        for path in OPEN:
            assert (await ask(url, path, "10.0.0.7:10249"))[0] == 200, path
        status, said = await ask(url, "/configz", "10.0.0.7:10249")
        assert status == (200 if exposed else 403)
        assert exposed or "exposeState" in said["error"]
        assert (await ask(url, "/state", "10.0.0.7:10249"))[0] == (404 if exposed else 403)  # added by the state server
