"""Which chains and jumps go, and which are somebody else's."""

from __future__ import annotations

import pytest

from ipvs_proxy.kernel.filter.iptables.chains import CHAINS, JUMPS, Chain
from ipvs_proxy.kernel.filter.iptables.iptables_mode import is_of_iptables_mode
from ipvs_proxy.kernel.filter.iptables.removal import is_ours, is_ours_beside_iptables_mode, removal
from ipvs_proxy.kernel.filter.iptables.render import render
from ipvs_proxy.kernel.filter.iptables.saved import parse
from ipvs_proxy.plan.masquerading import Masquerading
from ipvs_proxy.plan.tables import Family
from tests.support.other_modes import SAVED

BUILT_IN = {
    "raw": "PREROUTING OUTPUT",
    "nat": "PREROUTING INPUT OUTPUT POSTROUTING",
    "filter": "INPUT FORWARD OUTPUT",
    "mangle": "PREROUTING INPUT OUTPUT POSTROUTING",
}
OTHERS = {
    "raw": [],
    "nat": [":KUBE-KUBELET-CANARY - [0:0]", ":CNI-HOSTPORT - [0:0]", "-A PREROUTING -j CNI-HOSTPORT"],
    "filter": [":KUBE-FIREWALL - [0:0]", "-A INPUT -j KUBE-FIREWALL", "-A OUTPUT -j KUBE-FIREWALL"],
    "mangle": [":KUBE-IPTABLES-HINT - [0:0]", ":KUBE-KUBELET-CANARY - [0:0]"],
}


def saved(*, ours: bool = True, nat: tuple[str, ...] = (), bare: bool = False) -> str:
    """Return what ``iptables-save`` prints for our rules between those of others; ``bare``: jumps without comments."""
    rules = render(Masquerading(), family=Family.IPV4, random_fully=True, bridge_netfilter=False)
    lines: list[str] = []
    for table, built_in in BUILT_IN.items():
        chains = [chain for chain in CHAINS if ours and chain.table == table]
        jumps = [jump for jump in JUMPS if ours and jump.table == table]
        lines += [f"*{table}", *(f":{name} ACCEPT [0:0]" for name in built_in.split())]
        lines += [f":{chain.name} - [0:0]" for chain in chains]
        lines += [f"-A {jump.source} -j {jump.target}" if bare else jump.text for jump in jumps]
        lines += [*OTHERS[table], *(nat if table == "nat" else ())]
        lines += [rule for chain in chains for rule in rules.chains[chain]]
        lines.append("COMMIT")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("bare", [False, True])
def test_all_of_ours_goes_and_nothing_of_others_is_named(bare: bool) -> None:
    found = removal(parse(saved(bare=bare)), is_ours)
    assert (found.chains, found.jumps, found.kept) == (len(CHAINS), len(JUMPS), ())
    lines = found.text.splitlines()
    assert sum(line.startswith("-D ") for line in lines) == len(JUMPS)
    assert sum(line.startswith("-X ") for line in lines) == len(CHAINS)
    for name in ("CANARY", "HINT", "KUBE-FIREWALL", "CNI-HOSTPORT"):
        assert name not in found.text


def test_a_clean_node_gets_no_write() -> None:
    assert removal(parse(saved(ours=False)), is_ours) == ("", 0, 0, ())


@pytest.mark.parametrize(
    "rule",
    [
        "-A CNI-HOSTPORT -p tcp -j KUBE-MARK-MASQ",
        "-A PREROUTING -s 192.0.2.0/24 -j KUBE-MARK-MASQ",
        '-A OUTPUT -m comment --comment "my own kubernetes rule" -j KUBE-MARK-MASQ',
        "-A CNI-HOSTPORT -g KUBE-MARK-MASQ",
    ],
)
def test_a_rule_of_somebody_else_stays_and_its_chain_stays_empty(rule: str) -> None:
    found = removal(parse(saved(nat=(rule,))), is_ours)
    assert rule[3:] not in found.text
    assert "-X KUBE-MARK-MASQ" not in found.text
    assert ":KUBE-MARK-MASQ - [0:0]" in found.text
    (kept,) = found.kept
    assert kept.startswith("nat chain KUBE-MARK-MASQ, left empty: ")
    assert rule in kept
    # Found once more, empty: nothing is left to write.
    again = saved(ours=False, nat=(":KUBE-MARK-MASQ - [0:0]", rule))
    assert removal(parse(again), is_ours) == ("", 0, 0, (kept,))


def test_iptables_mode_goes_whole_if_asked_for() -> None:
    found = removal(parse(SAVED), lambda chain: is_ours(chain) or is_of_iptables_mode(chain))
    left = {line[1:].split(" ")[0] for line in SAVED.splitlines() if line.startswith(":") and " - " in line}
    left -= {line.removeprefix("-X ") for line in found.text.splitlines()}
    kubelets = {"KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY", "KUBE-FIREWALL"}
    assert left == {*kubelets, "MINE", "KUBE-SVC-ABCDEFGHIJKLMNOP"}
    assert len(found.kept) == 1
    assert "-D INPUT -j KUBE-FIREWALL" not in found.text
    assert sum(line.startswith("-D ") for line in found.text.splitlines()) == found.jumps == 9


def test_beside_iptables_mode_only_what_it_does_not_have_is_ours() -> None:
    assert removal(parse(SAVED), is_ours_beside_iptables_mode) == ("", 0, 0, ())
    assert is_ours_beside_iptables_mode(Chain("filter", "KUBE-IPVS-FILTER"))
    assert is_ours_beside_iptables_mode(Chain("mangle", "IPVS-PROXY-OUTPUT"))
    assert is_ours_beside_iptables_mode(Chain("raw", "IPVS-PROXY-OUTPUT"))
    assert is_ours_beside_iptables_mode(Chain("mangle", "IPVS-PROXY-PREROUTING")), "of an earlier version"


@pytest.mark.parametrize(
    "text", ["", "-A", "-A ", "-A X", "*nat", ":", ":X", "*\n-A INPUT -j", "\0*nat\n:KUBE-SERVICES"]
)
def test_garbage_is_nobodys(text: str) -> None:
    assert removal(parse(text), is_ours).kept == ()
