"""The rules as text, against golden files: the whole input of ``iptables-restore`` on a fresh node.

A golden file that is missing is written and the test fails: read it before it is committed.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

import pytest

from ipvs_proxy.kernel.filter.ipset.names import SetType, definitions, name_of
from ipvs_proxy.kernel.filter.iptables.chains import CHAINS, JUMPS, SERVICES, Chain
from ipvs_proxy.kernel.filter.iptables.compare import payload
from ipvs_proxy.kernel.filter.iptables.render import Ruleset, render
from ipvs_proxy.plan.masquerading import Interface, Masquerading
from ipvs_proxy.plan.roles import LEAVING
from ipvs_proxy.plan.tables import Family

GOLDEN = Path(__file__).parent / "golden"
POD_NETWORKS = {Family.IPV4: ip_network("10.244.0.0/16"), Family.IPV6: ip_network("fd00:10:244::/56")}

VARIANTS = {
    "masquerade_all": lambda family: Masquerading(masquerade_all=True, local=POD_NETWORKS[family]),
    "local_network": lambda family: Masquerading(local=POD_NETWORKS[family]),
    "local_interface": lambda _: Masquerading(local=Interface("cbr0")),
    "local_prefix": lambda _: Masquerading(local=Interface("veth", is_prefix=True)),
    "no_local": lambda _: Masquerading(),
}
CASES = [pytest.param(family, name, id=f"{family.label}-{name}") for family in Family for name in VARIANTS]


def rendered(family: Family, name: str, *, random_fully: bool = True, bridge_netfilter: bool = True) -> Ruleset:
    return render(VARIANTS[name](family), family=family, random_fully=random_fully, bridge_netfilter=bridge_netfilter)


def check_golden(name: str, ruleset: Ruleset) -> None:
    path = GOLDEN / f"{name}.rules"
    text = payload(ruleset, ruleset.jumps)
    if not path.exists():
        path.write_text(text)
        pytest.fail(f"{path} was missing and is written now: read it")
    assert text == path.read_text()


@pytest.mark.parametrize(("family", "name"), CASES)
def test_payload_is_as_reviewed(family, name):
    check_golden(f"{family.label}-{name}", rendered(family, name))


def test_payload_without_bridge_netfilter_is_as_reviewed():
    check_golden("IPv4-no_bridge_netfilter", rendered(Family.IPV4, "local_network", bridge_netfilter=False))


def test_payload_for_an_old_iptables_and_another_mark_is_as_reviewed():
    settings = Masquerading(masquerade_bit=31, local=POD_NETWORKS[Family.IPV4])
    ruleset = render(settings, family=Family.IPV4, random_fully=False, bridge_netfilter=True)
    check_golden("IPv4-old_iptables_bit_31", ruleset)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_rendering_is_deterministic(family, name):
    assert rendered(family, name) == rendered(family, name)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_rules_refer_only_to_sets_of_their_family_and_with_the_dimensions_of_their_types(family, name):
    dimensions = {SetType.BITMAP_PORT: {1}, SetType.HASH_IP: {1}, SetType.HASH_IP_PORT: {2}}
    known = {definition.name: definition.type for definition in definitions([family])}
    references = [
        reference
        for rules in rendered(family, name).chains.values()
        for rule in rules
        for reference in re.findall(r"--(?:match|map)-set (\S+) (\S+)", rule)
    ]
    for referred, directions in references:
        assert len(directions.split(",")) in dimensions.get(known[referred], {3}), referred
    ledger = {name_of(LEAVING[family])}
    assert {name for name, _ in references} == set(known) - ledger, "every set but the ledger has a rule"


@pytest.mark.parametrize(("family", "name"), CASES)
def test_rules_lead_only_to_chains_of_their_table_or_to_targets(family, name):
    targets = {"ACCEPT", "DROP", "MARK", "MASQUERADE", "REJECT", "RETURN", "SET"}
    ruleset = rendered(family, name)
    for chain, rules in ruleset.chains.items():
        for rule in rules:
            assert rule.startswith(f"-A {chain.name} ")
            (target,) = re.findall(r" -j (\S+)", rule)
            assert target in targets or Chain(chain.table, target) in ruleset.chains


def test_every_chain_is_rendered_in_order_and_every_jump_leads_to_one():
    ruleset = rendered(Family.IPV4, "no_local")
    assert tuple(ruleset.chains) == CHAINS
    assert [rule.text for rule in ruleset.jumps] == [jump.text for jump in JUMPS]
    assert all(Chain(jump.table, jump.target) in ruleset.chains for jump in JUMPS)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("masquerade_all", "dst,dst"),
        ("local_network", "dst,dst"),
        ("local_interface", "dst,dst"),
        ("local_prefix", "dst,dst"),
        ("no_local", "src,dst"),
    ],
)
def test_exactly_one_rule_masquerades_cluster_ips(name, match):
    rules = rendered(Family.IPV4, name).chains[Chain("nat", SERVICES)]
    (rule,) = [rule for rule in rules if "KUBE-CLUSTER-IP " in rule and rule.endswith("-j KUBE-MARK-MASQ")]
    assert f"KUBE-CLUSTER-IP {match} " in rule


@pytest.mark.parametrize("bit", [-1, 32])
def test_masquerade_bit_outside_a_mark_is_refused(bit):
    with pytest.raises(ValueError, match="bits 0 to 31"):
        Masquerading(masquerade_bit=bit)


@pytest.mark.parametrize(
    "interface",
    [
        Interface(""),
        Interface("a b"),
        Interface("eth0\n-A INPUT -j DROP"),
        Interface('x"'),
        Interface("a/b"),
        Interface("-j"),
        Interface("veth+"),
        Interface("sixteen-letters-"),
        Interface("fifteen-letters", is_prefix=True),
    ],
)
def test_what_is_no_interface_name_is_refused(interface):
    with pytest.raises(ValueError, match="network interface"):
        Masquerading(local=interface)


def test_longest_interface_name_is_accepted():
    assert Masquerading(local=Interface("fifteen-letters")).local == Interface("fifteen-letters")


@pytest.mark.parametrize(
    ("family", "network"), [(Family.IPV4, IPv6Network("fd00::/8")), (Family.IPV6, IPv4Network("10.0.0.0/8"))]
)
def test_local_network_of_the_other_family_is_refused(family, network):
    with pytest.raises(ValueError, match=f"not of the family {family.label}"):
        render(Masquerading(local=network), family=family, random_fully=True, bridge_netfilter=True)
