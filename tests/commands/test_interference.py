"""Which rules of others doctor tells of, and which not."""

from __future__ import annotations

import pytest

from ipvs_proxy.commands.interference import interferences
from ipvs_proxy.kernel.filter.foreign.rules import Effect
from ipvs_proxy.node.inventory import Inventory
from ipvs_proxy.plan.marks import mark_key
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.tables import Family
from tests.support.foreign_rules import (
    ADDRESSES,
    GIVEN,
    HOST_PORT,
    KEYS,
    MEMBERS,
    OUR_MARKS,
    OURS,
    SERVICES,
    many,
    saved,
)
from tests.support.roles import role

OUR_RULES = [OURS.format("PREROUTING"), SERVICES]
MARKED = [OUR_MARKS.format("PREROUTING", "PREROUTING"), GIVEN]


def told(
    text: str, *, variant: str = "nf_tables", marks: bool = False, beside: bool = False
) -> list[tuple[str, Effect, str]]:
    served = [*KEYS, *([mark_key(0x2005, Family.IPV4)] if marks else [])]
    tables = KernelTables(addresses=ADDRESSES, entries={role(name): members for name, members in MEMBERS.items()})
    rules = {(Family.IPV4, variant): text, (Family.IPV6, variant): text}
    found = Inventory(served=served, tables=tables, rules=rules, beside=beside)
    return [(one.table, one.effect, one.text) for one in interferences(found)]


def test_host_port_rule_is_told_once_with_where_it_is_and_what_it_takes() -> None:
    both = [HOST_PORT, HOST_PORT.replace("PREROUTING", "OUTPUT")]
    assert told(saved(nat=[*both, *OUR_RULES])) == [
        (
            "nat",
            Effect.TAKES,
            "PREROUTING and OUTPUT (IPv4, nf_tables): 2 rules of others take 10.96.1.1:80/TCP before the Service gets it: "
            + HOST_PORT,
        )
    ]
    assert told(saved(nat=[*OUR_RULES, *both[:1]])) == []


def test_kube_proxys_rules_count_where_it_runs_beside_the_agent_and_they_come_first() -> None:
    kube_proxy = [
        '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        "-A KUBE-SERVICES -d 10.96.7.7/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-A",
        "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
        "-A KUBE-NODEPORTS -p tcp -m tcp --dport 443 -j KUBE-SVC-A",
        "-A KUBE-SVC-A -p tcp -j DNAT --to-destination 10.244.1.9:8080",
    ]
    ours = [
        '-A PREROUTING -m comment --comment "ipvs-proxy service portals" -j IPVS-PROXY-SERVICES',
        "-A IPVS-PROXY-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT",
    ]
    assert told(saved(nat=[*ours, *kube_proxy]), beside=True) == []
    ((table, effect, text),) = told(saved(nat=[*kube_proxy, *ours]), beside=True)
    assert (table, effect) == ("nat", Effect.TAKES)
    assert "10.96.1.2:443/TCP" in text, "its port is a node port of kube-proxy's"
    assert told(saved(nat=kube_proxy)) == [], "what kube-proxy has left over is another finding"


def test_what_another_proxy_does_to_thousands_is_one_finding() -> None:
    known, keys = many(3_000)
    rules = ["-A PREROUTING -j OTHER"]
    for number, key in enumerate(keys):
        rules += [
            f"-A OTHER -d {'.'.join(map(str, key.address))}/32 -j O{number}",
            f"-A O{number} -j DNAT --to 1.2.3.4",
        ]
    found = Inventory(served=keys, tables=KernelTables(addresses=set(known.addresses)))
    found.rules[Family.IPV4, "legacy"] = saved(nat=rules)
    (one,) = interferences(found)
    assert "(IPv4, legacy): 3,000 rules of others take 10.96.0.1:1/TCP and 2,999 more ports of Services" in one.text
    assert len(one.text) < 400


def test_kinds_beyond_the_third_are_counted() -> None:
    rules = [f"-A PREROUTING -s 198.51.100.{number}/32 -j DNAT --to-destination 1.2.3.4" for number in range(9)]
    lines = told(saved(nat=rules))
    assert len(lines) == 4
    assert lines[-1][2] == "6 more kinds of rules of others (IPv4, nf_tables) are in the way of Services"


@pytest.mark.parametrize(
    ("rules", "marks", "effects"),
    [
        ({"raw": ["-A PREROUTING -d 10.96.0.10/32 -p udp -j CT --notrack"]}, False, [Effect.UNTRACKS]),
        ({"raw": ["-A PREROUTING -s 198.51.100.1/32 -j DROP"]}, False, []),
        ({"raw": ["-A PREROUTING -d 10.96.1.1/32 -j DROP"]}, False, [Effect.DROPS]),
        ({"nat": ["-A PREROUTING -m set --match-set MINE dst -j DNAT --to-destination 1.2.3.4"]}, False, []),
        ({"mangle": [*MARKED, "-A PREROUTING -j CONNMARK --restore-mark"]}, True, [Effect.MARKS]),
        ({"mangle": [*MARKED, "-A PREROUTING -j CONNMARK --restore-mark"]}, False, []),
        ({"mangle": ["-A PREROUTING -j CONNMARK --restore-mark", *MARKED]}, True, []),
        ({"mangle": [*MARKED, "-A PREROUTING -i eni+ -j CONNMARK --restore-mark --nfmask 0x80"]}, True, [Effect.MARKS]),
        ({"nat": ["-A PREROUTING -j KUBE-SERVICES", "-A KUBE-SERVICES -j DNAT --to-destination 1.2.3.4"]}, False, []),
    ],
)
def test_only_what_is_meant_for_services_and_hurts_is_told(
    rules: dict[str, list[str]], marks: bool, effects: list[Effect]
) -> None:
    assert [effect for _, effect, _ in told(saved(**rules), marks=marks)] == effects


def test_node_without_services_has_nothing_to_lose() -> None:
    found = Inventory(rules={(Family.IPV4, "nf_tables"): saved(nat=[HOST_PORT])})
    assert list(interferences(found)) == []
