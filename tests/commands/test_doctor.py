"""What doctor makes of facts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest

from ipvs_proxy.commands import doctor
from ipvs_proxy.commands.doctor import Diagnosis, Level, diagnoses_text, judge_agent, judge_host, judge_kernel
from ipvs_proxy.node.host_facts import HostFacts
from ipvs_proxy.node.inventory import Inventory
from ipvs_proxy.node.problem import Problem
from ipvs_proxy.node.processes import Process
from ipvs_proxy.node.sysctl import SysctlChange
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.tables import Protocol, VirtualServerKey
from tests.support.answering_agent import NODE, NOW

CLUSTER_IP = VirtualServerKey(bytes((10, 96, 0, 1)), Protocol.UDP, 30080)
NODE_PORT = VirtualServerKey(bytes((192, 0, 2, 1)), Protocol.TCP, 30080)
TABLES = KernelTables(addresses={CLUSTER_IP.address})


def judged(inventory: dict[str, Any], facts: dict[str, Any] | None = None) -> list[Diagnosis]:
    found = Inventory(**{"kernel": (6, 12), **inventory})
    return [*judge_kernel(found), *judge_host(found, HostFacts(**(facts or {})))]


def test_sound_node_has_only_good_findings() -> None:
    sound = {
        "conntrack_entries": 10,
        "conntrack_room": 1_000,
        "connection_buckets": 4096,
        "local_ports": (40000, 60999),
    }
    found = [*judged({}, sound), *judge_agent(Inventory(agent=True), msgspec.structs.replace(NODE, repairs=[]))]
    assert {finding.level for finding in found} == {Level.OK}


@pytest.mark.parametrize(
    ("inventory", "facts", "level", "topic", "remedy"),
    [
        ({"missing": [Problem("the kernel has no IPVS", "load it")]}, {}, "problem", "kernel", "load it"),
        ({"flaws": [Problem("Linux 5.4 is bad", "use 5.9")]}, {}, "problem", "kernel", "use 5.9"),
        (
            {"sysctls": [SysctlChange("net/ipv4/vs/conn_reuse_mode", "0", "1")], "agent": True},
            {},
            "problem",
            "sysctl",
            "sysctl -w net.ipv4.vs.conn_reuse_mode=1",
        ),
        ({"ipvs_mode": {("IPv4", "legacy"): 3}}, {}, "problem", "iptables", "cleanup --kube-proxy"),
        ({}, {"link_manager": "NetworkManager"}, "problem", "link", "unmanaged-devices=interface-name:kube-ipvs0"),
        ({}, {"link_manager": "systemd-networkd"}, "problem", "link", "Unmanaged=yes"),
        ({}, {"twice": {"192.0.2.1": "eth0"}}, "problem", "addresses", "take the address off eth0"),
        ({}, {"announcers": ["speaker"], "arp_ignore": 0}, "problem", "ARP", "strictARP"),
        (
            {"sysctls": [SysctlChange("net/ipv4/conf/all/arp_ignore", "0", "1")], "agent": True},
            {"announcers": ["speaker"], "arp_ignore": 0},
            "problem",
            "sysctl",
            "sysctl -w net.ipv4.conf.all.arp_ignore=1",
        ),
        ({}, {"policies": {("IPv4", "FORWARD"): "DROP"}}, "warning", "firewall", "have the network plugin accept"),
        ({}, {"policies": {("IPv6", "INPUT"): "DROP"}}, "warning", "firewall", "node ports in INPUT"),
        ({}, {"firewalld": True}, "warning", "firewall", "--zone=trusted"),
        ({}, {"ahead": {"IPv6": ["-A INPUT -p tcp -j ACCEPT"]}}, "warning", "firewall", "iptables -A, not -I"),
        (
            {"before_ours": ["table inet mine: chain in (filter hook input priority 0, policy drop)"]},
            {},
            "warning",
            "nftables",
            "accept the pods' networks",
        ),
        (
            {"before_ours": ["table ip mine: chain dnat (nat hook prerouting priority -150)"]},
            {},
            "warning",
            "nftables",
            "a priority above -110",
        ),
        ({}, {"bridge_calls_iptables": 0, "bridges": True}, "warning", "bridge", "bridge-nf-call-iptables=1"),
        ({}, {"conntrack_entries": 95, "conntrack_room": 100}, "problem", "conntrack", "maxPerCore"),
        ({"served": [NODE_PORT]}, {"local_ports": (1024, 65535)}, "warning", "ports", "reserved_ports=30000-32767"),
        ({}, {"run_estimation": 0}, "warning", "IPVS", "run_estimation=1"),
        ({"kernel": (5, 15), "schedulers": Counter(rr=20_000)}, {}, "warning", "IPVS", "Linux 6.2"),
        ({}, {"connection_buckets": 4096, "connections": 1_000_000}, "warning", "IPVS", "conn_tab_bits=20"),
        (
            {"kernel": (7, 2)},
            {"connection_buckets": 256, "connections": 5_000, "load_factor": -4},
            "warning",
            "IPVS",
            "conn_tab_bits=20",
        ),
        (
            {"kernel": (7, 2)},
            {"connection_buckets": 256, "connections": 5_000, "load_factor": 6},
            "warning",
            "IPVS",
            "conn_lfactor=-4",
        ),
    ],
)
def test_each_trouble_is_found_with_its_remedy(
    inventory: dict[str, Any], facts: dict[str, Any], level: str, topic: str, remedy: str
) -> None:
    (found,) = [finding for finding in judged(inventory, facts) if finding.level is not Level.OK]
    assert (found.level.value, found.topic) == (level, topic)
    assert remedy in found.remedy


@pytest.mark.parametrize(
    ("inventory", "facts"),
    [
        ({}, {"announcers": ["speaker"], "arp_ignore": 1}),
        ({}, {"policies": {("IPv4", "FORWARD"): "ACCEPT", ("IPv4", "INPUT"): "ACCEPT"}}),
        ({"served": [NODE_PORT]}, {"local_ports": (32768, 60999)}),
        ({"served": [NODE_PORT]}, {"local_ports": (1024, 65535), "reserved_ports": [(9, 9), (30000, 32767)]}),
        ({}, {"local_ports": (1024, 65535)}),
        ({"served": [CLUSTER_IP], "tables": TABLES}, {"local_ports": (1024, 65535)}),
        ({}, {"bridge_calls_iptables": 1, "bridges": True}),
        ({}, {"bridge_calls_iptables": 0}),
        ({"served": [CLUSTER_IP]}, {"policies": {("IPv6", "FORWARD"): "DROP"}, "ahead": {"IPv6": ["-A INPUT"]}}),
        ({}, {"connection_buckets": 256, "connections": 0, "conntrack_entries": 5_000, "conntrack_room": 9_999}),
        ({"kernel": (6, 2), "schedulers": Counter(rr=20_000)}, {}),
        ({"kernel": (5, 15), "schedulers": Counter(rr=100)}, {}),
    ],
)
def test_what_is_right_is_no_finding(inventory: dict[str, Any], facts: dict[str, Any]) -> None:
    assert {finding.level for finding in judged(inventory, facts)} == {Level.OK}


@pytest.mark.parametrize(
    ("inventory", "state", "levels"),
    [
        (Inventory(), "no answer", {"warning"}),
        (Inventory(agent=True), "no answer", {"warning"}),
        (Inventory(agent=True, kube_proxy=Process(1, "kube-proxy")), NODE, {"problem", "warning", "ok"}),
        (
            Inventory(agent=True, beside=True, kube_proxy=Process(1, "kube-proxy")),
            msgspec.structs.replace(NODE, service_proxy_name="ipvs", repairs=[]),
            {"ok"},
        ),
        (Inventory(agent=True), msgspec.structs.replace(NODE, healthy=False, repairs=[]), {"problem"}),
        (Inventory(agent=True), msgspec.structs.replace(NODE, waiting=3, repairs=[]), {"problem"}),
        (Inventory(agent=True), msgspec.structs.replace(NODE, conflicts=1, repairs=[]), {"warning", "ok"}),
        (Inventory(agent=True), msgspec.structs.replace(NODE, api_failures=["Node"], repairs=[]), {"warning", "ok"}),
    ],
)
def test_agent_is_judged_by_what_it_tells(inventory: Inventory, state: Any, levels: set[str]) -> None:
    assert {finding.level.value for finding in judge_agent(inventory, state)} == levels


@pytest.mark.parametrize(
    ("state", "asked"),
    [
        ("no answer", {"scheduler": "rr", "strict_arp": False, "ports": ()}),
        (
            msgspec.structs.replace(NODE, scheduler="lc", strict_arp=True),
            {"scheduler": "lc", "strict_arp": True, "ports": ()},
        ),
    ],
)
def test_node_is_looked_at_for_what_the_agent_is_set_to(
    monkeypatch: pytest.MonkeyPatch, state: Any, asked: Any
) -> None:
    seen: list[dict[str, Any]] = []

    def take_inventory(**arguments: Any) -> Inventory:
        seen.append(arguments)
        return Inventory(kernel=(6, 12), agent=True)

    monkeypatch.setattr(doctor, "take_inventory", take_inventory)
    monkeypatch.setattr(doctor, "read_host_facts", lambda *_: HostFacts())
    monkeypatch.setattr(doctor, "_state", lambda _: state)
    assert doctor.examine("127.0.0.1:10249")
    assert seen == [asked]


def test_worst_comes_first_within_80_columns() -> None:
    found = [
        Diagnosis(Level.OK, "kernel", "Linux 6.12"),
        Diagnosis(Level.PROBLEM, "sysctl", "word " * 30, "remedy " * 20),
        Diagnosis(Level.WARNING, "ports", "something"),
    ]
    lines = diagnoses_text(found).splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ") and line][:3] == ["problem", "warning", "ok"]
    assert lines[-1] == "1 problem, 1 warning"
    assert max(map(len, lines)) <= 80
    assert NODE.now == NOW


def test_own_datagrams_above_the_mtu_are_a_note_where_a_service_takes_any() -> None:
    def told(*served: VirtualServerKey, value: int | None = 0) -> list[Level]:
        found = judged({"served": list(served)}, {"no_path_mtu": value})
        return [finding.level for finding in found if finding.topic == "MTU"]

    assert told(CLUSTER_IP) == [Level.OK], "it is so on every node"
    assert told(NODE_PORT) == told(CLUSTER_IP, value=1) == told(CLUSTER_IP, value=None) == []
