"""The host's own addresses against a real kernel: ``ip`` changes them, reading and listening see it."""

from __future__ import annotations

import json
import time
from contextlib import closing
from ipaddress import ip_network

import pytest

from ipvs_proxy.agent.sync.node_facts import NodeFacts
from ipvs_proxy.kernel.links import monitor as monitor_module
from ipvs_proxy.kernel.links.addresses import Addresses
from ipvs_proxy.kernel.links.host_addresses import HostAddresses
from ipvs_proxy.kernel.links.monitor import LinkChange, LinkEvent, Monitor
from ipvs_proxy.plan.node_addresses import NodeIPs, host_addresses, node_port_addresses
from ipvs_proxy.plan.tables import AddressOperation, Family, Verb, text_of
from tests.support.namespaces import fresh_namespace, missing_piece, run
from tests.support.objects import packed

pytestmark = pytest.mark.skipif(missing_piece() is not None, reason=str(missing_piece()))

HOST = LinkEvent(LinkChange.HOST_ADDRESSES_CHANGED)


@pytest.fixture(autouse=True)
def namespace():
    with fresh_namespace():
        yield


@pytest.fixture
def host():
    with closing(HostAddresses()) as made:
        yield made


@pytest.fixture
def monitor():
    run("ip", "link", "add", "kube-ipvs0", "type", "dummy")
    run("ip", "link", "add", "eth0", "type", "dummy")
    run("ip", "link", "set", "eth0", "up")
    settle("eth0")
    with closing(Monitor()) as made:
        yield made


def settle(*links: str) -> None:
    """Wait until duplicate address detection is over."""
    deadline = time.monotonic() + 20
    while any("tentative" in run("ip", "address", "show", "dev", link) for link in links):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def address(verb: str, text: str, link: str = "eth0", *more: str) -> None:
    run("ip", "address", verb, text, *more, "dev", link)


def found(host: HostAddresses) -> dict[str, set[str]]:
    return {name: set(map(text_of, addresses)) for name, addresses in host.read().items()}


def make_interfaces() -> None:
    """Make interfaces of several kinds; eth1 stays down."""
    for name in ("kube-ipvs0", "eth0", "eth1"):
        run("ip", "link", "add", name, "type", "dummy")
    run("ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    for name in ("veth0", "veth1"):  # no duplicate address detection, which takes two seconds
        run("sysctl", "-qw", f"net.ipv6.conf.{name}.dad_transmits=0")
    for name in ("eth0", "veth0", "veth1"):
        run("ip", "link", "set", name, "up")
    address("add", "192.0.2.1/24")
    address("add", "192.0.2.2/24")  # a secondary address
    address("add", "192.0.2.3/32", "eth0", "label", "eth0:1")
    address("add", "2001:db8::1/64", "eth0", "nodad")
    address("add", "2001:db8::2", "eth0", "peer", "2001:db8::99/128")
    address("add", "198.51.100.1/24", "eth1")
    address("add", "fd00::1/64", "eth1")
    address("add", "10.9.0.1", "veth0", "peer", "10.9.0.2/32")
    address("add", "10.255.0.1/32", "lo")
    address("add", "10.96.0.1/32", "kube-ipvs0")
    address("add", "fd00:96::1/128", "kube-ipvs0")
    settle("eth0", "veth0", "veth1")


def test_every_address_of_every_interface_is_read(host):
    make_interfaces()
    read = found(host)
    witnessed = json.loads(run("ip", "-json", "address", "show"))
    assert read == {
        link["ifname"]: {info["local"] for info in link["addr_info"]} for link in witnessed if link["addr_info"]
    }
    # Link-local addresses are the kernel's choice.
    named = {name: {text for text in texts if not text.startswith("fe80")} for name, texts in read.items()}
    assert named == {
        "lo": {"127.0.0.1", "::1", "10.255.0.1"},
        "eth0": {"192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8::2"},
        "eth1": {"198.51.100.1", "fd00::1"},
        "veth0": {"10.9.0.1"},
        "veth1": set(),
        "kube-ipvs0": {"10.96.0.1", "fd00:96::1"},
    }


def test_what_is_read_becomes_host_addresses_and_those_of_node_ports(host):
    make_interfaces()
    interfaces = host.read()
    wanted = {
        Family.IPV4: {"10.255.0.1", "192.0.2.1", "192.0.2.2", "192.0.2.3", "198.51.100.1", "10.9.0.1"},
        Family.IPV6: {"2001:db8::1", "2001:db8::2", "fd00::1"},
    }
    for family, texts in wanted.items():
        assert set(map(text_of, host_addresses(interfaces, family))) == texts
    cidrs = (ip_network("192.0.2.0/30"), ip_network("10.96.0.0/12"))
    of_node_ports = node_port_addresses(interfaces, Family.IPV4, cidrs=cidrs, ips=NodeIPs())
    assert [text_of(one) for one in of_node_ports] == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]


def test_a_host_without_addresses_has_no_interfaces_to_tell_of(host):
    run("ip", "address", "flush", "dev", "lo")
    run("ip", "link", "add", "eth0", "type", "dummy")
    assert found(host) == {}


def test_reading_writes_nothing_and_takes_three_questions(host):
    host.read()
    traffic = host._socket.traffic
    assert (traffic.writes, traffic.reads) == (0, 3)


@pytest.mark.parametrize("text", ["192.0.2.1/24", "2001:db8::1/64"])
def test_an_address_that_comes_and_goes_is_told_once_each_time(monitor, text):
    address("add", text)
    assert monitor.read() == [HOST]
    settle("eth0")  # the kernel announces an IPv6 address again
    assert monitor.read() == []
    address("delete", text)
    assert monitor.read() == [HOST]
    assert monitor.read() == []


