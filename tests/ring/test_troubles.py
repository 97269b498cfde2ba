"""The most frequent troubles of IPVS users, each caused for real: the command that finds it prints what
``docs/troubleshooting.md`` shows, and this agent does not have the trouble or repairs it."""

from __future__ import annotations

import errno
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lab import manifests
from lab.agent import PROGRAM, Agent, command, eventually, running_agent
from lab.manifests import endpoint
from lab.topology import ADDRESSES, Topology, exchange, server, servers, topology
from lab.witness import addresses, weights
from tests.ring.documented import all_shown, assert_documented, is_shown
from tests.ring.silence import Request, outcomes, silence, unanswered
from tests.ring.troubles import LEGACY, NETWORKD, announcing, answers_arp, rules, sysctl

WEB, FILES, DNS, SITE, API = "10.96.1.1", "10.96.1.2", "10.96.1.10", "10.96.1.4", "fd00:10:96::1:5"
SITE_OUTSIDE = "203.0.112.3"
CLIENT = ADDRESSES["client"]["IPv4"]
#: An address in the pods' network that nobody has (any more).
DEAD = "10.244.1.77"
#: The addresses of a Service that is gone, and of somebody else's virtual server.
GONE, FOREIGN = "10.96.9.9", "192.0.2.77"
LEAKS = "Virtual servers and addresses that nobody wants, or that are missing"
NEVER = ("--ipvs-sync-period", "600s")
SOON = ("--ipvs-sync-period", "1s")
TOLD: set[tuple[str, str]] = set()


def told(section: str, printed: Mapping[str, str]) -> None:
    """Compare what commands have printed with the document."""
    TOLD.update((section, name) for name in printed)
    assert_documented(section, printed)


def pods(*names: str, **conditions: bool) -> list[dict[str, Any]]:
    return [endpoint(ADDRESSES[name]["IPv4"], "peer" if name == "pod4" else "node", **conditions) for name in names]


def write(directory: Path, name: str, address: str, endpoints: list[dict[str, Any]], **fields: Any) -> None:
    """Write a Service in the namespace shop with its endpoints."""
    protocols = ("UDP",) if address == DNS else ("TCP",)
    items = [
        manifests.service(name, address, protocols=protocols, **fields),
        *manifests.slices(name, endpoints, protocols),
    ]
    for item in items:
        item["metadata"]["namespace"] = "shop"
    manifests.write(directory, name, *items)


def change(agent: Agent, directory: Path, name: str, address: str, endpoints: list[dict[str, Any]]) -> None:
    done = len(agent.named("programmed"))
    write(directory, name, address, endpoints)
    agent.wait_for("programmed", done + 1)


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with topology() as net, servers(net, ("pod1", "pod2", "pod4"), manifests.TARGET_PORTS):
        yield net


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("manifests")
    manifests.write(directory, "node", manifests.node())
    write(directory, "web", WEB, pods("pod1", "pod2"))
    write(directory, "files", FILES, pods("pod1", "pod2"))
    write(directory, "dns", DNS, pods("pod1"))
    write(directory, "api", API, [endpoint(ADDRESSES["pod1"]["IPv6"])])
    local = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ingress": [SITE_OUTSIDE]}
    write(directory, "site", SITE, pods("pod4"), **local)
    return directory


@pytest.fixture(scope="module")
def agent(net: Topology, directory: Path) -> Iterator[Agent]:
    """An agent that looks for drift only when it is told of it."""
    with running_agent(net, directory, *NEVER) as agent:
        yield agent


@pytest.mark.usefixtures("agent")
def test_healthy_node_has_no_finding(net: Topology) -> None:
    status, doctor = command(net, "status"), command(net, "doctor")
    assert {line.split()[0] for line in doctor.splitlines()[:-2] if line[0] != " "} == {"ok"}, doctor
    told("A healthy node", {"status": status, "doctor": doctor})


def is_silent(net: Topology, address: str) -> bool:
    """Return whether a client that asks at an address gets no answer at all."""
    return [*outcomes(net, [Request("client", address, 80)], silence(net)).values()] == ["silent"]


def through_port(net: Topology, port: int, patience: float = 5.0) -> str:
    """Ask the Service web from a fixed port, and reset the connection: the port is free at once. Says who answered."""
    with net.inside("client"):
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.settimeout(patience)
        client.bind(("", port))
        client.connect((WEB, 80))
        return exchange(client)[0]


