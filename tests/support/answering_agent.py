"""An HTTP server that answers as the agent does, with documents of the test's choice; and the program to ask it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
from click.testing import CliRunner, Result

from ipvs_proxy.cli import main
from ipvs_proxy.state.documents import (
    Document,
    Happening,
    NodeState,
    OmissionState,
    RouteState,
    ServiceState,
    ServiceSummary,
    Traffic,
)

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
WEB = ServiceSummary(
    namespace="shop",
    name="web",
    type="ClusterIP",
    addresses=["10.96.0.10", "fd00::10"],
    ports=["80/TCP", "443/TCP"],
    virtual_servers=4,
    schedulers=["wrr"],
    endpoints=3,
    draining=1,
    per_second=Traffic(12, 0, 0, 1_500_000, 2_000),
)
BROKEN = ServiceSummary(
    namespace="shop",
    name="broken",
    type="ClusterIP",
    addresses=["10.96.0.11"],
    ports=["80/TCP"],
    omissions=[OmissionState("service shop/broken", "invalid-cluster-ip")],
)
NODE = NodeState(
    version="0.1.0",
    node="node-a",
    scheduler="rr",
    families=["IPv4", "IPv6"],
    started=NOW - timedelta(hours=5),
    now=NOW,
    programmed=True,
    healthy=True,
    virtual_servers=4,
    real_servers=12,
    draining=1,
    addresses=2,
    conflicts=0,
    waiting=0,
    foreign_virtual_servers=["192.0.2.9:80/TCP"],
    service_count=2,
    matching=2,
    offset=0,
    services=[WEB, BROKEN],
    changes=[Happening(NOW - timedelta(seconds=30), "programmed", 2, ["shop/web", "shop/api"], 1.25, total=2)],
    repairs=[Happening(NOW - timedelta(minutes=7), "ipvs", 1, ["10.96.0.10:80/TCP"], total=1)],
)
SERVICE = ServiceState(namespace="shop", name="web", type="ClusterIP", in_sync=True)
ROUTE = RouteState(
    client="10.244.0.1",
    target="10.96.0.10:80/TCP",
    service="shop/web",
    origin="in the cluster",
    verdict="balanced",
    steps=["a step"],
    virtual_server="10.96.0.10:80/TCP",
    real_servers=[],
    masqueraded=False,
)


@contextmanager
def agent(**pages: Document | bytes) -> Iterator[tuple[str, list[str]]]:
    """Answer at ``/state``, ``/state/route`` and so on; yield the address, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            path = self.path.partition("?")[0].strip("/").replace("/", "_")
            page = pages.get(path)
            body = page if isinstance(page, bytes) else msgspec.json.encode(page or {"error": "there is no such thing"})
            self.send_response(200 if page is not None else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)
