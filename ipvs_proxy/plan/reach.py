"""The way to the API server, which no Service may take from this agent: it would never hear of the correction.

What is on our link is this node's own address, so nothing that is sent there leaves the node; and what is sent to the
address and port of a virtual server goes to its endpoints. External addresses and node ports are chosen by whoever may
create a Service. A cluster IP is given out by the API server: it may be the address of the API server if the Service
serves there what the agent uses, as ``default/kubernetes`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from ipvs_proxy.kube.objects import EndpointSlice, Service
from ipvs_proxy.plan.addresses import parse_address
from ipvs_proxy.plan.endpoints import gather
from ipvs_proxy.plan.fragment import ApiServers, Context
from ipvs_proxy.plan.tables import Family, Protocol, VirtualServerKey


def api_servers(peers: Collection[tuple[bytes, int]], slices: Iterable[EndpointSlice]) -> ApiServers:
    """Return where the API server is reached: at the other ends of connections, and at its Service's endpoints.

    The connections may lead to that Service's cluster IP, or to a balancer on this node, and so on to its endpoints.
    Without connections there are none: nothing can be cut off.
    """
    if not peers:
        return {}
    found: dict[bytes, set[int]] = {}
    for address, port in peers:
        found.setdefault(address, set()).add(port)
    pieces = list(slices)
    for family in Family:
        for (_, protocol), endpoints in gather(pieces, family, "").endpoints.items():
            if protocol is Protocol.TCP:
                for address, port in endpoints:
                    found.setdefault(address, set()).add(port)
    return {address: frozenset(ports) for address, ports in found.items()}


def cuts_off(address: bytes, context: Context) -> bool:
    """Return whether this address on our link would cut this node off from the API server."""
    return address in context.api_servers and address not in context.host_addresses


def takes_place(key: VirtualServerKey, context: Context) -> bool:
    """Return whether a virtual server would get the agent's connections to the API server."""
    return key.protocol == Protocol.TCP and key.port in context.api_servers.get(key.address, ())


def may_be_cluster_ip(address: bytes, service: Service, context: Context) -> bool:
    """Return whether a Service may have an address as cluster IP: the API server's only if it is reached through it."""
    used = context.api_servers.get(address)
    return used is None or used <= {port.port for port in service.spec.ports or () if port.protocol == "TCP"}


def concerned(before: Context, after: Context) -> Callable[[Service], bool]:
    """Return a function that says whether a Service's plan may change now that facts of the node have changed."""
    if before.zone != after.zone:
        return lambda _: True
    only_servers = before == after._replace(api_servers=before.api_servers)
    pairs = before.api_servers.items() ^ after.api_servers.items()
    addresses = {address for address, _ in pairs}
    ports = {port for address, found in pairs if address in after.host_addresses for port in found}

    def is_concerned(service: Service) -> bool:
        if not only_servers and reaches_outside(service):
            return True
        return bool(addresses) and (_is_at(service, addresses) or _has_node_port(service, ports))

    return is_concerned


def reaches_outside(service: Service) -> bool:
    """Return whether what a Service asks for depends on the addresses of this node."""
    spec = service.spec
    outside = spec.external_ips or service.status.load_balancer.ingress or spec.health_check_node_port
    return bool(outside) or any(port.node_port for port in spec.ports or ())


def _is_at(service: Service, addresses: Collection[bytes]) -> bool:
    spec = service.spec
    ingress = service.status.load_balancer.ingress or ()
    texts = [spec.cluster_ip, *(spec.cluster_ips or ()), *(spec.external_ips or ()), *(found.ip for found in ingress)]
    return any(parse_address(text.strip()) in addresses for text in texts if text)


def _has_node_port(service: Service, ports: Collection[int]) -> bool:
    spec = service.spec
    return spec.health_check_node_port in ports or any(port.node_port in ports for port in spec.ports or ())
