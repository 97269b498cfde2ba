"""Our rules beside a kube-proxy in another mode: chains of our own, in front of its own, and both can be told apart."""

from __future__ import annotations

import re
from ipaddress import IPv4Network

from ipvs_proxy.kernel.filter.iptables.chains import ALONE, BESIDE, Chain
from ipvs_proxy.kernel.filter.iptables.compare import differences, missing_jumps, our_rules, outdated, payload
from ipvs_proxy.kernel.filter.iptables.removal import (
    are_beside_kube_proxy,
    is_of_ipvs_mode,
    is_ours_beside_iptables_mode,
    removal,
)
from ipvs_proxy.kernel.filter.iptables.render import Ruleset, render
from ipvs_proxy.kernel.filter.iptables.saved import parse
from ipvs_proxy.plan.masquerading import Masquerading
from ipvs_proxy.plan.tables import Family
from tests.support.other_modes import SAVED

SETTINGS = Masquerading(local=IPv4Network("10.244.0.0/16"))
WANTED = render(SETTINGS, family=Family.IPV4, random_fully=True, bridge_netfilter=False, layout=BESIDE)
IPVS_MODE = render(SETTINGS, family=Family.IPV4, random_fully=True, bridge_netfilter=False)
#: Characters of a chain's name (``XT_EXTENSION_MAXNAMELEN`` of linux/netfilter/x_tables.h is 29, with a NUL).
LONGEST = 28


def printed(ruleset: Ruleset, *, kube_proxy_first: bool = False) -> str:
    """Return our rules and kube-proxy's in iptables mode, as ``iptables-save`` prints both."""
    text = ""
    for table in ("raw", "nat", "filter", "mangle"):
        theirs = SAVED.split(f"*{table}\n")[1].split("COMMIT")[0] if f"*{table}\n" in SAVED else ""
        jumps = [rule.text for rule in ruleset.jumps if rule.table == table]
        ours = [f":{chain.name} - [0:0]" for chain in ruleset.chains if chain.table == table]
        ours += [rule for chain, rules in ruleset.chains.items() if chain.table == table for rule in rules]
        built_in = "".join(f":{name} ACCEPT [0:0]\n" for name in ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"))
        parts = [*ours, theirs, *jumps] if kube_proxy_first else [*ours, *jumps, theirs]
        text += f"*{table}\n{built_in}" + "\n".join(parts) + "\nCOMMIT\n"
    return text


def test_no_chain_has_a_name_of_kube_proxy_and_no_rule_leads_to_one_of_it() -> None:
    assert all(chain.name.startswith("IPVS-PROXY-") and len(chain.name) <= LONGEST for chain in WANTED.chains)
    assert len(set(WANTED.chains)) == len(IPVS_MODE.chains)
    rules = [rule for rules in WANTED.chains.values() for rule in rules] + [rule.text for rule in WANTED.jumps]
    assert not [rule for rule in rules if re.search(r"-[Ajg] KUBE-", rule)]
    for chain, found in WANTED.chains.items():
        assert all(rule.startswith(f"-A {chain.name} ") for rule in found)
        targets = {Chain(chain.table, rule.split(" -j ")[1].split(" ")[0]) for rule in found}
        assert {target for target in targets if "PROXY" in target.name} <= set(WANTED.chains)


def test_rules_are_the_same_but_for_the_names_of_chains() -> None:
    for ours, theirs in zip(WANTED.chains.values(), IPVS_MODE.chains.values(), strict=True):
        assert [re.sub(r"-([Aj]) \S+", r"-\1", rule) for rule in ours] == [
            re.sub(r"-([Aj]) \S+", r"-\1", rule) for rule in theirs
        ]


def test_beside_kube_proxys_rules_ours_are_found_right_and_nothing_of_it_is_written() -> None:
    found = our_rules(parse(printed(WANTED)), BESIDE)
    assert differences(WANTED, found, layout=BESIDE) == []
    nothing = our_rules(parse(SAVED), BESIDE)
    assert nothing == Ruleset({}, (), ())
    assert "KUBE-" not in re.sub(r"--m\S+-set \S+", "", payload(WANTED, missing_jumps(WANTED, nothing)))


def test_jumps_behind_kube_proxys_are_put_in_front_together() -> None:
    found = our_rules(parse(printed(WANTED, kube_proxy_first=True)), BESIDE)
    late = differences(WANTED, found, layout=BESIDE)
    assert late == [
        "nat: jump from OUTPUT to IPVS-PROXY-SERVICES comes after that to KUBE-SERVICES",
        "nat: jump from PREROUTING to IPVS-PROXY-SERVICES comes after that to KUBE-SERVICES",
        "nat: jump from OUTPUT to IPVS-PROXY-OUTPUT comes after that to KUBE-SERVICES",
    ]
    text = payload(WANTED, missing_jumps(WANTED, found), former=outdated(found, BESIDE))
    moved = [line for line in text.splitlines() if line[:2] in {"-D", "-I"}]
    assert sorted(line[2:] for line in moved if line[1] == "D") == sorted(line[2:] for line in moved if line[1] == "I")
    inserted = [line.rsplit(" ", 1)[1] for line in moved if line.startswith("-I OUTPUT")]
    assert inserted == ["IPVS-PROXY-SERVICES", "IPVS-PROXY-OUTPUT"], "the last one inserted comes first"


def test_alone_again_the_chains_beside_kube_proxy_are_of_an_earlier_version() -> None:
    found = our_rules(parse(printed(WANTED)), ALONE)
    former = outdated(found)
    assert {chain.name for chain in former.chains} == {
        chain.name for chain in BESIDE.chains if chain not in ALONE.chains and WANTED.chains[chain]
    }
    text = payload(IPVS_MODE, missing_jumps(IPVS_MODE, found), former=former)
    assert '-D PREROUTING -m comment --comment "ipvs-proxy service portals" -j IPVS-PROXY-SERVICES' in text


def test_all_of_ours_is_removed_and_nothing_of_kube_proxy() -> None:
    found = removal(parse(printed(WANTED)), is_ours_beside_iptables_mode)
    assert (found.chains, found.jumps, found.kept) == (len(WANTED.chains), len(WANTED.jumps), ())
    assert "KUBE-" not in found.text


def test_where_ours_are_beside_kube_proxy_is_told_from_where_they_are_not() -> None:
    assert are_beside_kube_proxy(parse(printed(WANTED)))
    assert not are_beside_kube_proxy(parse(printed(IPVS_MODE)))
    assert not are_beside_kube_proxy(parse(SAVED))
    assert not any(is_of_ipvs_mode(chain) for chain in BESIDE.chains)
    kube_proxys = {Chain(table, name) for table, found in parse(SAVED).items() for name in found.chains}
    assert not any(is_of_ipvs_mode(chain) for chain in kube_proxys)
    assert is_of_ipvs_mode(Chain("nat", "KUBE-LOAD-BALANCER"))
