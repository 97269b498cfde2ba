"""The dummy link and its addresses against a real kernel; ``ip`` is the witness."""

from __future__ import annotations

import json
import socket as sockets
from contextlib import closing
from errno import EADDRNOTAVAIL, EEXIST, EINVAL, ENODEV

import pytest

from ipvs_proxy.kernel.links.addresses import Addresses
from ipvs_proxy.netlink.errors import Unusable
from ipvs_proxy.plan.tables import AddressOperation, Verb
from tests.support.namespaces import fresh_namespace, missing_piece, run

pytestmark = pytest.mark.skipif(missing_piece() is not None, reason=str(missing_piece()))


def packed(text: str) -> bytes:
    return sockets.inet_pton(sockets.AF_INET6 if ":" in text else sockets.AF_INET, text)


def add(text: str) -> AddressOperation:
    return AddressOperation(Verb.ADD, packed(text))


def delete(text: str) -> AddressOperation:
    return AddressOperation(Verb.DELETE, packed(text))


def witnessed(link: str = "kube-ipvs0") -> dict[str, tuple[int, str]]:
    """Return prefix length and scope of each address, as ``ip`` sees them."""
    (found,) = json.loads(run("ip", "-json", "address", "show", "dev", link))
    return {info["local"]: (info["prefixlen"], info["scope"]) for info in found["addr_info"]}


@pytest.fixture(autouse=True)
def namespace():
    with fresh_namespace():
        yield


@pytest.fixture
def addresses():
    with closing(Addresses()) as made:
        yield made


def test_the_link_is_made_once_and_stays_down(addresses):
    assert addresses.ensure_link() is True
    assert addresses.ensure_link() is False
    (link,) = json.loads(run("ip", "-json", "-details", "link", "show", "dev", "kube-ipvs0"))
    assert link["linkinfo"]["info_kind"] == "dummy"
    assert "UP" not in link["flags"]
    assert addresses.traffic.writes == 1


def test_a_link_of_another_kind_is_refused(addresses):
    run("ip", "link", "add", "kube-ipvs0", "type", "veth", "peer", "name", "other")
    with pytest.raises(Unusable, match="kube-ipvs0 is a veth link, not a dummy: rename or delete it"):
        addresses.ensure_link()
    for call in (addresses.has_link, addresses.delete_link):
        with pytest.raises(Unusable, match="kube-ipvs0 is a veth link"):
            call()
    run("ip", "link", "show", "dev", "kube-ipvs0")


def test_the_link_is_deleted_with_its_addresses(addresses):
    addresses.delete_link()
    assert not addresses.has_link()
    addresses.ensure_link()
    assert addresses.apply([add("10.96.0.1")]) == [0]
    assert addresses.has_link()
    addresses.delete_link()
    assert not addresses.has_link()
    assert "kube-ipvs0" not in run("ip", "link")


@pytest.mark.parametrize("name", ["", "a-name-that-is-too-long"])
def test_a_name_that_no_link_can_have_is_refused(name):
    with pytest.raises(ValueError, match="no link's name"):
        Addresses(name)


@pytest.mark.parametrize(("address", "length"), [("10.96.0.1", 32), ("fd00::1", 128)])
def test_add_and_delete(addresses, address, length):
    addresses.ensure_link()
    assert addresses.apply([add(address)]) == [0]
    assert witnessed() == {address: (length, "global")}
    assert addresses.read() == {packed(address)}
    # What attracts packets is there, although the link is down.
    family = "-6" if ":" in address else "-4"
    assert run("ip", family, "route", "get", address).split()[:2] == ["local", address]
    assert addresses.apply([add(address)]) == [EEXIST]
    assert addresses.apply([delete(address)]) == [0]
    assert addresses.apply([delete(address)]) == [EADDRNOTAVAIL]
    assert witnessed() == {}


def test_an_ipv6_address_is_usable_at_once(addresses):
    addresses.ensure_link()
    addresses.apply([add("fd00::1")])
    with sockets.create_server(("fd00::1", 0), family=sockets.AF_INET6) as listener:
        assert listener.getsockname()[0] == "fd00::1"


def test_an_address_that_another_agent_put_there_can_be_deleted(addresses):
    addresses.ensure_link()
    run("ip", "address", "add", "10.96.0.1/32", "dev", "kube-ipvs0")
    run("ip", "address", "add", "fd00::1/128", "dev", "kube-ipvs0")
    assert addresses.apply([delete("10.96.0.1"), delete("fd00::1")]) == [0, 0]
    assert witnessed() == {}


def test_only_the_links_own_addresses_are_read(addresses):
    addresses.ensure_link()
    run("ip", "link", "add", "eth0", "type", "dummy")
    run("ip", "address", "add", "192.0.2.1/24", "dev", "eth0")
    run("ip", "address", "add", "2001:db8::1/64", "dev", "eth0")
    run("ip", "address", "add", "169.254.20.10/32", "dev", "kube-ipvs0")
    run("ip", "address", "add", "fe80::1/64", "dev", "kube-ipvs0")
    addresses.apply([add("10.96.0.1"), add("fd00::1")])
    assert addresses.read() == {packed("10.96.0.1"), packed("fd00::1"), packed("169.254.20.10")}


def test_failures_are_attributed(addresses):
    addresses.ensure_link()
    operations, expected = [], []
    for number in range(2000):
        fails = number % 4 == 3
        address = number - fails
        operations.append(add(f"10.96.{address // 256}.{address % 256}"))
        expected.append(EEXIST if fails else 0)
    assert addresses.apply(operations) == expected
    assert len(addresses.read()) == len(witnessed()) == 1500


def test_garbage_fails_alone(addresses):
    addresses.ensure_link()
    operations = [add("10.96.0.1"), AddressOperation(Verb.ADD, b"123"), add("10.96.0.2")]
    assert addresses.apply(operations) == [0, EINVAL, 0]
    assert witnessed().keys() == {"10.96.0.1", "10.96.0.2"}


def test_a_link_that_goes_and_comes_back(addresses):
    addresses.ensure_link()
    addresses.apply([add("10.96.0.1")])
    run("ip", "link", "delete", "kube-ipvs0")
    assert addresses.read() == set()
    assert addresses.apply([add("10.96.0.1"), add("fd00::1")]) == [ENODEV, ENODEV]
    assert addresses.ensure_link() is True
    assert addresses.apply([add("10.96.0.1"), add("fd00::1")]) == [0, 0]
    assert witnessed().keys() == {"10.96.0.1", "fd00::1"}


def test_a_link_that_was_replaced_is_used_like_the_old_one(addresses):
    addresses.ensure_link()
    addresses.apply([add("10.96.0.1")])
    run("ip", "link", "delete", "kube-ipvs0")
    run("ip", "link", "add", "kube-ipvs0", "type", "dummy")
    assert addresses.read() == set()
    assert addresses.apply([add("10.96.0.1")]) == [0]
    assert witnessed().keys() == {"10.96.0.1"}


def test_reading_writes_nothing(addresses):
    addresses.ensure_link()
    addresses.apply([add("10.96.0.1")])
    writes = addresses.traffic.writes
    addresses.ensure_link()
    addresses.read()
    assert addresses.traffic.writes == writes == 2
