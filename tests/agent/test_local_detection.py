"""How clients are told to be pods of the cluster, from the configuration and the own Node."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from ipvs_proxy.agent.local_detection import adapt_rules, masquerading
from ipvs_proxy.kernel.filter.ipset_iptables import IpsetIptables
from ipvs_proxy.kube.objects import Node, NodeSpec, ObjectMeta
from ipvs_proxy.plan.masquerading import Interface, Masquerading
from ipvs_proxy.plan.tables import Family
from ipvs_proxy.settings.model import Settings

PODS, PODS6 = ip_network("10.244.0.0/16"), ip_network("fd00:10:244::/56")
OWN, OWN6 = ip_network("10.244.1.0/24"), ip_network("fd00:10:244:1::/64")
NODE = Node(ObjectMeta("node"), NodeSpec(pod_cidrs=[str(OWN), str(OWN6)]))

TABLE: dict[str, tuple[dict[str, Any], Node | None, Any, Any]] = {
    "a network of each family": ({"cluster_cidrs": (PODS, PODS6)}, None, PODS, PODS6),
    "a network of one family": ({"cluster_cidrs": (PODS6,)}, NODE, None, PODS6),
    "nothing": ({}, NODE, None, None),
    "the node's own pods": ({"detect_local_mode": "NodeCIDR"}, NODE, OWN, OWN6),
    "the node's own pods, not known yet": ({"detect_local_mode": "NodeCIDR"}, None, None, None),
    "a bridge": (
        {"detect_local_mode": "BridgeInterface", "bridge_interface": "cbr0"},
        NODE,
        Interface("cbr0"),
        Interface("cbr0"),
    ),
    "interfaces with a prefix": (
        {"detect_local_mode": "InterfaceNamePrefix", "interface_name_prefix": "veth"},
        NODE,
        Interface("veth", is_prefix=True),
        Interface("veth", is_prefix=True),
    ),
}


@pytest.mark.parametrize(("fields", "node", "ipv4", "ipv6"), TABLE.values(), ids=TABLE)
def test_local_pods_by_family(fields: dict[str, Any], node: Node | None, ipv4: object, ipv6: object) -> None:
    settings = Settings("node", **fields)
    assert masquerading(settings, Family.IPV4, node).local == ipv4
    assert masquerading(settings, Family.IPV6, node).local == ipv6


class Rules:
    """The rules of one family, as far as they have settings."""

    writes = 0

    def __init__(self, settings: Masquerading) -> None:
        self.settings = settings


def test_rules_are_written_again_only_if_the_node_changes_them() -> None:
    settings = Settings("node", cluster_cidrs=(PODS,))
    rules: Any = {family: Rules(masquerading(settings, family, None)) for family in Family}
    unused: Any = None
    packet_filter = IpsetIptables(unused, rules, unused)
    assert adapt_rules(packet_filter, settings, NODE)
    assert packet_filter.settings[Family.IPV4].own_pods == OWN
    assert not adapt_rules(packet_filter, settings, NODE)
