"""What rules of others do to connections to Services, from what ``iptables-save`` prints."""

from __future__ import annotations

import time

import pytest

from ipvs_proxy.kernel.filter.foreign import rules as foreign_rules
from ipvs_proxy.kernel.filter.foreign.rules import Effect, changed_bits, look
from ipvs_proxy.plan.addresses import parse_address
from ipvs_proxy.plan.tables import VirtualServerKey
from tests.support.foreign_rules import (
    DNS,
    GIVEN,
    HOST_PORT,
    KEYS,
    KNOWN,
    NODE_PORT,
    OTHER,
    OUR_MARKS,
    OURS,
    SERVICES,
    VIP,
    many,
    saved,
)


def met(text: str, hook: str = "PREROUTING", client: str = "") -> list[tuple[Effect, tuple[VirtualServerKey, ...]]]:
    return [
        (found.effect, found.keys) for found in look(text, KNOWN, hook=hook, client=parse_address(client)).encounters
    ]


def test_host_port_in_front_of_ours_takes_the_port_of_every_service() -> None:
    ours = [OURS.format("PREROUTING"), SERVICES]
    assert met(saved(nat=[HOST_PORT, *ours])) == [(Effect.TAKES, (VIP,))]
    assert met(saved(nat=[*ours, HOST_PORT])) == [], "our chain accepts before"
    assert met(saved(nat=[HOST_PORT])) == [(Effect.TAKES, (VIP,))], "the other variant, where ours is not"
    assert met(saved(nat=[HOST_PORT, *ours]), "OUTPUT") == []


def test_rule_behind_ours_takes_only_node_ports() -> None:
    ours = [OURS.format("PREROUTING"), SERVICES]
    rule = "-A PREROUTING -p tcp -m addrtype --dst-type LOCAL -j REDIRECT --to-ports 9"
    assert met(saved(nat=[*ours, rule])) == [(Effect.TAKES, (NODE_PORT,))]
    assert met(saved(nat=[rule, *ours])) == [(Effect.TAKES, (VIP, OTHER, NODE_PORT))]


def test_chains_of_others_are_followed() -> None:
    portmap = [
        "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
        "-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
        '-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \\"cbr0\\" id: \\"x -j RETURN\\"" '
        "-m multiport --dports 8443,443 -j CNI-DN-1",
        "-A CNI-DN-1 -s 10.244.1.0/24 -p tcp -m tcp --dport 443 -j CNI-HOSTPORT-SETMARK",
        "-A CNI-DN-1 -p tcp -m tcp --dport 443 -j DNAT --to-destination 10.244.1.3:443",
        "-A CNI-HOSTPORT-SETMARK -m comment --comment mark -j MARK --set-xmark 0x2000/0x2000",
        OURS.format("PREROUTING"),
        SERVICES,
    ]
    for hook in ("PREROUTING", "OUTPUT"):
        taken = [
            found for found in look(saved(nat=portmap), KNOWN, hook=hook).encounters if found.effect is Effect.TAKES
        ]
        assert [(found.keys, found.through, found.sure) for found in taken] == [
            ((OTHER,), ("CNI-HOSTPORT-DNAT", "CNI-DN-1"), True)
        ]


@pytest.mark.parametrize(
    "rule",
    [
        "-p tcp -m tcp --dport 81 -j DNAT --to-destination 10.244.1.3",
        "-p udp -m udp --dport 80 -j DNAT --to-destination 10.244.1.3",
        "-p sctp -j DNAT --to-destination 10.244.1.3",
        "-d 192.0.2.0/24 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.1.3",
        "! -d 10.96.0.0/12 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.1.3",
        "-p tcp -m addrtype ! --dst-type LOCAL -m tcp --dport 80 -j DNAT --to-destination 10.244.1.3",
        "-p tcp -m addrtype --dst-type LOCAL --limit-iface-in -m tcp --dport 80 -j DNAT --to-destination 10.244.1.3",
        "-p tcp -m conntrack --ctstate RELATED,ESTABLISHED -m tcp --dport 80 -j DNAT --to-destination 10.244.1.3",
        "-p tcp -m conntrack ! --ctstate NEW -j DNAT --to-destination 10.244.1.3",
        "-p tcp -m set ! --match-set KUBE-CLUSTER-IP dst,dst -m tcp --dport 80 -j DNAT --to-destination 10.244.1.3",
        "-m set ! --match-set KUBE-IPVS-IPS dst -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.1.3",
        "-i lo -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.1.3",
        "-p tcp -m addrtype --src-type LOCAL -m tcp --dport 80 -j DNAT --to-destination 10.244.1.3",
        "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j DNAT --to-destination 10.244.1.3",
        "-m socket --transparent -j DNAT --to-destination 10.244.1.3",
        "-p tcp -m tcp --dport 80 -j LOG",
        "-p tcp -m tcp --dport 80 -j NOWHERE",
    ],
)
def test_rule_that_is_not_about_services_is_not_met(rule: str) -> None:
    assert met(saved(nat=[f"-A PREROUTING {rule}"])) == []