def test_port_that_is_used_again(net: Topology, agent: Agent, directory: Path) -> None:
    with sysctl(net, ipv4__vs__conn_reuse_mode="0", ipv4__vs__expire_nodest_conn="0"):
        doctor = command(net, "doctor", status=2)
        leaving = through_port(net, 40_001)
        (other,) = {"pod1", "pod2"} - {leaving}
        # The kernel remembers the connection for 10 s, which is more than a change takes.
        change(agent, directory, "web", WEB, pods(other))
        eventually(lambda: weights(net, WEB, 80) == {ADDRESSES[other]["IPv4"]: 1})
        with pytest.raises(TimeoutError):  # the trouble: a new connection is one to an endpoint that has left
            through_port(net, 40_001, silence(net))
    assert through_port(net, 40_001) == other
    change(agent, directory, "web", WEB, pods("pod1", "pod2"))
    told("New connections take a second, or are reset", {"doctor": doctor})


def test_real_servers_that_stay(net: Topology, agent: Agent, directory: Path) -> None:
    with net.connect("client", FILES, 80) as one, net.connect("client", FILES, 80) as two:
        assert {exchange(one)[0], exchange(two)[0]} == {"pod1", "pod2"}
        change(agent, directory, "files", FILES, pods("pod2"))
        explained, status = command(net, "explain", "shop/files"), command(net, "status")
        assert weights(net, FILES, 80) == {ADDRESSES["pod1"]["IPv4"]: 0, ADDRESSES["pod2"]["IPv4"]: 1}
        assert {exchange(one)[0], exchange(two)[0]} == {"pod1", "pod2"}
        assert {net.ask("client", FILES, 80)[0] for _ in range(3)} == {"pod2"}
    change(agent, directory, "files", FILES, pods("pod1", "pod2"))
    told("A pod that is gone still has a real server, at weight 0", {"explain shop/files": explained, "status": status})


def test_changes_that_wait(net: Topology, agent: Agent, directory: Path) -> None:
    with sysctl(net, **{"ipv6__conf__kube-ipvs0__disable_ipv6": "1"}):
        eventually(lambda: API not in addresses(net))
        change(agent, directory, "web", WEB, pods("pod1"))
        status = command(net, "status")
        assert net.ask("client", WEB, 80)[0] == "pod1", "other changes do not wait"
    eventually(lambda: API in addresses(net))
    change(agent, directory, "web", WEB, pods("pod1", "pod2"))
    assert net.ask("client", API, 80)[0] == "pod1"
    told("Changes take long to arrive", {"status": status})


@pytest.mark.usefixtures("agent")
def test_ports_of_the_host(net: Topology) -> None:
    ssh = "INPUT -p tcp -m tcp --dport 22 -j ACCEPT"
    with server(net, "node", "0.0.0.0", 22):
        route = command(net, "explain", "--from", CLIENT, f"{WEB}:22")
        with rules(net, "-P INPUT DROP", f"-A {ssh}"):
            assert net.ask("client", ADDRESSES["node"]["IPv4"], 22)[0] == "node"
            with pytest.raises(ConnectionRefusedError):
                net.ask("client", WEB, 22)
            assert is_silent(net, WEB), "what INPUT drops it drops for Services, too"
            with rules(net, "-A INPUT -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT"):
                assert net.ask("client", WEB, 80)[0] in {"pod1", "pod2"}
        with rules(net, f"-I {ssh}"):
            assert net.ask("client", WEB, 22)[0] == "node", "the trouble: the host's ssh behind a Service's address"
            doctor = command(net, "doctor")
    told(
        "A port of the host is open at a Service's address",
        {f"explain --from {CLIENT} {WEB}:22": route, "doctor": doctor},
    )


@pytest.mark.usefixtures("agent")
def test_local_policy(net: Topology) -> None:
    outside = command(net, "explain", "--from", CLIENT, f"{SITE_OUTSIDE}:80")
    assert is_silent(net, SITE_OUTSIDE)
    pod = ADDRESSES["pod2"]["IPv4"]
    inside = command(net, "explain", "--from", pod, f"{SITE_OUTSIDE}:80")
    assert net.ask("pod2", SITE_OUTSIDE, 80) == ("pod4", pod)
    told(
        "externalTrafficPolicy: Local, and clients time out",
        {f"explain --from {CLIENT} {SITE_OUTSIDE}:80": outside, f"explain --from {pod} {SITE_OUTSIDE}:80": inside},
    )


