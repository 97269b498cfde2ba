"""Rules of others that give, restore, save or route by packet marks: clients in the cluster reach all endpoints anyway.

Each column of ``OTHERS`` is what a network plugin or an administrator has on the node; the rows are those of the packet
table whose virtual servers go by a mark of ours, with the clients that get one. There are so many Services that our
marks have the bits which these rules are about.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab import manifests, packet_filter, witness
from lab.agent import Agent, running_agent
from lab.manifests import TARGET_PORTS, endpoint
from lab.topology import ADDRESSES, FAMILIES, Topology, servers, topology
from tests.ring import answers

CLIENTS = ("pod", "node", "remote pod")
ROWS = [row for row in answers.ROWS if row.policy == "Local" and row.kind != "ClusterIP" and row.endpoints != "none"]
#: So many that numbers reach the ninth bit and marks have 0x800.
SERVICES = 260
#: Among these every value of four neighbouring bits is, as a rule may look at, and of any two.
TELLING = [number for number in range(SERVICES) if number.bit_count() <= 2 or number < number & -number << 4]

#: Commands on the node: ``iptables`` means that of both families, ``rule`` and ``route`` those of ``ip``.
OTHERS = {
    "aws-vpc-cni": """
iptables -t mangle -A PREROUTING -i uplink -j CONNMARK --set-xmark 0x80/0x80
iptables -t mangle -A PREROUTING -i to-pod+ -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
iptables -t nat -A PREROUTING -i to-pod+ -j CONNMARK --set-xmark 0x80/0x80
iptables -t nat -A PREROUTING -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
rule add pref 1024 fwmark 0x80/0x80 lookup main
""",
    # Its rules come before the local table; whoever meets one by mistake has no route.
    "cilium": """
rule add pref 100 lookup local
rule add pref 9 fwmark 0x200/0xf00 lookup 2004
rule add pref 10 fwmark 0xa00/0xf00 lookup 2005
rule del pref 0 lookup local
route add unreachable default table 2004
route add unreachable default table 2005
""",
    "calico": """
iptables -t raw -A PREROUTING -j MARK --set-xmark 0x0/0xf0000
iptables -t raw -A PREROUTING -i to-pod+ -j MARK --set-xmark 0x40000/0x40000
iptables -t mangle -A PREROUTING -m mark --mark 0x40000/0x40000 -j MARK --set-xmark 0x100000/0x100000
rule add pref 99 fwmark 0x100000/0x100000 lookup main
""",
    "unmasked": """
iptables -t mangle -A PREROUTING -j CONNMARK --restore-mark
""",
    "unmasked everywhere": """
iptables -t mangle -A PREROUTING -j CONNMARK --restore-mark
iptables -t mangle -A POSTROUTING -j CONNMARK --save-mark
""",
    # Each bit that ours have is somebody's who has no route.
    "every bit is routed by": "\n".join(
        f"rule add pref {20 + bit} fwmark {1 << bit:#x}/{1 << bit:#x} unreachable" for bit in range(14)
    )
    + """
rule add pref 100 lookup local
rule del pref 0 lookup local
""",
}

#: What each of the rules of iptables above is in nftables: a chain, and its rules.
IN_NFTABLES = {
    "-t mangle -A PREROUTING -i uplink -j CONNMARK --set-xmark 0x80/0x80": (
        "mangle", 'iifname "uplink" ct mark set ct mark or 0x80'
    ),
    "-t mangle -A PREROUTING -i to-pod+ -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80": (
        "mangle",
        'iifname "to-pod*" ct mark and 0x80 == 0x80 meta mark set meta mark or 0x80',
        'iifname "to-pod*" ct mark and 0x80 == 0 meta mark set meta mark and 0xffffff7f',
    ),
    "-t nat -A PREROUTING -i to-pod+ -j CONNMARK --set-xmark 0x80/0x80": (
        "nat", 'iifname "to-pod*" ct mark set ct mark or 0x80'
    ),
    "-t nat -A PREROUTING -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80": (
        "nat",
        "ct mark and 0x80 == 0x80 meta mark set meta mark or 0x80",
        "ct mark and 0x80 == 0 meta mark set meta mark and 0xffffff7f",
    ),
    "-t raw -A PREROUTING -j MARK --set-xmark 0x0/0xf0000": ("raw", "meta mark set meta mark and 0xfff0ffff"),
    "-t raw -A PREROUTING -i to-pod+ -j MARK --set-xmark 0x40000/0x40000": (
        "raw", 'iifname "to-pod*" meta mark set meta mark or 0x40000'
    ),
    "-t mangle -A PREROUTING -m mark --mark 0x40000/0x40000 -j MARK --set-xmark 0x100000/0x100000": (
        "mangle", "meta mark and 0x40000 == 0x40000 meta mark set meta mark or 0x100000"
    ),
    "-t mangle -A PREROUTING -j CONNMARK --restore-mark": ("mangle", "meta mark set ct mark"),
    "-t mangle -A POSTROUTING -j CONNMARK --save-mark": ("after", "ct mark set meta mark"),
}  # fmt: skip
CHAINS = {
    "raw": "type filter hook prerouting priority raw;",
    "mangle": "type filter hook prerouting priority mangle;",
    "nat": "type nat hook prerouting priority dstnat;",
    "after": "type filter hook postrouting priority mangle;",
}


@contextmanager
def others(net: Topology, commands: str) -> Iterator[None]:
    """Have others' rules in both families; take everything back at the end."""
    lines = [line.split() for line in commands.strip().splitlines()]
    flags = {"IPv4": "-4", "IPv6": "-6"}
    with others_rules(net, [" ".join(words[1:]) for words in lines if words[0] == "iptables"]):
        try:
            for words in lines:
                for flag in flags.values() if words[0] != "iptables" else ():
                    net.run("node", "ip", flag, *words)
            yield
        finally:
            for flag in flags.values():
                # One that is there already is no fault.
                with net.inside("node"):
                    command = ["ip", flag, "-force", "-batch", "-"]
                    subprocess.run(command, input=_RULES, text=True, capture_output=True, check=False)


