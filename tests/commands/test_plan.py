"""Which settings and which kernel a plan is made with, and that it says so."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from ipvs_proxy.commands.plan import assume
from ipvs_proxy.node.cleanup import IPVS_LOADED
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


SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {type: NodePort, clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ports: [{port: 80, nodePort: 30080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.1], conditions: {ready: true}}]
"""
ROOT = Path(__file__).parents[2]
#: Takes all capabilities away, as an ordinary user has none.
WITHOUT_RIGHTS = [shutil.which("setpriv") or "", "--bounding-set=-all", "--inh-caps=-all"] if not os.geteuid() else []


def planned(directory: Path, *flags: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """Run ``plan`` as a user without rights and without iptables, ``code`` before anything is imported."""
    (directory / "web.yaml").write_text(SERVICE)
    program = f"{code}\nfrom ipvs_proxy.cli import main\nmain()"
    command = [*WITHOUT_RIGHTS, sys.executable, "-c", program, "plan", "--manifests", str(directory), "-o", "json"]
    environment = {"PATH": "/nowhere", "HOME": str(directory)}
    return subprocess.run(
        [*command, *flags], capture_output=True, text=True, check=False, timeout=60, env=environment, cwd=ROOT
    )


def objects(done: subprocess.CompletedProcess[str]) -> set[str]:
    assert done.returncode == 2, done.stderr
    found = json.loads(done.stdout)
    assert found["services"] == 1
    assert not any(change["verb"] == "delete" for change in found["changes"])
    return {change["object"] for change in found["changes"]}


ASKED_FOR = {
    "link kube-ipvs0",
    "KUBE-CLUSTER-IP",
    "IPv4 nat: chain KUBE-SERVICES is missing",
    "IPv6 nat: chain KUBE-SERVICES is missing",
    "10.96.0.10:80/TCP rr",
    "10.96.0.10:80/TCP -> 10.244.1.1:8080 weight 1",
    "10.96.0.10 on kube-ipvs0",
    "KUBE-NODE-PORT-TCP 30080",
}


def test_offline_everything_is_to_be_added_wherever_it_runs(tmp_path: Path) -> None:
    done = planned(tmp_path, "--offline")
    assert objects(done) >= ASKED_FOR
    settings, kernel, *_ = done.stderr.splitlines()
    assert settings == "ipvs-proxy: settings: defaults"
    assert kernel.startswith("ipvs-proxy: kernel: assumed to be empty, as --offline says; the node to have IPv4, IPv6 ")
    assert " addresses of this host; sysctls are left out" in kernel


def test_offline_the_sets_and_rules_are_those_of_the_packet_filter_that_is_asked_for(tmp_path: Path) -> None:
    found = objects(planned(tmp_path, "--offline", "--packet-filter", "nftables"))
    assert found >= {"cluster-ip", "node-port-tcp 30080", "the table inet ipvs-proxy is missing"}
    assert not [name for name in found if "KUBE-" in name or "IPVS-PROXY-" in name]


@pytest.mark.skipif(IPVS_LOADED.exists(), reason="this kernel has IPVS")
def test_manifests_are_planned_against_an_empty_kernel_where_there_is_no_ipvs(tmp_path: Path) -> None:
    done = planned(tmp_path)
    assert objects(done) >= ASKED_FOR
    (kernel,) = (line for line in done.stderr.splitlines() if line.startswith("ipvs-proxy: kernel: "))
    assert kernel.startswith("ipvs-proxy: kernel: assumed to be empty, as IPVS is not in use here (the capabilities ")
    assert objects(planned(tmp_path, "--offline")) == objects(done)


def test_host_whose_addresses_cannot_be_read_has_none(tmp_path: Path) -> None:
    done = planned(tmp_path, "--offline", code="import socket; del socket.AF_NETLINK")
    found = objects(done)
    assert ASKED_FOR - found == {"KUBE-NODE-PORT-TCP 30080"}
    assert not any("30080" in name for name in found)
    assert "no address, as those of this host cannot be read" in done.stderr


def test_objects_of_an_api_server_are_not_planned_against_an_empty_kernel_unless_asked_to() -> None:
    command = [*WITHOUT_RIGHTS, sys.executable, "-m", "ipvs_proxy", "plan", "--master", "http://127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("ipvs-proxy: error: the capabilities CAP_NET_ADMIN and CAP_NET_RAW")
    assert done.stderr.endswith("; or use --offline to plan against an empty kernel\n")