@pytest.mark.parametrize(
    "rule",
    [
        "-p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.1.3",
        "-p tcp -m tcp --dport 1:100 -j DNAT --to-destination 10.244.1.3",
        "-p tcp -m multiport --dports 25,80 -j REDIRECT --to-ports 1",
        "-d 10.96.1.1/32 -j DNAT --to-destination 10.244.1.3",
        "-d 10.96.1.0/31 -p tcp -j NETMAP --to 10.97.0.0/31",
        "! -d 10.96.1.2/32 -p tcp -m tcp ! --dport 30080 -j DNAT --to-destination 10.244.1.3",
        "-p 6 -m tcp --dport 80 -j DNAT --to-destination 10.244.1.3",
        "-i eth+ -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.1.3",
        "! -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:80",
        "-s 10.0.0.0/8 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.1.3",
        "-p tcp -m tcp --dport 80 --tcp-flags FIN,SYN,RST,ACK SYN -j DNAT --to-destination 10.244.1.3",
        "-p tcp -m tcp --dport 80 -m statistic --mode random --probability 0.5 -j DNAT --to-destination 10.244.1.3",
        "-p tcp -m mark --mark 0x1/0x1 -m tcp --dport 80 -j DNAT --to-destination 10.244.1.3",
    ],
)
def test_rule_about_a_service_is_met(rule: str) -> None:
    assert met(saved(nat=[f"-A PREROUTING {rule}"])) == [(Effect.TAKES, (VIP,))]


def test_set_that_is_not_known_makes_a_rule_blind() -> None:
    rules = ["-A PREROUTING -m set --match-set MINE dst -j OTHER", "-A OTHER -j DNAT --to-destination 10.244.1.3"]
    (found,) = look(saved(nat=rules), KNOWN, hook="PREROUTING").encounters
    assert (found.blind, found.sure) == (True, False)


def test_what_is_let_through_before_is_not_met() -> None:
    for end in ("ACCEPT", "RETURN"):
        guard = f"-A PREROUTING -d 10.96.0.0/12 -j {end}"
        assert met(saved(nat=[guard, HOST_PORT])) == []
        assert met(saved(nat=[f"-A PREROUTING -s 10.244.1.1/32 -j {end}", HOST_PORT])) != [], "not for all clients"
    returned = ["-A PREROUTING -j OTHER", "-A OTHER -j RETURN", HOST_PORT]
    assert met(saved(nat=returned)) == [(Effect.TAKES, (VIP,))], "a return ends its own chain alone"
    assert met(saved(nat=["-A PREROUTING -g OTHER", "-A OTHER -j LOG", HOST_PORT])) == [], (
        "what goes does not come back"
    )


def test_client_decides_what_is_met() -> None:
    rule = "-A PREROUTING -s 10.244.1.0/24 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.1.3"
    assert [found.sure for found in look(saved(nat=[rule]), KNOWN, hook="PREROUTING").encounters] == [False]
    for client, effects in (("10.244.1.9", [True]), ("198.51.100.9", [])):
        found = look(saved(nat=[rule]), KNOWN, hook="PREROUTING", client=parse_address(client)).encounters
        assert [encounter.sure for encounter in found] == effects


def test_tracking_and_drops_are_met_in_raw_and_mangle() -> None:
    assert met(saved(raw=["-A PREROUTING -p udp -m udp --dport 53 -j CT --notrack"])) == [(Effect.UNTRACKS, (DNS,))]
    assert met(saved(raw=["-A OUTPUT -d 10.96.0.10/32 -p udp -j NOTRACK"]), "OUTPUT") == [(Effect.UNTRACKS, (DNS,))]
    assert met(saved(mangle=["-A INPUT -p tcp -m tcp --dport 443 -j DROP"])) == [(Effect.DROPS, (OTHER,))]
    proxy = "-A PREROUTING -p tcp -m tcp --dport 443 -j TPROXY --on-port 1 --tproxy-mark 0x1/0x1"
    assert met(saved(mangle=[proxy], nat=["-A PREROUTING -j DNAT --to-destination 10.244.1.3"])) == [
        (Effect.TAKES, (OTHER,)),
        (Effect.TAKES, (VIP, DNS, NODE_PORT)),
    ], "what is taken goes no further"


