"""Which addresses are this node's own: what the API says, and what its interfaces have.

The API names the node by one address of each family, its node IPs. Node ports are served on addresses that interfaces
really have, and an external address that an interface has must not be put on the dummy link. Interfaces are given as
names with packed addresses; everything here is computed from its arguments alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final, Literal, NamedTuple

from ipvs_proxy.kube.objects import Node
from ipvs_proxy.plan.addresses import is_of, parse_address
from ipvs_proxy.plan.tables import Family, family_of

Network = IPv4Network | IPv6Network
Interfaces = Mapping[str, Collection[bytes]]

#: The link that carries the virtual servers' addresses: what is on it belongs to Services, not to the node.
SERVICE_LINK: Final = "kube-ipvs0"
#: The word in ``nodePortAddresses`` that means the node IPs.
PRIMARY: Final = "primary"
#: ``nodePortAddresses``: CIDRs and the word for the node IPs, in any mix (none: all addresses); the word may be alone.
NodePortAddresses = tuple[Network | Literal["primary"], ...] | Literal["primary"]

#: ``type`` of ``status.addresses``, in the order of preference (Kubernetes documentation, "Node status").
_ADDRESS_TYPES: Final = ("InternalIP", "ExternalIP")
_VERSIONS: Final = {Family.IPV4: 4, Family.IPV6: 6}
_IPV6_LOOPBACK: Final = bytes(15) + b"\1"
_PREFIX_LENGTH: Final = re.compile(r"[0-9]{1,3}")


class NodeIPs(NamedTuple):
    """The node's address of each family, packed, ``None`` where it is not known; ``primary`` is the node's family."""

    ipv4: bytes | None = None
    ipv6: bytes | None = None
    primary: Family = Family.IPV4

    def of(self, family: Family) -> bytes | None:
        """Return the node IP of a family."""
        return self.ipv4 if family is Family.IPV4 else self.ipv6

    @property
    def known(self) -> tuple[bytes, ...]:
        """The node IPs that are known, that of the primary family first."""
        ordered = (self.ipv4, self.ipv6) if self.primary is Family.IPV4 else (self.ipv6, self.ipv4)
        return tuple(address for address in ordered if address is not None)


def node_ips(node: Node | None, bind_address: bytes | None = None) -> NodeIPs:
    """Choose the node IPs by kube-proxy's rule.

    All ``InternalIP`` addresses come before all ``ExternalIP`` ones; the first of them decides on the primary family,
    and the first of each family is that family's. A bind address other than ``0.0.0.0`` and ``::`` takes the place of
    its family's and makes that family the primary one. An address that cannot be parsed is skipped.
    """
    found: dict[Family, bytes] = {}
    for address in _status_addresses(node):
        found.setdefault(family_of(address), address)
    primary = next(iter(found), Family.IPV4)
    if bind_address is not None and any(bind_address):
        primary = family_of(bind_address)
        found[primary] = bind_address
    return NodeIPs(found.get(Family.IPV4), found.get(Family.IPV6), primary)


def status_addresses(node: Node | None) -> frozenset[bytes]:
    """Return all addresses that a Node's status has, packed."""
    return frozenset(_status_addresses(node))


def node_port_addresses(
    interfaces: Interfaces, family: Family, *, cidrs: NodePortAddresses, ips: NodeIPs
) -> tuple[bytes, ...]:
    """Choose the addresses of one family that node ports are served on, sorted.

    These are the host addresses that one of the CIDRs contains, and with ``primary`` the node IP, if an interface has
    it. Where neither says anything of the family, all. Loopback and IPv6 link-local addresses never have node ports.

    Better than kube-proxy on purpose: addresses of kube-ipvs0 never get node ports, where kube-proxy serves them also
    on Services' addresses that the CIDRs happen to contain; and with ``primary`` a family without node IP gets none,
    where kube-proxy falls back to all addresses.
    """
    candidates = host_addresses(interfaces, family)
    elements = (PRIMARY,) if cidrs == PRIMARY else cidrs
    networks = [one for one in elements if not isinstance(one, str) and one.version == _VERSIONS[family]]
    primary = ips.of(family) if PRIMARY in elements else None
    if networks or PRIMARY in elements:
        candidates = frozenset(
            address
            for address in candidates
            if address == primary or any(ip_address(address) in network for network in networks)
        )
    return tuple(sorted(candidates))


def host_addresses(interfaces: Interfaces, family: Family) -> frozenset[bytes]:
    """Return the addresses of one family on every interface except kube-ipvs0, without those of ``is_confined``.

    An address that is on kube-ipvs0 and on another interface is the node's own: the Service has to give it up.
    """
    return frozenset(
        address
        for name, addresses in interfaces.items()
        if name != SERVICE_LINK
        for address in addresses
        if is_of(address, family) and not is_confined(address)
    )


def is_confined(address: bytes) -> bool:
    """Return whether an address means nothing beyond its host or link: IPv4 or IPv6 loopback, IPv6 link-local."""
    if len(address) == 4:
        return address[0] == 127
    return address == _IPV6_LOOPBACK or (address[0] == 0xFE and address[1] & 0xC0 == 0x80)


def pod_cidr(node: Node | None, family: Family) -> Network | None:
    """Return the first of ``spec.podCIDRs`` of a family, for ``detectLocalMode: NodeCIDR``; bad ones are skipped."""
    texts = (node.spec.pod_cidrs or ()) if node is not None else ()
    networks = map(_parse_network, texts)
    return next((found for found in networks if found is not None and found.version == _VERSIONS[family]), None)


def _status_addresses(node: Node | None) -> Iterator[bytes]:
    """Return the addresses of a Node's status in the order of preference."""
    listed = (node.status.addresses or ()) if node is not None else ()
    for kind in _ADDRESS_TYPES:
        for entry in listed:
            address = parse_address(entry.address) if entry.type == kind else None
            if address is not None:
                yield address


def _parse_network(text: str) -> Network | None:
    head, _, prefix_length = text.partition("/")
    address = parse_address(head)
    if address is None or not _PREFIX_LENGTH.fullmatch(prefix_length) or int(prefix_length) > len(address) * 8:
        return None
    return ip_network((address, int(prefix_length)), strict=False)
