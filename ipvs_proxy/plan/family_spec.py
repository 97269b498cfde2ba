"""What the spec of a Service says for one family: where it can be reached besides its cluster IP, and by whom.

The rules are those of kube-proxy: node ports, external IPs and ingress addresses count whatever the type of the
Service, and what cannot be read is left out with its reason.
"""

from __future__ import annotations

from collections.abc import Collection

from ipvs_proxy.kube.objects import Service
from ipvs_proxy.plan.addresses import is_of, is_special, parse_address, parse_network
from ipvs_proxy.plan.endpoints import Omission
from ipvs_proxy.plan.fragment import Context
from ipvs_proxy.plan.reach import cuts_off
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.tables import Family, Record

Network = tuple[bytes, int]


class FamilySpec(Record, frozen=True):
    """What the spec of a Service says for all its ports in one family.

    ``source_ranges`` are the networks (packed address, prefix length) that may use the load balancer's addresses; none
    means that everybody may. ``internal_local``: only endpoints of this node serve the cluster IP; ``external_local``:
    only they serve everything else. ``health_check_port`` is 0 if there is none.
    """

    external_ips: tuple[bytes, ...]
    load_balancer_ips: tuple[bytes, ...]
    source_ranges: tuple[Network, ...]
    internal_local: bool
    external_local: bool
    health_check_port: int


def read_family_spec(service: Service, family: Family, context: Context, omissions: list[Omission]) -> FamilySpec:
    """Read the spec of a Service for one family; what is malformed or not allowed becomes an omission."""
    spec = service.spec
    ingress = service.status.load_balancer.ingress or ()
    external_local = spec.external_traffic_policy == "Local" and (
        spec.type in {"LoadBalancer", "NodePort"} or (spec.type == "ClusterIP" and bool(spec.external_ips))
    )
    health_check_port = 0
    if external_local and spec.type == "LoadBalancer":
        health_check_port = spec.health_check_node_port
        if not health_check_port:
            omissions.append(Omission(_where(service), Reason.NO_HEALTH_CHECK_PORT))
    external_ips = spec.external_ips or ()
    if external_ips and not context.external_ips:
        omissions.append(Omission(f"{_where(service)} externalIPs", Reason.EXTERNAL_IPS_OFF))
        external_ips = ()
    # An ingress of mode Proxy is answered by the load balancer itself; one without address is a host name.
    load_balancer_ips = [found.ip for found in ingress if found.ip and found.ip_mode in {None, "VIP"}]
    return FamilySpec(
        _addresses(service, "externalIPs", external_ips, family, context, omissions),
        _addresses(service, "ingress", load_balancer_ips, family, context, omissions),
        _source_ranges(service, family, omissions),
        internal_local=spec.internal_traffic_policy == "Local",
        external_local=external_local,
        health_check_port=health_check_port,
    )


def _where(service: Service) -> str:
    return f"service {service.metadata.namespace}/{service.metadata.name}"


def _addresses(
    service: Service,
    field: str,
    texts: Collection[str],
    family: Family,
    context: Context,
    omissions: list[Omission],
) -> tuple[bytes, ...]:
    """Return the addresses of one family but for the API server's; an omission says where this node has one itself."""
    if not texts:
        return ()
    where = f"{_where(service)} {field}"
    found: dict[bytes, None] = {}
    for text in texts:
        address = parse_address(text.strip())
        if address is None or is_special(address):
            if text.strip():
                omissions.append(Omission(f"{where} {text}", Reason.INVALID_EXTERNAL_ADDRESS))
        elif is_of(address, family):
            if cuts_off(address, context):
                omissions.append(Omission(f"{where} {text}", Reason.API_SERVER_ADDRESS))
                continue
            if address in context.node_addresses:
                omissions.append(Omission(f"{where} {text}", Reason.NODE_ADDRESS))
            found[address] = None
    return tuple(found)


def _source_ranges(service: Service, family: Family, omissions: list[Omission]) -> tuple[Network, ...]:
    """Return the ranges of one family, or none if one of them holds every address."""
    texts = service.spec.load_balancer_source_ranges
    if not texts:
        return ()
    found: dict[Network, None] = {}
    for text in texts:
        network = parse_network(text)
        if network is None:
            where = f"{_where(service)} loadBalancerSourceRanges {text}"
            omissions.append(Omission(where, Reason.INVALID_SOURCE_RANGE))
        elif is_of(network[0], family):
            found[network] = None
    return () if any(length == 0 for _, length in found) else tuple(found)


def contains(network: Network, address: bytes) -> bool:
    """Return whether a network of the same family holds an address."""
    base, length = network
    shift = len(base) * 8 - length
    return int.from_bytes(address, "big") >> shift == int.from_bytes(base, "big") >> shift
