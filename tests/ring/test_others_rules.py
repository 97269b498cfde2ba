"""Rules of others before IPVS: what packets do, and what doctor and explain say of it, are the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab import manifests
from lab.agent import command, running_agent
from lab.manifests import TARGET_PORTS, endpoint
from lab.topology import ADDRESSES, FAMILIES, Topology, servers, topology

VIPS = {"IPv4": "10.96.0.40", "IPv6": "fd00:10:96::40"}
NODE_PORT = 30040
#: Where rules of others send what they take.
TAKER = "pod4"


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    directory = tmp_path_factory.mktemp("manifests")
    manifests.write(directory, "node", manifests.node())
    service = manifests.service("web", *VIPS.values(), type="NodePort", node_ports={"TCP": NODE_PORT})
    endpoints = [endpoint(ADDRESSES["pod1"][family]) for family in FAMILIES]
    manifests.write(directory, "service", service, *manifests.slices("web", endpoints))
    with topology() as net, servers(net, ("pod1", TAKER), TARGET_PORTS), running_agent(net, directory):
        yield net


@contextmanager
def having(net: Topology, program: str, *lines: str) -> Iterator[None]:
    """Have rules for a while: each line is a table and what iptables is told, with ``TO`` for the address."""
    family = "IPv6" if program.startswith("ip6") else "IPv4"
    address = ADDRESSES[TAKER][family]
    target = f"[{address}]:8080" if family == "IPv6" else f"{address}:8080"
    done: list[list[str]] = []
    try:
        for line in lines:
            table, *words = line.replace("TO", target).split()
            net.run("node", program, "-w", "-t", table, *words)
            done.append([table, *words])
        yield
    finally:
        for table, verb, *words in reversed(done):
            undo = {"-A": "-D", "-I": "-D", "-N": "-X"}[verb]
            net.run("node", program, "-w", "-t", table, undo, *words)


def findings(net: Topology) -> list[str]:
    text = command(net, "doctor", "-o", "json", status=2)
    return [found["text"] for found in json.loads(text) if "of others" in found["text"]]


def quiet(net: Topology) -> bool:
    return "of others" not in command(net, "doctor")


HOST_PORT = "-m addrtype --dst-type LOCAL -p tcp --dport 80 -j DNAT --to-destination TO"
CASES = {
    "in front of ours": ("iptables", ["nat -I PREROUTING " + HOST_PORT], "pod2", 80),
    "IPv6": ("ip6tables", ["nat -I PREROUTING " + HOST_PORT], "client", 80),
    "of the node itself": ("iptables", ["nat -I OUTPUT " + HOST_PORT], "node", 80),
    "in the other variant": ("iptables-legacy", ["nat -A PREROUTING " + HOST_PORT], "client", 80),
    "in the other variant, IPv6": ("ip6tables-legacy", ["nat -A PREROUTING " + HOST_PORT], "client", 80),
    "in chains, as of CNI": (
        "iptables",
        [
            "nat -N CNI-HOSTPORT-DNAT",
            "nat -N CNI-DN-1",
            "nat -I PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
            "nat -A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 80,443 -j CNI-DN-1",
            "nat -A CNI-DN-1 -p tcp --dport 80 -j DNAT --to-destination TO",
        ],
        "client",
        80,
    ),
    "a node port, behind ours": (
        "iptables",
        ["nat -A PREROUTING -m addrtype --dst-type LOCAL -p tcp --dport 30040 -j DNAT --to-destination TO"],
        "client",
        NODE_PORT,
    ),
}


@pytest.mark.parametrize(("program", "lines", "client", "port"), CASES.values(), ids=list(CASES))
def test_rule_that_takes_a_service_is_named(
    net: Topology, program: str, lines: list[str], client: str, port: int
) -> None:
    family = "IPv6" if program.startswith("ip6") else "IPv4"
    address = VIPS[family] if port == 80 else ADDRESSES["node"][family]
    target = f"[{address}]:{port}" if family == "IPv6" else f"{address}:{port}"
    source = ADDRESSES[client][family]
    assert net.ask(client, address, port)[0] == "pod1"
    with having(net, program, *lines):
        assert net.ask(client, address, port)[0] == TAKER, "the trouble itself"
        (finding,) = findings(net)
        way = json.loads(command(net, "explain", "--from", source, target, "-o", "json"))
    assert f"{'OUTPUT' if client == 'node' else 'PREROUTING'} ({family}, " in finding
    assert f"takes {target}/TCP before the Service gets it: -A " in finding
    assert (way["verdict"], way["realServers"]) == ("taken", [])
    assert "a rule of others in nat" in way["steps"][-1]
    assert net.ask(client, address, port)[0] == "pod1"


HARMLESS = {
    "behind ours": ("iptables", ["nat -A PREROUTING " + HOST_PORT]),
    "not for addresses of the node": ("iptables", ["nat -I PREROUTING " + HOST_PORT.replace("--dst", "! --dst")]),
    "another port": ("iptables", ["nat -I PREROUTING " + HOST_PORT.replace("--dport 80", "--dport 81")]),
    "another protocol": ("iptables", ["nat -I PREROUTING " + HOST_PORT.replace("-p tcp", "-p udp")]),
    "another address": ("iptables", ["nat -I PREROUTING -d 192.0.2.0/24 " + HOST_PORT]),
    "without Services' addresses": ("iptables", ["nat -I PREROUTING ! -d 10.96.0.0/12 " + HOST_PORT]),
    "let through before": (
        "iptables-legacy",
        ["nat -A PREROUTING -d 10.96.0.0/12 -j ACCEPT", "nat -A PREROUTING " + HOST_PORT],
    ),
}


@pytest.mark.parametrize(("program", "lines"), HARMLESS.values(), ids=list(HARMLESS))
def test_rule_that_takes_nothing_is_not_named(net: Topology, program: str, lines: list[str]) -> None:
    vip = VIPS["IPv4"]
    with having(net, program, *lines):
        assert net.ask("client", vip, 80)[0] == "pod1"
        assert quiet(net)
        way = json.loads(command(net, "explain", "--from", ADDRESSES["client"]["IPv4"], f"{vip}:80", "-o", "json"))
    assert way["verdict"] == "balanced"
    assert not [step for step in way["steps"] if "of others" in step]


def test_connection_that_conntrack_does_not_see_is_named(net: Topology) -> None:
    client, vip = ADDRESSES["client"]["IPv4"], VIPS["IPv4"]
    assert net.ask("client", vip, 80) == ("pod1", ADDRESSES["node"]["IPv4"])
    with having(net, "iptables", f"raw -A PREROUTING -d {vip} -p tcp -j CT --notrack"):
        assert net.ask("client", vip, 80) == ("pod1", client), "the trouble: not masqueraded"
        (finding,) = findings(net)
        way = json.loads(command(net, "explain", "--from", client, f"{vip}:80", "-o", "json"))
    assert f"keeps conntrack off {vip}:80/TCP" in finding
    assert any("keeps conntrack off it" in step for step in way["steps"])


def test_packet_that_is_dropped_early_is_named(net: Topology) -> None:
    client, vip = ADDRESSES["client"]["IPv4"], VIPS["IPv4"]
    with having(net, "iptables", f"mangle -A INPUT -d {vip} -p tcp -j DROP"):
        with pytest.raises(TimeoutError):
            net.ask("client", vip, 80, timeout=0.7)
        (finding,) = findings(net)
        way = json.loads(command(net, "explain", "--from", client, f"{vip}:80", "-o", "json"))
    assert f"drops {vip}:80/TCP" in finding
    assert way["verdict"] == "dropped"


def test_thousands_of_rules_are_looked_through_in_seconds(net: Topology) -> None:
    """Those of another proxy, for other addresses."""
    lines = ["*nat", ":OTHER - [0:0]", "-I PREROUTING -j OTHER"]
    for number in range(5_000):
        lines += [f":OTHER-{number} - [0:0]", f"-A OTHER -d 10.97.{number // 250}.{number % 250}/32 -j OTHER-{number}"]
        lines += [f"-A OTHER-{number} -p tcp -j DNAT --to-destination 10.244.2.4:8080"]
    net.run("node", "iptables-restore", "--noflush", text="\n".join([*lines, "COMMIT", ""]))
    assert quiet(net)
    way = json.loads(command(net, "explain", "--from", "198.51.100.9", f"{VIPS['IPv4']}:80", "-o", "json"))
    assert way["verdict"] == "balanced"
    remove = ["*nat", "-D PREROUTING -j OTHER", "-F OTHER"]
    remove += [f"-F OTHER-{number}\n-X OTHER-{number}" for number in range(5_000)]
    net.run("node", "iptables-restore", "--noflush", text="\n".join([*remove, "-X OTHER", "COMMIT", ""]))