@pytest.mark.usefixtures("agent")
def test_host_port_of_somebody_else(net: Topology) -> None:
    """As the CNI plugin portmap and Docker write it, in front of the agent's jump."""
    taking = "-m addrtype --dst-type LOCAL -p tcp --dport 80 -j DNAT --to-destination"
    rule = ["PREROUTING", *taking.split(), f"{ADDRESSES['pod4']['IPv4']}:8080"]
    net.run("node", "iptables", "-w", "-t", "nat", "-I", *rule)
    assert net.ask("client", WEB, 80)[0] == "pod4", "the trouble: another pod answers for the Service"
    doctor = command(net, "doctor", status=2)
    route = command(net, "explain", "--from", CLIENT, f"{WEB}:80")
    net.run("node", "iptables", "-w", "-t", "nat", "-D", *rule)
    net.run("node", "iptables", "-w", "-t", "nat", "-A", *rule)
    assert net.ask("client", WEB, 80)[0] in {"pod1", "pod2"}, "appended, it takes nothing"
    net.run("node", "iptables", "-w", "-t", "nat", "-D", *rule)
    told(
        "A Service is answered by somebody else's pod",
        {"doctor": doctor, f"explain --from {CLIENT} {WEB}:80": route},
    )


def stuck(net: Topology) -> socket.socket:
    """Return a UDP socket whose questions go to the dead endpoint of the Service dns."""
    for _ in range(4):
        client = net.connect("client", DNS, 53, "UDP", timeout=silence(net))
        try:
            exchange(client)
        except OSError:
            return client
        client.close()
    raise AssertionError("every question was answered")


def test_udp_to_pods_that_are_gone(net: Topology, agent: Agent, directory: Path) -> None:
    net.run("node", "ipvsadm", "-a", "-u", f"{DNS}:53", "-r", f"{DEAD}:8053", "-m")
    with stuck(net):
        explained = command(net, "explain", "shop/dns")
    net.run("node", "ipvsadm", "-d", "-u", f"{DNS}:53", "-r", f"{DEAD}:8053")
    # Scaled to nothing and back, under one socket that goes on sending.
    with net.connect("client", DNS, 53, "UDP", timeout=1.0) as client:
        assert exchange(client)[0] == "pod1"
        change(agent, directory, "dns", DNS, [])
        with pytest.raises(OSError):
            exchange(client)
        route = command(net, "explain", "--from", CLIENT, f"{DNS}:53/UDP")
        change(agent, directory, "dns", DNS, pods("pod2"))
        eventually(lambda: exchange(client)[0] == "pod2", 10.0)
    change(agent, directory, "dns", DNS, pods("pod1"))
    told(
        "UDP clients talk to a pod that is gone",
        {"explain shop/dns": explained, f"explain --from {CLIENT} {DNS}:53/UDP": route},
    )


@pytest.mark.usefixtures("agent")
def test_somebody_else_opens_the_dns_address(net: Topology) -> None:
    """NodeLocal DNS takes the cluster's DNS address and one of its own, as its manifest has it."""
    own = "169.254.20.10"
    for line in ("link add", "addr add"):
        what = ["nodelocaldns", "type", "dummy"] if line == "link add" else [f"{DNS}/32", "dev", "nodelocaldns"]
        net.run("node", "ip", *line.split(), *what)
    net.run("node", "ip", "addr", "add", f"{own}/32", "dev", "nodelocaldns")
    with ExitStack() as stack:
        for address in (DNS, own):
            stack.enter_context(server(net, "node", address, 53, "UDP"))
        doctor, owner = command(net, "doctor", status=2), command(net, "explain", f"{DNS}:53/UDP")
        asked = {address: net.ask("pod2", address, 53, "UDP")[0] for address in (DNS, own)}
        assert asked == {DNS: "pod1", own: "node"}, "IPVS has the DNS address, whoever listens there"
    net.run("node", "ip", "link", "delete", "nodelocaldns")
    told("NodeLocal DNS gets no question", {"doctor": doctor, f"explain {DNS}:53/UDP": owner})


#: linux/in.h; Python knows them from 3.14 on.
IP_MTU_DISCOVER, IP_PMTUDISC_DONT = 10, 0


def send_large(net: Topology, place: str, *, discovery: int | None = None) -> str:
    """Send two fragments' worth to the Service dns twice; say who answers the second one, or the error's name."""
    with net.connect(place, DNS, 53, "UDP", timeout=2.0) as client:
        if discovery is not None:
            client.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, discovery)
        try:
            for _ in range(2):
                client.send(bytes(3_000))
                answer = client.recv(256)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return answer.decode().split()[0]


@pytest.mark.usefixtures("agent")
def test_large_datagrams_of_the_node(net: Topology) -> None:
    with sysctl(net, ipv4__vs__pmtu_disc="0"):
        assert send_large(net, "node") == "EMSGSIZE", "the trouble, and this setting is only for tunnels"
    assert send_large(net, "pod2") == "pod1", "pods do not have it"
    assert send_large(net, "node", discovery=IP_PMTUDISC_DONT) == "pod1"
    net.run("node", "ip", "route", "flush", "cache")
    with sysctl(net, ipv4__ip_no_pmtu_disc="1"):
        assert send_large(net, "node") == "pod1"
    told("A program of the node cannot send large datagrams to a Service", {"doctor": command(net, "doctor")})


