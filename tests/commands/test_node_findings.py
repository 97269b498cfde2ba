"""What ``doctor`` and ``migrate check`` both find, they say in the same words."""

from __future__ import annotations

from ipvs_proxy.commands.doctor import judge_kernel
from ipvs_proxy.commands.migrate import Standing, judge_node
from ipvs_proxy.commands.node_findings import Kind, find, finding_text
from ipvs_proxy.kernel.filter.iptables.programs import LEGACY, NF_TABLES, Iptables
from ipvs_proxy.node.inventory import Inventory
from ipvs_proxy.node.problem import Problem
from ipvs_proxy.plan.tables import Family
from ipvs_proxy.settings.merge import effective
from ipvs_proxy.settings.model import Settings

EVERYTHING = Inventory(
    kernel=(6, 12),
    iptables=Iptables(suffix="", backend=NF_TABLES, version=(1, 8, 9), reason="it is the node's default"),
    missing=[Problem("the kernel has no IPVS: none at all", "load ip_vs"), Problem("iptables could not be started")],
    unsupported={Family.IPV6: "it is off"},
    flaws=[Problem("IPv6 is not forwarded; it is off", "turn it on")],
    iptables_mode={("IPv4", LEGACY): 3, ("IPv6", LEGACY): 3, ("IPv4", NF_TABLES): 3},
    foreign=[f"192.0.2.{number}:80/TCP" for number in range(7)],
)
#: Kinds of a node that has a kube-proxy beside the agent.
BESIDE = {Kind.IPVS_MODE, Kind.NO_KUBE_PROXY, Kind.CLEARED}
CROWDED = Inventory(
    kernel=(6, 12),
    beside=True,
    ipvs_mode={("IPv4", NF_TABLES): 6},
    nftables_mode=(Family.IPV4,),
    iptables_mode={("IPv4", LEGACY): 3},
)


def test_each_kind_is_found_and_both_commands_have_it_in_the_same_words() -> None:
    found = list(find(EVERYTHING))
    assert list(dict.fromkeys(finding.kind for finding in found)) == [kind for kind in Kind if kind not in BESIDE]
    words = {finding[1:] for finding in found}
    assert len(words) == len(found), "each once"
    assert words <= {(one.topic, one.text, one.remedy) for one in judge_kernel(EVERYTHING)}
    assert words <= {(one.topic, one.text, one.remedy) for one in judge_node(EVERYTHING, Settings(node_name="n"), {})}


def test_kinds_beside_a_kube_proxy_are_found_by_both_commands_too() -> None:
    lonely, settings = Inventory(kernel=(6, 12), beside=True), effective({"service_proxy_name": "ipvs"})
    assert [finding.kind for finding in find(CROWDED, beside=True)] == [Kind.IPVS_MODE, Kind.CLEARED]
    assert [finding.kind for finding in find(lonely, beside=True)] == [Kind.NO_KUBE_PROXY]
    for inventory in (CROWDED, lonely):
        words = {finding[1:] for finding in find(inventory, beside=True)}
        assert words <= {(one.topic, one.text, one.remedy) for one in judge_kernel(inventory)}
        assert words <= {(one.topic, one.text, one.remedy) for one in judge_node(inventory, settings, {})}


def test_rules_in_both_variants_of_iptables_are_no_trouble_for_nftables_which_takes_both_away() -> None:
    found = Inventory(kernel=(6, 12), packet_filter="nftables", iptables_mode=EVERYTHING.iptables_mode)
    assert Kind.RULES_IN_OTHER_VARIANT not in {finding.kind for finding in find(found)}
    changes = [one for one in judge_node(found, Settings(node_name="n"), {}) if one.standing is Standing.CHANGE]
    assert len([one for one in changes if "removed then" in one.text]) == len(EVERYTHING.iptables_mode)


def test_virtual_servers_of_others_are_counted_and_some_are_named() -> None:
    (text,) = (finding.text for finding in find(EVERYTHING) if finding.kind is Kind.FOREIGN_VIRTUAL_SERVERS)
    assert text.startswith("7 virtual servers of others, which stay: 192.0.2.0:80/TCP, ")
    assert text.endswith("192.0.2.4:80/TCP and 2 more")


def test_finding_without_a_remedy_has_no_arrow() -> None:
    assert finding_text("bad  ", "it is broken", "", width=20) == "bad  it is broken\n"
    assert finding_text("bad  ", "it is broken", "mend it", width=20) == "bad  it is broken\n     -> mend it\n"
