"""What kube-proxy left in its iptables and nftables modes goes, and nothing else, in a real kernel."""

from __future__ import annotations

from contextlib import closing

import pytest

from ipvs_proxy.kernel.filter import predecessors
from ipvs_proxy.kernel.filter.ipset_iptables import IpsetIptables, open_ipset_iptables
from ipvs_proxy.kernel.filter.iptables.programs import NF_TABLES, Iptables
from ipvs_proxy.plan.masquerading import Masquerading
from ipvs_proxy.plan.tables import Family
from tests.support.namespaces import fresh_namespace, missing_piece, run
from tests.support.other_modes import SAVED

pytestmark = pytest.mark.skipif(missing_piece() is not None, reason=str(missing_piece()))

NFT = Iptables(suffix="-nft", backend=NF_TABLES, version=(1, 8, 9), reason="test")
PROGRAMS = {Family.IPV4: "iptables-nft", Family.IPV6: "ip6tables-nft"}


@pytest.fixture(autouse=True)
def namespace():
    with fresh_namespace():
        yield


def opened(*families: Family) -> closing[IpsetIptables]:
    return closing(open_ipset_iptables({family: Masquerading() for family in families}, NFT))


def saved(family: Family) -> list[str]:
    return [line.split(" [")[0] for line in run(f"{PROGRAMS[family]}-save").splitlines() if line[:1] in ":-*"]


def iptables_mode(family: Family) -> str:
    """Return the rules as iptables mode has them in a family."""
    if family is Family.IPV4:
        return SAVED
    text = SAVED.replace("10.244.1.2:8080", "[fd00::2]:8080").replace("icmp-port", "icmp6-port")
    return text.replace("10.96.0.8", "fd00::8").replace("203.0.113.9", "fd00::9").replace("/32", "/128")


@pytest.mark.parametrize("family", Family)
def test_iptables_mode_is_replaced_by_ours_and_then_removed(family: Family) -> None:
    NFT.restore(family, iptables_mode(family))
    with opened(family) as packet_filter:
        assert packet_filter.find_other_modes() == [f"{family.label}: 10 chains of iptables mode"]
        packet_filter.ensure()
        packet_filter.repair()
        ours = saved(family)
        assert packet_filter.remove_other_modes() == [f"{family.label}: 10 chains of iptables mode"]
        assert packet_filter.drift() == []
    gone = [line for line in ours if line not in saved(family)]
    assert all("KUBE-" in line for line in gone)
    left = "\n".join(saved(family))
    for name in ("KUBE-SEP-", "KUBE-EXT-", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-CANARY"):
        assert name not in left
    # A chain that a rule of somebody else leads to stays, empty; kubelet's are as they were.
    for line in ("-A MINE -d", ":KUBE-SVC-ABCDEFGHIJKLMNOP -", ":KUBE-KUBELET-CANARY -", ":KUBE-FIREWALL -"):
        assert line in left


def test_a_clean_node_gets_no_write() -> None:
    before = saved(Family.IPV4)
    with opened(*Family) as packet_filter:
        assert packet_filter.find_other_modes() == []
        assert packet_filter.remove_other_modes() == []
    assert saved(Family.IPV4) == before


def test_the_tables_of_nftables_mode_go_and_others_stay() -> None:
    for family in ("ip", "ip6"):
        run("nft", "add", "table", family, "kube-proxy")
        run("nft", "add", "chain", family, "kube-proxy", "services")
    run("nft", "add", "table", "ip", "mine")
    both = ["IPv4: the table of nftables mode", "IPv6: the table of nftables mode"]
    with opened(*Family) as packet_filter:
        assert packet_filter.find_other_modes() == both
        assert packet_filter.remove_other_modes() == both
        tables = run("nft", "list", "tables")
        assert "kube-proxy" not in tables
        assert "table ip mine" in tables
        assert packet_filter.find_other_modes() == []


def all_saved(program: str) -> list[str]:
    return [line.split(" [")[0] for line in run(f"{program}-save").splitlines() if line[:1] in ":-*"]


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_nftables_takes_both_modes_of_iptables_away_and_leaves_what_others_need(family: Family, variant: str) -> None:
    """The variant nf_tables without iptables' programs, which are here only to look."""
    programs = Iptables(
        suffix=f"-{variant}", backend="legacy" if variant == "legacy" else NF_TABLES, version=(1, 8, 9), reason="test"
    )
    with opened(family) as packet_filter:
        packet_filter.ensure()
        text = iptables_mode(family)
        programs.restore(family, text)
        if variant == "nft":
            packet_filter.repair()
        found = predecessors.find_iptables(beside_kube_proxy=False)
        assert found[0].startswith(f"{family.label}: ")
        assert found[1:] == [f"{len(run('ipset', 'list', '-n').split())} ipsets"]
        predecessors.remove_iptables(beside_kube_proxy=False)
    left = all_saved(f"{'ip' if family is Family.IPV4 else 'ip6'}tables-{variant}")
    named = {line for line in left if "KUBE-" in line or "IPVS-PROXY" in line}
    address = "203.0.113.9/32" if family is Family.IPV4 else "fd00::9/128"
    assert named == {
        ":KUBE-IPTABLES-HINT -",
        ":KUBE-KUBELET-CANARY -",
        ":KUBE-FIREWALL -",
        "-A INPUT -j KUBE-FIREWALL",
        ":KUBE-SVC-ABCDEFGHIJKLMNOP -",
        f"-A MINE -d {address} -j KUBE-SVC-ABCDEFGHIJKLMNOP",
    }
    assert run("ipset", "list", "-n") == ""


def test_beside_a_kube_proxy_nftables_takes_nothing_of_its_modes_away() -> None:
    NFT.restore(Family.IPV4, iptables_mode(Family.IPV4))
    before = saved(Family.IPV4)
    assert predecessors.find_iptables(beside_kube_proxy=True) == []
    predecessors.remove_iptables(beside_kube_proxy=True)
    assert saved(Family.IPV4) == before
