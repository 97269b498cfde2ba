"""Which settings a plan is made with, and that it says so."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from ipvs_proxy.commands.plan import assume
from ipvs_proxy.settings.document import configz
from ipvs_proxy.settings.merge import effective
from ipvs_proxy.settings.model import SettingsError

RUNNING = effective(
    {"hostname_override": "node-7", "cluster_cidr": "10.99.0.0/16", "scheduler": "lc", "drain_timeout": "5m"}
)


@contextmanager
def answering(body: bytes) -> Iterator[str]:
    """Serve what an agent answers at /configz; return the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/configz" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_configuration_is_that_of_the_agent_that_runs_here() -> None:
    with answering(json.dumps(configz(RUNNING)).encode()) as agent:
        settings, source = assume({}, None, agent)
        moved, _ = assume({"manifests": "/objects", "hostname_override": "node-8"}, None, agent)
    assert configz(settings) == configz(RUNNING)
    assert source == f"the configuration of the agent at {agent}"
    assert (moved.node_name, moved.scheduler, str(moved.manifests)) == ("node-8", "lc", "/objects")


def test_flags_and_files_that_are_given_count_and_are_named(tmp_path: Path) -> None:
    file = tmp_path / "config.conf"
    file.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nipvs: {scheduler: sh}\n"
    )
    with answering(json.dumps(configz(RUNNING)).encode()) as agent:
        settings, source = assume({"scheduler": "wrr"}, None, agent)
        assert (settings.scheduler, source) == ("wrr", "the flags given, and defaults for all others")
        settings, source = assume({}, file, agent)
        assert (settings.scheduler, source) == ("sh", f"--config {file}")


def test_without_an_agent_the_defaults_are_assumed_and_it_is_said() -> None:
    settings, source = assume({"hostname_override": "node"}, None, "127.0.0.1:1")
    assert settings.scheduler == "rr"
    assert source.startswith("defaults, as no agent answers at 127.0.0.1:1 ")


@pytest.mark.parametrize("body", [b"[]", b"<html>", b"{}", b'{"a": {"kind": "Status"}}', b'{"a": 1}'])
def test_answer_of_something_else_is_no_configuration(body: bytes) -> None:
    with answering(body) as agent, pytest.raises(SettingsError, match="the configuration of the agent at"):
        assume({}, None, agent)