@pytest.mark.parametrize(
    ("target", "bits"),
    [
        ("CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80", 0x80),
        ("CONNMARK --restore-mark", 0xFFFFFFFF),
        ("CONNMARK --save-mark", 0),
        ("MARK --set-xmark 0x200/0xffffffff", 0xFFFFFFFF),
        ("MARK --set-xmark 0x40000/0x40000", 0x40000),
        ("MARK --or-mark 0x8", 0x8),
        ("MARK --and-mark 0xfffffff0", 0xF),
        ("LOG --log-prefix MARK", 0),
    ],
)
def test_bits_that_a_target_changes(target: str, bits: int) -> None:
    name, *arguments = target.split()
    assert changed_bits(name, arguments) == bits
    rule = f"-A PREROUTING -j {target}"
    ours = [OUR_MARKS.format("PREROUTING", "PREROUTING"), GIVEN]
    behind = look(saved(mangle=[*ours, rule]), KNOWN, hook="PREROUTING").encounters
    assert [found.bits for found in behind] == ([bits] if bits else [])
    assert met(saved(mangle=[rule, *ours])) == [], "ours replaces the mark"
    assert met(saved(raw=[rule], mangle=ours)) == []
    assert len(met(saved(mangle=[*ours, f"-A INPUT -j {target}"]))) == bool(bits)


def test_what_nobody_understands_is_no_error() -> None:
    nonsense = [
        "-A PREROUTING -j",
        "-A PREROUTING",
        "-A PREROUTING -d x -j DNAT",
        "-A PREROUTING -m tcp --dport a:b:c -j DNAT",
        "-A PREROUTING -m set --match-set -j DNAT",
        "-A PREROUTING --tcp-flags SYN -j DNAT",
        "-A PREROUTING ! ! - -- -j MARK --set-xmark zz/yy",
        '-A PREROUTING -m comment --comment "unfinished -j DNAT',
        "-A PREROUTING -j CONNMARK --restore-mark --nfmask",
        "-A PREROUTING -g PREROUTING",
    ]
    for rule in nonsense:
        look(saved(nat=[rule]), KNOWN, hook="PREROUTING")
    look("\n".join(nonsense), KNOWN, hook="PREROUTING")


def test_long_rules_are_quoted_short() -> None:
    rule = f'-A PREROUTING -m comment --comment "{"x" * 5000}" -j DNAT --to-destination 10.244.1.3'
    (found,) = look(saved(nat=[rule]), KNOWN, hook="PREROUTING").encounters
    assert len(found.rule) < 250


def test_10_000_rules_of_another_proxy_are_walked_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    known, keys = many(20_000)
    rules = ["-A PREROUTING -j OTHER"]
    for number, found in enumerate(keys[:10_000]):
        address = ".".join(map(str, found.address))
        rules.append(f"-A OTHER -d {address}/32 -p tcp -m tcp --dport {found.port} -j OTHER-SVC-{number}")
        rules.append(f"-A OTHER-SVC-{number} -j DNAT --to-destination 10.0.0.1:1")
    text = saved(nat=[*rules, OURS.format("PREROUTING"), SERVICES])
    begun = time.process_time()
    found = look(text, known, hook="PREROUTING")
    assert time.process_time() - begun < 5.0
    assert found.complete
    assert len(found.encounters) == 10_000
    monkeypatch.setattr(foreign_rules, "BUDGET", 1_000)
    assert not look(text, known, hook="PREROUTING").complete


def test_rules_without_end_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chain leads twice to the next: 2^30 ways."""
    monkeypatch.setattr(foreign_rules, "BUDGET", 20_000)
    rules = ["-A PREROUTING -j C0"]
    for number in range(30):
        rules += [f"-A C{number} -j C{number + 1}"] * 2
    known, _ = many(10)
    assert not look(saved(nat=[*rules, "-A C30 -j LOG"]), known, hook="PREROUTING").complete


def test_only_rules_of_ours_that_give_marks_are_what_later_ones_spoil() -> None:
    """Others of our rules check marks, or take them off: a mark that is changed behind those is replaced later."""
    restore = "-A OUTPUT -j CONNMARK --restore-mark"
    checks = [
        OUR_MARKS.format("OUTPUT", "OUTPUT"),
        "-A IPVS-PROXY-OUTPUT -m set --match-set IPVS-PROXY-NO-LOCAL dst,dst "
        "-m set ! --match-set IPVS-PROXY-INTERNAL dst,dst -j DROP",
    ]
    gives = [
        OUR_MARKS.format("OUTPUT", "OUTPUT"),
        "-A IPVS-PROXY-OUTPUT -m set ! --match-set IPVS-PROXY-6-INTERNAL dst,dst -j RETURN",
        "-A IPVS-PROXY-OUTPUT -j MARK --set-xmark 0x2000/0xffffffff",
    ]
    assert met(saved(mangle=[*checks, restore], nat=gives), "OUTPUT") == []
    assert met(saved(mangle=checks, nat=[*gives, restore]), "OUTPUT") == [(Effect.MARKS, KEYS)]
