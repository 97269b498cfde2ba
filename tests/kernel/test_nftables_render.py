"""The rules of nftables as text. That the kernel takes them, and nft prints them so, is the ring's."""

from __future__ import annotations

import re
from ipaddress import ip_network

import pytest

from ipvs_proxy.kernel.filter.ipset.names import definitions as ipsets
from ipvs_proxy.kernel.filter.nftables.names import definitions, name_of
from ipvs_proxy.kernel.filter.nftables.render import Blocks, range_blocks, render
from ipvs_proxy.plan import roles
from ipvs_proxy.plan.masquerading import Interface, Masquerading
from ipvs_proxy.plan.roles import LEAVING, MARK_BITS
from ipvs_proxy.plan.tables import Family, Role

BOTH = {family: Masquerading(local=None) for family in Family}
RANGES = {family: roles.LOAD_BALANCER_SOURCE_CIDR[family] for family in Family}


def rules(settings: Masquerading, family: Family = Family.IPV4, lengths: dict[Role, set[int]] | None = None) -> Blocks:
    return render({family: settings}, lengths or {})


def test_every_role_but_those_of_bits_has_a_set_in_each_family() -> None:
    of_bits = {role for both in MARK_BITS.values() for role in both.values()}
    assert {one.role for one in definitions()} == {one.role for one in ipsets()} - of_bits
    names = [one.name for one in definitions()]
    assert len(names) == len(set(names))
    assert {name_of(role) for role in of_bits} == {role.purpose for role in of_bits}


def test_rules_refer_to_every_set_that_is_there_and_to_no_other() -> None:
    lengths = {role: {8, 24} for role in RANGES.values()}
    blocks = render(BOTH, lengths)
    sets = {name.partition(" ")[2] for name in blocks if not name.startswith("chain ")}
    referred = {word for lines in blocks.values() for line in lines for word in re.findall(r"@(\S+)", line)}
    ledger = {name_of(LEAVING[family]) for family in Family}
    assert referred == sets - ledger, "what drains is only noted there"
    assert {f"load-balancer-source-cidr{suffix}/{length}" for suffix in ("", "-6") for length in (8, 24)} <= sets


def test_jumps_lead_to_chains_that_are_there() -> None:
    blocks = render(BOTH, {})
    targets = {target for lines in blocks.values() for line in lines for target in re.findall(r"jump (\S+)", line)}
    bases = {name.removeprefix("chain ") for name, lines in blocks.items() if " hook " in lines[0]}
    chains = {name.removeprefix("chain ") for name in blocks if name.startswith("chain ")}
    assert targets | bases == chains
    assert not targets & bases


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        (Masquerading(masquerade_all=True), "{to} @cluster-ip {ask}"),
        (Masquerading(), "ip saddr . meta l4proto . th dport @cluster-ip {ask}"),
        (Masquerading(local=ip_network("10.244.0.0/16")), "ip saddr != 10.244.0.0/16 {to} @cluster-ip {ask}"),
        (Masquerading(local=Interface("cni0")), 'iifname != "cni0" {to} @cluster-ip {ask}'),
        (Masquerading(local=Interface("cali", is_prefix=True)), 'iifname != "cali*" {to} @cluster-ip {ask}'),
        (Masquerading(masquerade_bit=15), "ip saddr . meta l4proto . th dport @cluster-ip {other}"),
    ],
    ids=["everything", "nobody known", "a network", "an interface", "a prefix of interfaces", "another bit"],
)
def test_whose_connections_to_cluster_ips_are_masqueraded(settings: Masquerading, rule: str) -> None:
    wanted = rule.format(
        to="ip daddr . meta l4proto . th dport",
        ask="meta mark set meta mark | 0x00004000",
        other="meta mark set meta mark | 0x00008000",
    )
    chain = rules(settings)["chain services"]
    assert [line for line in chain if "@cluster-ip meta" in line] == [wanted]


def test_clients_in_the_cluster_get_marks_only_where_it_is_known_who_they_are() -> None:
    give = "meta mark set ip daddr . meta l4proto . th dport map @internal"
    local = Masquerading(local=ip_network("10.244.0.0/16"))
    assert rules(local)["chain clients"][-1] == f"ip saddr 10.244.0.0/16 ct state new {give}"
    assert not [line for line in rules(Masquerading())["chain clients"] if give in line]
    without = rules(Masquerading(masquerade_bit=13, local=ip_network("10.244.0.0/16")))
    assert not [name for name in without if "marks" in name or name in {"chain clients", "chain own-clients"}]
    assert not [name for name in without if name.endswith("-by-ipvs")]


@pytest.mark.parametrize(
    ("own", "rules_in_between"),
    [
        (None, ["{first} {instead}"]),
        ("10.244.1.0/24", ["{first} ip saddr != 10.244.1.0/24 {instead}"]),
        ("10.244.0.0/16", []),
    ],
    ids=["own pods unknown", "own pods are some of all", "own pods are all"],
)
def test_marks_of_pods_elsewhere_become_masquerading(own: str | None, rules_in_between: list[str]) -> None:
    pods = None if own is None else ip_network(own)
    chain = rules(Masquerading(local=ip_network("10.244.0.0/16"), own_pods=pods))["chain marks-end"]
    first, instead = "meta mark 0x00002000-0x00003fff ct status ! confirmed", "meta mark set 0x00004000"
    assert list(chain[2:-1]) == [rule.format(first=first, instead=instead) for rule in rules_in_between]
    assert chain[1] == f"{first} fib saddr type local {instead}"
    assert chain[-1] == "meta mark 0x00002000-0x00003fff meta mark set 0x00000000"


def test_ranges_are_asked_for_by_length_the_longest_first_and_whoever_is_in_none_is_dropped() -> None:
    chain = rules(Masquerading(), Family.IPV6, {RANGES[Family.IPV6]: {48, 128, 7}})["chain source-ranges-6"]
    asked = "ip6 daddr . meta l4proto . th dport . ip6 saddr"
    assert chain[1:] == (
        f"{asked} @load-balancer-source-cidr-6/128 return",
        f"{asked} & ffff:ffff:ffff:: @load-balancer-source-cidr-6/48 return",
        f"{asked} & fe00:: @load-balancer-source-cidr-6/7 return",
        f"{asked} @load-balancer-source-ip-6 return",
        "drop",
    )


def test_another_length_changes_only_its_set_and_the_chain_that_asks_for_it() -> None:
    lengths = {RANGES[Family.IPV4]: {8}}
    before, after = render(BOTH, {}), render(BOTH, lengths)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"set load-balancer-source-cidr/8", "chain source-ranges"}
    assert changed <= range_blocks(BOTH, lengths).keys()
    assert all(after[name] == lines for name, lines in range_blocks(BOTH, lengths).items())


@pytest.mark.parametrize("family", Family)
def test_a_local_network_of_the_other_family_is_refused(family: Family) -> None:
    other = "fd00::/48" if family is Family.IPV4 else "10.0.0.0/8"
    with pytest.raises(ValueError, match=f"is not of the family {family.label}"):
        rules(Masquerading(local=ip_network(other)), family)


@pytest.mark.parametrize("family", Family)
def test_a_node_of_one_family_has_rules_of_that_family_alone(family: Family) -> None:
    other = {Family.IPV4: r"\bip6 |icmpv6|nfproto ipv6", Family.IPV6: r"\bip (s|d)addr|icmp |nfproto ipv4"}[family]
    assert not [line for lines in rules(Masquerading(), family).values() for line in lines if re.search(other, line)]
