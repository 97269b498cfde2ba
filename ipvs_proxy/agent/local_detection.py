"""Which clients are pods of the cluster: what ``detectLocalMode`` means for the packet rules.

The mode and its arguments are kube-proxy's. What the rules need of the own Node, the network of its pods, can change
while the agent runs: then the rules of the families concerned are written again.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from ipvs_proxy.kernel.filter.backend import PacketFilter
from ipvs_proxy.kube.objects import Node
from ipvs_proxy.plan.masquerading import Interface, RuleSettings
from ipvs_proxy.plan.node_addresses import pod_cidr
from ipvs_proxy.plan.tables import Family
from ipvs_proxy.settings.merge import Settings


def rule_settings(settings: Settings, family: Family, node: Node | None) -> RuleSettings:
    """Return what the configuration and the own Node say about the rules of one family."""
    own_pods = pod_cidr(node, family)
    version = 4 if family is Family.IPV4 else 6
    local: IPv4Network | IPv6Network | Interface | None
    match settings.detect_local_mode:
        case "NodeCIDR":
            local = own_pods
        case "BridgeInterface":
            local = Interface(settings.bridge_interface)
        case "InterfaceNamePrefix":
            local = Interface(settings.interface_name_prefix, is_prefix=True)
        case _:
            local = next((network for network in settings.cluster_cidrs if network.version == version), None)
    return RuleSettings(
        masquerade_bit=settings.masquerade_bit,
        masquerade_all=settings.masquerade_all,
        local=local,
        own_pods=own_pods,
    )


def adapt_rules(packet_filter: PacketFilter, settings: Settings, node: Node | None) -> bool:
    """Have the rules follow the own Node; return whether they must be written again."""
    return packet_filter.follow({family: rule_settings(settings, family, node) for family in packet_filter.settings})
