"""Which clients are pods of the cluster: what ``detectLocalMode`` means for masquerading.

The modes and their arguments are kube-proxy's. What depends on this node's Node object, the network of its pods, can
change while the agent runs; then the rules of the families concerned are written again.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from ipvs_proxy.kernel.filter.backend import PacketFilter
from ipvs_proxy.kube.objects import Node
from ipvs_proxy.plan.masquerading import Interface, Masquerading
from ipvs_proxy.plan.node_addresses import pod_cidr
from ipvs_proxy.plan.tables import Family
from ipvs_proxy.settings.model import Settings


def masquerading(settings: Settings, family: Family, node: Node | None) -> Masquerading:
    """Return which connections of a family are masqueraded; ``node`` is this node's object, ``None`` if not known."""
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
    return Masquerading(
        masquerade_bit=settings.masquerade_bit,
        masquerade_all=settings.masquerade_all,
        local=local,
        own_pods=own_pods,
    )


def adapt_rules(packet_filter: PacketFilter, settings: Settings, node: Node | None) -> bool:
    """Have the rules follow the own Node; return whether they must be written again."""
    return packet_filter.follow({family: masquerading(settings, family, node) for family in packet_filter.settings})
