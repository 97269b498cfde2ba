"""What others on the node and beyond can do to a running agent through its servers, its log and its name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lab import manifests
from lab.agent import PATIENCE, PROGRAM, command, eventually, running_agent
from lab.topology import ADDRESSES, CLUSTER_CIDR, Topology, topology

NODE = ADDRESSES["node"]["IPv4"]
EVERYWHERE = ("--metrics-bind-address", "0.0.0.0:10249")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    manifests.write(tmp_path, "node", manifests.node())
    manifests.write(tmp_path, "service", manifests.service("web", "10.96.0.95"))
    return tmp_path


def get(net: Topology, place: str, address: str, path: str, port: int = 10249, host: str = "") -> tuple[int, bytes]:
    """Ask a server of the agent; return the status and all that came."""
    # What takes how long is compared where it matters: an emulated machine may need half a minute for an answer.
    with net.connect(place, address, port, timeout=60) as client:
        client.sendall(f"GET {path} HTTP/1.0\r\nHost: {host or address}\r\n\r\n".encode())
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    return int(answer.split()[1]), answer


def test_beyond_the_loopback_there_is_what_is_scraped(directory: Path) -> None:
    paths = {"/metrics": 200, "/healthz": 200, "/proxyMode": 200, "/state": 403, "/configz": 403, "/": 403}
    with topology() as net, running_agent(net, directory, *EVERYWHERE):
        for place in ("client", "pod1", "node"):
            assert {path: get(net, place, NODE, path)[0] for path in paths} == paths, place
        assert {path: get(net, "node", "127.0.0.1", path)[0] for path in paths} == dict.fromkeys(paths, 200)
        assert get(net, "node", "127.0.0.1", "/state", host="evil.example")[0] == 421
        # A rule of the node that leads others to its loopback opens nothing.
        net.run("node", "sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
        rule = ("-d", NODE, "-p", "tcp", "--dport", "1", "-j", "DNAT", "--to-destination", "127.0.0.1:10249")
        net.run("node", "iptables", "-t", "nat", "-I", "PREROUTING", *rule)
        assert get(net, "client", NODE, "/metrics", port=1)[0] == 200
        assert get(net, "client", NODE, "/state", port=1)[0] == 403


def test_everything_is_there_for_everybody_where_that_is_asked_for(directory: Path) -> None:
    with topology() as net, running_agent(net, directory, *EVERYWHERE, "--expose-state"):
        for path in ("/state", "/configz", "/"):
            assert get(net, "client", NODE, path)[0] == 200


def test_no_port_names_the_software_and_garbage_leaves_no_line(directory: Path) -> None:
    with topology() as net, running_agent(net, directory, *EVERYWHERE) as agent:
        lines = len(agent.printed)
        for port in (10249, 10256):
            for request in (b"\0garbage\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n"):
                with net.connect("client", NODE, port) as client:
                    client.sendall(request)
                    answer = client.recv(65536)
                assert answer.split()[1] == b"400"
                assert b"Server:" not in answer
            assert b"Server:" not in get(net, "client", NODE, "/healthz", port)[1]
        scraped = get(net, "client", NODE, "/metrics")[1].decode()
        for server in ("healthz", "metrics"):
            assert f'ipvs_proxy_malformed_requests_total{{server="{server}"}} 2.0\n' in scraped
        assert agent.printed[lines:] == []


@contextmanager
def stuck_agent(net: Topology, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start an agent with few descriptors, whose log is read until it has started, and then no more: the pipe is full."""
    reader, writer = os.pipe()
    arguments = ("--manifests", str(directory), "--hostname-override", "node", "--cluster-cidr", CLUSTER_CIDR)
    with net.inside("node"):
        process = subprocess.Popen(
            ["prlimit", "--nofile=256:4096", *PROGRAM, *arguments, "--logging-format", "json", "--v", "4"],
            stderr=writer,
        )
    try:
        seen = b""
        while b'"started"' not in seen:
            piece = os.read(reader, 65536)
            assert piece
            seen += piece
        # Another description of the same pipe: what is set on it does not hold for the agent's.
        full = os.open(f"/proc/self/fd/{writer}", os.O_WRONLY | os.O_NONBLOCK)
        for size in (65536, 1):
            try:
                while True:
                    os.write(full, b"x" * size)
            except BlockingIOError:
                continue
        os.close(full)
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE)
        os.close(reader)
        os.close(writer)


