"""What belongs to kube-proxy's iptables mode, and the text that removes it."""

from __future__ import annotations

from ipvs_proxy.kernel.filter.iptables.iptables_mode import chains_of, takedown
from ipvs_proxy.kernel.filter.iptables.saved import parse
from tests.support.other_modes import SAVED


def test_only_chains_that_ipvs_mode_does_not_have_are_leftovers() -> None:
    assert chains_of(parse(SAVED)) == {
        "mangle": ["KUBE-PROXY-CANARY"],
        "nat": [
            "KUBE-EXT-ABCDEFGHIJKLMNOP",
            "KUBE-NODEPORTS",
            "KUBE-PROXY-CANARY",
            "KUBE-SEP-ABCDEFGHIJKLMNOP",
            "KUBE-SVC-ABCDEFGHIJKLMNOP",
        ],
        "filter": ["KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "KUBE-PROXY-CANARY", "KUBE-SERVICES"],
    }


def test_what_leads_there_goes_and_what_others_lead_to_stays_empty() -> None:
    lines = takedown(parse(SAVED)).splitlines()
    assert sorted(line for line in lines if line.startswith("-D")) == [
        '-D FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        '-D INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS',
        "-D INPUT -m conntrack --ctstate NEW -m comment --comment "
        '"kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES',
        "-D INPUT -m conntrack --ctstate NEW -m comment --comment "
        '"kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL',
        '-D OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
    ]
    assert ":KUBE-SVC-ABCDEFGHIJKLMNOP - [0:0]" in lines
    assert "-X KUBE-SVC-ABCDEFGHIJKLMNOP" not in lines
    assert "-X KUBE-SEP-ABCDEFGHIJKLMNOP" in lines


def test_what_is_kubelets_ours_or_anybodys_is_not_named() -> None:
    text = takedown(parse(SAVED))
    for name in ("KUBELET", "HINT", "KUBE-FIREWALL", "KUBE-FORWARD", "MARK-MASQ", "POSTROUTING", "MINE"):
        assert name not in text


def test_a_clean_node_gets_no_write() -> None:
    clean = "\n".join(line for line in SAVED.splitlines() if "KUBE-" not in line)
    assert chains_of(parse(clean)) == {}
    assert takedown(parse(clean)) == ""