@contextmanager
def others_rules(net: Topology, rules: list[str]) -> Iterator[None]:
    if packet_filter.CHOSEN == packet_filter.NFTABLES:
        chains = {name: [hook] for name, hook in CHAINS.items()}
        for rule in rules:
            chain, *texts = IN_NFTABLES[rule]
            chains[chain] += texts
        content = "".join(f"chain {name} {{\n" + "\n".join(lines) + "\n}\n" for name, lines in chains.items())
        net.run("node", "nft", "-f", "-", text=f"table inet others {{\n{content}}}\n")
        yield
        net.run("node", "nft", "delete", "table", "inet", "others")
        return
    before = {program: net.run("node", f"{program}-save") for program in _PROGRAMS}
    try:
        for rule in rules:
            for program in _PROGRAMS:
                net.run("node", program, *rule.split())
        yield
    finally:
        for program in _PROGRAMS:
            net.run("node", f"{program}-restore", text=before[program])


_PROGRAMS = ("iptables", "ip6tables")
#: Those of a new namespace; the first is never flushed.
_RULES = """rule add pref 0 lookup local
rule flush
rule add pref 32766 lookup main
route flush table 2004
route flush table 2005
"""


def many(number: int) -> str:
    return f"203.0.{116 + number // 250}.{1 + number % 250}"


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with topology() as net, servers(net, ("pod2", "pod3", "pod4"), TARGET_PORTS):
        yield net


@pytest.fixture(scope="module", autouse=True)
def agent(net: Topology, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    directory = tmp_path_factory.mktemp("manifests")
    answers.write_services(directory)
    for number in range(SERVICES):
        name = f"many-{number}"
        fields = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ingress": [many(number)]}
        # Which of two pods answers tells a Service from the one whose mark differs in one bit.
        pod = "pod3" if number.bit_count() % 2 else "pod4"
        service = manifests.service(name, f"10.97.{number // 250}.{1 + number % 250}", **fields)
        slices = manifests.slices(name, [endpoint(ADDRESSES[pod]["IPv4"], "peer" if pod == "pod4" else "node")])
        manifests.write(directory, name, service, *slices)
    with running_agent(net, directory) as agent:
        yield agent


@pytest.mark.parametrize("column", OTHERS)
def test_clients_in_the_cluster_reach_all_endpoints(net: Topology, column: str) -> None:
    with others(net, OTHERS[column]):
        problems = [
            problem
            for row in ROWS
            for family in FAMILIES
            for protocol in ("TCP", "UDP")
            for problem in answers.problems(net, row, family, protocol, columns=CLIENTS)
        ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("column", OTHERS)
@pytest.mark.parametrize("client", ["pod1", "node"])
def test_every_service_has_its_own_endpoint_whatever_its_number(net: Topology, column: str, client: str) -> None:
    wrong = {}
    with others(net, OTHERS[column]):
        for number in TELLING:
            wanted = "pod3" if number.bit_count() % 2 else "pod4"
            try:
                answer = net.ask(client, many(number), 80, timeout=1.0)[0]
            except OSError as error:
                answer = repr(error)
            if answer != wanted:
                wrong[number] = answer
    assert not wrong


def test_marks_have_the_bits_that_these_rules_are_about(net: Topology) -> None:
    marks = witness.marks(net)
    assert {bit for bit in range(14) if any(mark & 1 << bit for mark in marks)} == {*range(11), 13}