def test_a_lifetime_that_is_renewed_is_no_change(monitor):
    address("add", "2001:db8::1/64", "eth0", "valid_lft", "1000", "preferred_lft", "1000")
    settle("eth0")
    assert monitor.read() == [HOST]
    for seconds in ("2000", "3000"):
        address("change", "2001:db8::1/64", "eth0", "valid_lft", seconds, "preferred_lft", seconds)
    address("change", "2001:db8::1/64", "eth0", "valid_lft", "3000", "preferred_lft", "0")
    assert monitor.read() == []
    assert "deprecated" in run("ip", "address", "show", "dev", "eth0")


def test_links_of_pods_that_come_and_go_are_no_change(monitor):
    pairs = {f"veth{number}": f"pod{number}" for number in range(2)}
    for host_end, pod_end in pairs.items():
        run("ip", "link", "add", host_end, "type", "veth", "peer", "name", pod_end)
        run("ip", "link", "set", pod_end, "up")
        run("ip", "link", "set", host_end, "up")
    settle(*pairs, *pairs.values())
    for host_end in pairs:
        assert "fe80::" in run("ip", "address", "show", "dev", host_end)
        run("ip", "link", "delete", host_end)
    assert monitor.read() == []


def test_a_link_that_goes_takes_its_addresses_from_the_host(monitor):
    address("add", "192.0.2.1/24")
    address("add", "192.0.2.2/24")
    address("add", "2001:db8::1/64")
    assert monitor.read() == [HOST]
    run("ip", "link", "delete", "eth0")
    assert monitor.read() == [HOST]
    run("ip", "link", "add", "eth0", "type", "dummy")
    assert monitor.read() == []
    address("add", "192.0.2.1/24")
    assert monitor.read() == [HOST]


def test_a_primary_address_that_goes_takes_its_secondaries(monitor, host):
    address("add", "192.0.2.1/24")
    address("add", "192.0.2.2/24")
    assert monitor.read() == [HOST]
    address("delete", "192.0.2.1/24")
    assert monitor.read() == [HOST]
    assert "192.0.2.2" not in found(host).get("eth0", set())
    address("add", "192.0.2.2/24")
    assert monitor.read() == [HOST]


def test_setting_a_link_down_takes_its_ipv6_addresses_and_leaves_those_of_ipv4(monitor, host):
    address("add", "192.0.2.1/24")
    address("add", "2001:db8::1/64")
    settle("eth0")
    assert monitor.read() == [HOST]
    run("ip", "link", "set", "eth0", "down")
    assert monitor.read() == [HOST]
    assert found(host)["eth0"] == {"192.0.2.1"}


def test_an_address_that_another_link_has_too_is_no_change(monitor):
    run("ip", "link", "add", "eth1", "type", "dummy")
    address("add", "192.0.2.1/24")
    assert monitor.read() == [HOST]
    address("add", "192.0.2.1/24", "eth1")
    address("delete", "192.0.2.1/24", "eth0")
    assert monitor.read() == []
    address("delete", "192.0.2.1/24", "eth1")
    assert monitor.read() == [HOST]


def test_an_address_of_the_dummy_link_is_not_the_hosts(monitor):
    with closing(Addresses()) as addresses:
        addresses.apply([AddressOperation(Verb.ADD, packed("10.96.0.1"))])
        assert monitor.read() == [LinkEvent(LinkChange.ADDRESS_ADDED, packed("10.96.0.1"))]
    address("add", "10.96.0.1/32")
    assert monitor.read() == [HOST]
    # Renamed, the link is one like any other; of its two addresses the host had only one.
    address("add", "10.96.0.2/32", "kube-ipvs0")
    monitor.read()
    run("ip", "link", "set", "kube-ipvs0", "name", "elsewhere")
    assert monitor.read() == [LinkEvent(LinkChange.LINK_REMOVED), HOST]


def test_addresses_that_were_there_before_listening_are_known(monitor):
    address("add", "192.0.2.1/24")
    with closing(Monitor()) as second:
        address("delete", "192.0.2.1/24")
        assert second.read() == [HOST]
        address("add", "192.0.2.1/24")
        assert second.read() == [HOST]


def test_what_was_queued_before_a_loss_does_not_undo_the_new_look(monitor, monkeypatch):
    monkeypatch.setattr(monitor_module, "_RECEIVE_BUFFER", 4096)
    with closing(Monitor()) as narrow, closing(Addresses()) as addresses:
        address("add", "192.0.2.1/24")  # queued
        addresses.apply([AddressOperation(Verb.ADD, bytes((10, 96, 1, number))) for number in range(100)])
        address("delete", "192.0.2.1/24")  # lost
        assert LinkEvent(LinkChange.LOST) in narrow.read()
        address("add", "192.0.2.1/24")
        assert narrow.read() == [HOST]


async def test_facts_follow_an_address_from_the_kernel(monitor):
    with closing(HostAddresses()) as host:
        facts = NodeFacts(host.read)
        await facts.refresh()
        assert facts.facts.host_addresses == frozenset()
        address("add", "192.0.2.1/24")
        assert monitor.read() == [HOST]
        assert await facts.refresh()
        assert facts.facts.node_port_addresses == (packed("192.0.2.1"),)
        address("delete", "192.0.2.1/24")
        assert monitor.read() == [HOST]
        assert await facts.refresh()
        assert facts.facts.node_port_addresses == ()
