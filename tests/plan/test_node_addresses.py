"""Which addresses are the node's own, as tables."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from ipvs_proxy.kube.objects import Node, NodeAddress, NodeSpec, NodeStatus, ObjectMeta
from ipvs_proxy.plan.node_addresses import (
    PRIMARY,
    NodeIPs,
    host_addresses,
    is_confined,
    node_ips,
    node_port_addresses,
    pod_cidr,
    status_addresses,
)
from ipvs_proxy.plan.tables import Family, text_of
from tests.support.objects import packed

IPV4, IPV6 = Family.IPV4, Family.IPV6


def node(*addresses: tuple[str, str], pod_cidrs: list[str] | None = None) -> Node:
    status = NodeStatus([NodeAddress(kind, address) for kind, address in addresses] or None)
    return Node(ObjectMeta("here"), NodeSpec(pod_cidrs=pod_cidrs), status)


def interfaces(text: str) -> dict[str, set[bytes]]:
    """Read ``eth0 10.0.0.1 fd00::1, lo ::1``."""
    words = [part.split() for part in text.split(",") if part.strip()]
    return {name: {packed(address) for address in addresses} for name, *addresses in words}


def texts(addresses: object) -> str:
    return " ".join(map(text_of, addresses))  # type: ignore[arg-type]


INTERNAL, EXTERNAL = "InternalIP", "ExternalIP"


@pytest.mark.parametrize(
    ("addresses", "bind", "known", "primary"),
    [
        # Nothing is known of a node without addresses.
        ([], None, "", IPV4),
        ([("Hostname", "10.0.0.9"), ("InternalDNS", "fd00::9")], None, "", IPV4),
        # The first address decides on the primary family.
        ([(INTERNAL, "10.0.0.1")], None, "10.0.0.1", IPV4),
        ([(INTERNAL, "fd00::1")], None, "fd00::1", IPV6),
        ([(INTERNAL, "10.0.0.1"), (INTERNAL, "fd00::1")], None, "10.0.0.1 fd00::1", IPV4),
        ([(INTERNAL, "fd00::1"), (INTERNAL, "10.0.0.1")], None, "fd00::1 10.0.0.1", IPV6),
        # The first of each family counts.
        ([(INTERNAL, "10.0.0.1"), (INTERNAL, "10.0.0.2"), (INTERNAL, "fd00::1")], None, "10.0.0.1 fd00::1", IPV4),
        # Internal ones come first, wherever they are in the list.
        ([(EXTERNAL, "192.0.2.1"), (INTERNAL, "10.0.0.1")], None, "10.0.0.1", IPV4),
        ([(EXTERNAL, "192.0.2.1"), (INTERNAL, "fd00::1")], None, "fd00::1 192.0.2.1", IPV6),
        ([(EXTERNAL, "192.0.2.1")], None, "192.0.2.1", IPV4),
        # What is malformed is skipped; leading zeros are decimal.
        ([(INTERNAL, "10.0.0.256"), (INTERNAL, ""), (INTERNAL, "10.0.0.2")], None, "10.0.0.2", IPV4),
        ([(INTERNAL, "nonsense"), (EXTERNAL, "192.0.2.1")], None, "192.0.2.1", IPV4),
        ([(INTERNAL, "010.0.0.1")], None, "10.0.0.1", IPV4),
        # A bind address overrides its family's and makes it the primary one.
        ([(INTERNAL, "10.0.0.1"), (INTERNAL, "fd00::1")], "10.0.0.5", "10.0.0.5 fd00::1", IPV4),
        ([(INTERNAL, "10.0.0.1"), (INTERNAL, "fd00::1")], "fd00::5", "fd00::5 10.0.0.1", IPV6),
        ([(INTERNAL, "10.0.0.1")], "fd00::5", "fd00::5 10.0.0.1", IPV6),
        ([], "fd00::5", "fd00::5", IPV6),
        ([(INTERNAL, "fd00::1")], "0.0.0.0", "fd00::1", IPV6),
        ([(INTERNAL, "10.0.0.1")], "::", "10.0.0.1", IPV4),
    ],
)
def test_node_ips(addresses: list[tuple[str, str]], bind: str | None, known: str, primary: Family) -> None:
    ips = node_ips(node(*addresses), None if bind is None else packed(bind))
    assert (texts(ips.known), ips.primary) == (known, primary)
    assert {ips.of(IPV4), ips.of(IPV6)} - {None} == set(ips.known)
    assert ips.of(IPV4) is None or len(ips.of(IPV4)) == 4


def test_a_node_that_was_never_seen_has_no_ips() -> None:
    assert node_ips(None) == NodeIPs(None, None, IPV4)
    assert pod_cidr(None, IPV4) is None


# The cases of kube-proxy's TestGetNodeIPs, each with both families.
UPSTREAM = [
    ("eth0 1.2.3.4, lo 127.0.0.1", "1.2.3.4", ""),
    ("lo 127.0.0.1", "", ""),
    ("", "", ""),
    ("encap0 10.20.30.40 fe80::200:ff:fe01:1, lo 127.0.0.1 ::1, docker0 172.17.0.1", "10.20.30.40 172.17.0.1", ""),
    ("encaps9 10.20.30.40, lo 127.0.0.1 ::1, encap7 1000:: 10.20.30.31", "10.20.30.31 10.20.30.40", "1000::"),
    ("kube-ipvs0 2000:: 1.2.3.4, lo 127.0.0.1 ::1, encap7 1000:: 10.20.30.31", "10.20.30.31", "1000::"),
    ("kube-ipvs0 1.2.3.4 2.3.4.5, lo 127.0.0.1 ::1", "", ""),
    ("kube-ipvs0 1.2.3.4 2.3.4.5", "", ""),
    ("kube-ipvs0 1.2.3.4 2.3.4.5, eth5 3.4.5.6, lo 127.0.0.1 ::1", "3.4.5.6", ""),
    ("ipvs0 1.2.3.4, lo 127.0.0.1 ::1, encap7 10.20.30.31", "1.2.3.4 10.20.30.31", ""),
    (
        "ipvs0 1.2.3.4 1000::, lo 127.0.0.1 ::1, encap7 10.20.30.31 2000:: fe80::200:ff:fe01:1",
        "1.2.3.4 10.20.30.31",
        "1000:: 2000::",
    ),
    # That test takes what is on kube-ipvs0 away from everything; kube-proxy itself leaves only the interface out, and
    # so do we: an address that another interface has too is the node's.
    (
        "ipvs0 1.2.3.4 1000::, lo 127.0.0.1 ::1, encap7 10.20.30.31 2000:: fe80::200:ff:fe01:1, kube-ipvs0 1.2.3.4 2.3.4.5 2000::",
        "1.2.3.4 10.20.30.31",
        "1000:: 2000::",
    ),
]


@pytest.mark.parametrize(("found", "ipv4", "ipv6"), UPSTREAM)
def test_host_addresses_and_those_of_node_ports_without_cidrs(found: str, ipv4: str, ipv6: str) -> None:
    for family, wanted in ((IPV4, ipv4), (IPV6, ipv6)):
        assert texts(sorted(host_addresses(interfaces(found), family))) == wanted
        assert texts(node_port_addresses(interfaces(found), family, cidrs=(), ips=NodeIPs())) == wanted


NODE = (
    "lo 127.0.0.1 ::1 10.255.0.1, eth0 10.0.0.1 10.0.0.2 192.0.2.1 fd00::1 2001:db8::1 fe80::1, wan0 169.254.7.7,"
    "kube-ipvs0 10.0.0.99 fd00::99 fe80::99"
)


@pytest.mark.parametrize(
    ("cidrs", "ipv4", "ipv6"),
    [
        ("10.0.0.0/24 fd00::/16", "10.0.0.1 10.0.0.2", "fd00::1"),
        ("10.0.0.2/32 2001:db8::1/128", "10.0.0.2", "2001:db8::1"),
        # A family without a CIDR has all of its addresses.
        ("10.0.0.0/24", "10.0.0.1 10.0.0.2", "2001:db8::1 fd00::1"),
        ("fd00::/16", "10.0.0.1 10.0.0.2 10.255.0.1 169.254.7.7 192.0.2.1", "fd00::1"),
        # A CIDR of length zero counts for more than all others of its family.
        ("192.0.2.0/24 0.0.0.0/0 fd00::/16", "10.0.0.1 10.0.0.2 10.255.0.1 169.254.7.7 192.0.2.1", "fd00::1"),
        ("::/0 fd00::/16 192.0.2.0/24", "192.0.2.1", "2001:db8::1 fd00::1"),
        # Several CIDRs add up, also where they overlap.
        ("10.0.0.0/8 10.0.0.1/32 192.0.2.1/32 fd00::/8", "10.0.0.1 10.0.0.2 10.255.0.1 192.0.2.1", "fd00::1"),
        # None of the node's, loopback, IPv6 link-local, and only on kube-ipvs0.
        ("198.51.100.0/24 fd11::/16", "", ""),
        ("127.0.0.0/8 ::1/128", "", ""),
        ("169.254.0.0/16 fe80::/10", "169.254.7.7", ""),
        ("10.0.0.99/32 fd00::99/128", "", ""),
    ],
)
def test_addresses_of_node_ports_in_cidrs(cidrs: str, ipv4: str, ipv6: str) -> None:
    networks = tuple(map(ip_network, cidrs.split()))
    for family, wanted in ((IPV4, ipv4), (IPV6, ipv6)):
        assert texts(node_port_addresses(interfaces(NODE), family, cidrs=networks, ips=NodeIPs())) == wanted


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "wanted"),
    [
        ("10.0.0.2", "2001:db8::1", ("10.0.0.2", "2001:db8::1")),
        # A family whose node IP is not known has no node ports at all.
        ("10.0.0.2", None, ("10.0.0.2", "")),
        (None, None, ("", "")),
        # Not on an interface, loopback, only on kube-ipvs0.
        ("203.0.113.1", "::1", ("", "")),
        ("127.0.0.1", "fe80::1", ("", "")),
        ("10.0.0.99", "fd00::99", ("", "")),
    ],
)
def test_primary_means_the_node_ips_that_interfaces_have(
    ipv4: str | None, ipv6: str | None, wanted: tuple[str, str]
) -> None:
    ips = NodeIPs(None if ipv4 is None else packed(ipv4), None if ipv6 is None else packed(ipv6))
    found = [node_port_addresses(interfaces(NODE), family, cidrs=PRIMARY, ips=ips) for family in (IPV4, IPV6)]
    assert tuple(map(texts, found)) == wanted


@pytest.mark.parametrize(
    ("elements", "ipv4", "ipv6"),
    [
        (("primary", "169.254.0.0/16"), "10.0.0.2 169.254.7.7", "2001:db8::1"),
        (("169.254.0.0/16",), "169.254.7.7", None),
        (("primary", "127.0.0.0/8"), "10.0.0.2", "2001:db8::1"),
        (("0.0.0.0/0", "primary"), None, "2001:db8::1"),
        (("0.0.0.0/0", "::/0"), None, None),
    ],
)
def test_words_and_cidrs_mix(elements: tuple[str, ...], ipv4: str | None, ipv6: str | None) -> None:
    """``None``: all addresses of the family."""
    cidrs = tuple(PRIMARY if element == PRIMARY else ip_network(element) for element in elements)
    ips = NodeIPs(packed("10.0.0.2"), packed("2001:db8::1"))
    for family, wanted in ((IPV4, ipv4), (IPV6, ipv6)):
        found = node_port_addresses(interfaces(NODE), family, cidrs=cidrs, ips=ips)
        every = node_port_addresses(interfaces(NODE), family, cidrs=(), ips=ips)
        assert texts(found) == (texts(every) if wanted is None else wanted)


@pytest.mark.parametrize(
    ("address", "confined"),
    [
        ("127.0.0.1", True),
        ("127.255.255.255", True),
        ("128.0.0.1", False),
        ("169.254.1.1", False),
        ("::1", True),
        ("::2", False),
        ("fe80::1", True),
        ("febf::1", True),
        ("fec0::1", False),
        ("fe7f::1", False),
        ("2080::1", False),
    ],
)
def test_addresses_that_mean_nothing_elsewhere(address: str, confined: bool) -> None:
    assert is_confined(packed(address)) is confined


@pytest.mark.parametrize(
    ("cidrs", "ipv4", "ipv6"),
    [
        (None, None, None),
        (["10.244.1.0/24"], "10.244.1.0/24", None),
        (["fd00:10::/64", "10.244.1.0/24"], "10.244.1.0/24", "fd00:10::/64"),
        (["10.244.1.0/24", "10.244.2.0/24"], "10.244.1.0/24", None),
        # Bits of the host are dropped, leading zeros are decimal, what is malformed is skipped.
        (["10.244.1.7/24"], "10.244.1.0/24", None),
        (["10.244.1.7/32", "fd00::7/128"], "10.244.1.7/32", "fd00::7/128"),
        (["010.244.1.0/24"], "10.244.1.0/24", None),
        (["", "10.244.1.0", "10.244.1.0/", "10.244.1.0/33", "x/24", "fd00::/129", "10.9.0.0/+8"], None, None),
        (["10.244.1.0/33", "10.244.2.0/24"], "10.244.2.0/24", None),
    ],
)
def test_pod_cidr(cidrs: list[str] | None, ipv4: str | None, ipv6: str | None) -> None:
    found = [pod_cidr(node(pod_cidrs=cidrs), family) for family in (IPV4, IPV6)]
    assert [None if network is None else str(network) for network in found] == [ipv4, ipv6]


def test_all_addresses_of_the_status_are_known() -> None:
    found = node((INTERNAL, "10.0.0.1"), (EXTERNAL, "192.0.2.1"), ("Hostname", "10.0.0.9"), (INTERNAL, "fd00::1"))
    assert status_addresses(found) == {packed(text) for text in ("10.0.0.1", "192.0.2.1", "fd00::1")}
    assert status_addresses(None) == frozenset()