def test_log_that_nobody_reads_holds_up_neither_a_change_nor_a_probe_nor_the_end(directory: Path) -> None:
    with topology() as net, stuck_agent(net, directory) as process:
        # It has raised its limit of descriptors as well.
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
        assert line.split()[3:5] == ["4096", "4096"]
        for number in range(96, 100):
            manifests.write(directory, "service", manifests.service("web", f"10.96.0.{number}"))
            eventually(lambda number=number: f"10.96.0.{number}:80" in net.run("node", "ipvsadm", "-Ln"))
            assert get(net, "node", NODE, "/livez", port=10256)[0] == 200
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert time.monotonic() - begun < 2.0


#: An ordinary user of the node who does what an agent once did to be known.
PRETENDER = """
import os, socket, time
os.setgid(65534); os.setuid(65534)
held = []
for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
    held.append(socket.socket(socket.AF_UNIX, kind))
    held[-1].bind("\\0ipvs-proxy/agent")
print(flush=True)
time.sleep(600)
"""


def test_other_user_of_the_node_is_taken_for_no_agent_and_hides_none(directory: Path) -> None:
    with topology() as net:
        with net.inside("node"):
            pretender = subprocess.Popen([sys.executable, "-c", PRETENDER], stdout=subprocess.PIPE)
        with pretender:
            try:
                assert pretender.stdout is not None
                assert pretender.stdout.readline() == b"\n"
                with running_agent(net, directory) as agent:
                    assert agent.named("another_agent_is_running") == []
                    assert "an agent is running on this node" in command(net, "cleanup", status=1)
                    with running_agent(net, directory, "--healthz-port", "0", "--metrics-port", "20249") as second:
                        assert len(second.named("another_agent_is_running")) == 1
                    agent.stop()
                assert "removed" in command(net, "cleanup")
            finally:
                pretender.kill()


def test_scrape_does_not_stand_behind_those_who_read_pages(directory: Path) -> None:
    services = [
        manifests.service(f"web-{number}", f"10.96.{1 + number // 250}.{number % 250}") for number in range(1_500)
    ]
    manifests.write(directory, "many", *services)
    with topology() as net, running_agent(net, directory):
        readers = [net.connect("node", "127.0.0.1", 10249, timeout=300) for _ in range(120)]
        for reader in readers:
            reader.sendall(b"GET /state?limit=999999999 HTTP/1.0\r\nHost: localhost\r\n\r\n")
        begun = time.monotonic()
        assert get(net, "node", "127.0.0.1", "/metrics")[0] == 200
        scraped = time.monotonic() - begun
        answer = b""
        while piece := readers[-1].recv(65536):
            answer += piece
        waited = time.monotonic() - begun
        assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["services"]) == 1_000
        assert scraped < waited / 3, f"the scrape took {scraped:.2f} s, the last of the readers {waited:.2f} s"
        for reader in readers:
            reader.close()


FLOODED = (31001, 31002, 31003)


def test_flood_of_health_checks_takes_neither_probes_nor_scrapes_nor_repairs(directory: Path) -> None:
    for number, port in enumerate(FLOODED):
        service = manifests.service(
            f"lb-{number}",
            f"10.96.0.{110 + number}",
            type="LoadBalancer",
            externalTrafficPolicy="Local",
            healthCheckNodePort=port,
        )
        manifests.write(directory, f"lb-{number}", service)
    few = ("prlimit", "--nofile=256:256")
    with (
        topology() as net,
        running_agent(net, directory, *EVERYWHERE, "--ipvs-sync-period", "3s", prefix=few) as agent,
        ExitStack() as idle,
    ):
        eventually(lambda: [get(net, "client", NODE, "/", port)[0] for port in FLOODED] == [503] * len(FLOODED))
        for _ in range(130):
            for port in FLOODED:
                idle.enter_context(net.connect("client", NODE, port))
        for port in FLOODED:
            assert get(net, "client", NODE, "/", port)[0] == 503  # no endpoint here, says the agent
        assert get(net, "client", NODE, "/livez", 10256)[0] == 200
        scraped = get(net, "client", NODE, "/metrics")[1].decode()
        assert 'ipvs_proxy_connections_displaced_total{reason="descriptors",server="service_health"}' in scraped
        for command_line in ("ipvsadm -D -t 10.96.0.95:80", "iptables -t nat -F KUBE-SERVICES"):
            repairs = len(agent.named("drift_repaired"))
            net.run("node", *command_line.split())
            agent.wait_for("drift_repaired", repairs + 1)
        assert "10.96.0.95:80" in net.run("node", "ipvsadm", "-Ln")
        events = {event["event"] for event in agent.events if event["level"] != "info"}
        assert events <= {"drift_repaired"}