@pytest.mark.usefixtures("agent")
def test_addresses_that_vanish_and_arp(net: Topology, tmp_path: Path) -> None:
    before = addresses(net)
    for damage in ("address flush", "link delete"):
        net.run("node", "ip", *damage.split(), "dev", "kube-ipvs0")
        eventually(lambda: addresses(net) == before)
    assert net.ask("client", WEB, 80)[0] in {"pod1", "pod2"}
    status = command(net, "status")
    assert answers_arp(net, WEB)
    with announcing(net, tmp_path), net.inside("node"):
        watched = ["unshare", "-m", "sh", "-c", NETWORKD, "sh", *PROGRAM, "doctor"]
        done = subprocess.run(watched, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    with sysctl(net, ipv4__conf__all__arp_ignore="1", ipv4__conf__all__arp_announce="2"):  # as strictARP sets them
        net.run("client", "ip", "neighbour", "flush", "dev", "uplink")
        assert not answers_arp(net, WEB)
    told(
        "Addresses vanish from kube-ipvs0, or every node answers ARP for them",
        {"status": status, "doctor": done.stdout},
    )


def leave_behind(net: Topology) -> None:
    """Have a virtual server of somebody else, what a Service that is gone had, and one of ours missing."""
    net.run("node", "ip", "address", "add", f"{GONE}/32", "dev", "kube-ipvs0")
    table = (
        f"-A -t {FOREIGN}:99 -s wlc\n-a -t {FOREIGN}:99 -r {DEAD}:99 -m\n"
        f"-A -t {GONE}:80 -s rr\n-a -t {GONE}:80 -r {DEAD}:8080 -m\n"
        f"-D -t {WEB}:80\n"
    )
    net.run("node", "ipvsadm", "-R", text=table)


@pytest.mark.usefixtures("agent")
def test_what_leaks_or_is_missing(net: Topology) -> None:
    leave_behind(net)
    told(LEAKS, {"diff": command(net, "diff", status=2)})


def test_rules_in_the_other_variant(net: Topology, agent: Agent) -> None:
    """The last of those that share the agent: the remedy needs that none runs."""
    assert net.ask("client", FILES, 80)[0] in {"pod1", "pod2"}
    net.run("node", "iptables-legacy-restore", "--noflush", text=LEGACY.replace("ADDRESS", FILES).replace("POD", DEAD))
    unanswered(net, Request("client", FILES, 80))
    doctor, route = command(net, "doctor", status=2), command(net, "explain", "--from", CLIENT, f"{FILES}:80")
    agent.stop()
    command(net, "cleanup", "--kube-proxy")
    assert "KUBE-" not in net.run("node", "iptables-legacy-save")
    told(
        "All looks right and a Service does not answer: two variants of iptables",
        {"doctor": doctor, f"explain --from {CLIENT} {FILES}:80": route},
    )


def test_audit_repairs_what_diff_shows(net: Topology, directory: Path) -> None:
    net.run("node", "ipvsadm", "-C")
    with running_agent(net, directory, *SOON):
        net.run("node", "ipvsadm", "-a", "-u", f"{DNS}:53", "-r", f"{DEAD}:8053", "-m")
        with stuck(net) as client:
            leave_behind(net)
            eventually(lambda: exchange(client)[0] == "pod1")
        eventually(lambda: net.ask("client", WEB, 80)[0] in {"pod1", "pod2"})
        eventually(lambda: GONE not in addresses(net))
        status = command(net, "status")
        table = net.run("node", "ipvsadm", "-Sn")
        assert GONE not in table
        assert f"-t {FOREIGN}:99 -r {DEAD}:99" in table
    told(LEAKS, {"status": status})


def test_every_output_of_the_document_was_printed_here(request: pytest.FixtureRequest) -> None:
    module = request.node.module
    ran = {item.originalname for item in request.session.items if item.module is module}
    if not {name for name in vars(module) if name.startswith("test_")} <= ran:
        pytest.skip("only a run of the whole module tells")
    assert all_shown() == TOLD


def test_comparison_with_the_document_tells_what_differs() -> None:
    printed = "ok  up 17s\nwarning  20.1 ms\n\n1 problem\n"
    assert is_shown("ok   up 3m\nwarning 1.0 ms\n\n1 problem\n", printed)
    assert is_shown("warning 1.0 ms\n[...]\n1 problem\n", printed) is False
    assert is_shown("[...]\nwarning 1.0 ms\n[...]\n", printed)
    assert not is_shown("[...]\nwarning 1.0 ms\n[...]\n2 problems\n", printed)
