"""The quick look of an audit at IPv4 virtual servers, against a real kernel that ipvsadm changes."""

from __future__ import annotations

import socket as sockets
from contextlib import closing

import pytest

from ipvs_proxy.kernel.ipvs.sockopt import QuickLook
from ipvs_proxy.kernel.ipvs.table import Ipvs
from ipvs_proxy.netlink.socket import MessageCounts
from ipvs_proxy.plan.addresses import parse_address
from ipvs_proxy.plan.tables import (
    ACTIVE,
    Protocol,
    RealServer,
    RealServerKey,
    RealServerOperation,
    Verb,
    VirtualServer,
    VirtualServerKey,
    VirtualServerOperation,
)
from tests.support.namespaces import fresh_namespace, missing_piece, run

pytestmark = pytest.mark.skipif(missing_piece() is not None, reason=str(missing_piece()))

KEY = VirtualServerKey(parse_address("10.96.0.1"), Protocol.TCP, 80)
SERVERS = {RealServerKey(parse_address(f"10.0.0.{number}"), 8080): ACTIVE for number in (1, 2, 3)}


@pytest.fixture(autouse=True)
def namespace():
    with fresh_namespace():
        yield


@pytest.fixture
def look(namespace):
    with closing(QuickLook(MessageCounts())) as found:
        yield found


@pytest.fixture
def ipvs(namespace):
    with closing(Ipvs()) as table:
        yield table


def fill(key: VirtualServerKey = KEY, servers: dict[RealServerKey, RealServer] = SERVERS) -> None:
    operations = [VirtualServerOperation(Verb.ADD, VirtualServer(key, "rr"))]
    operations += [RealServerOperation(Verb.ADD, key, server, settings) for server, settings in servers.items()]
    with closing(Ipvs()) as ipvs:
        assert not any(ipvs.apply(operations))


def test_what_is_as_expected_is_confirmed_with_one_system_call():
    fill()
    traffic = MessageCounts()
    with closing(QuickLook(traffic)) as look:
        assert look.confirms(KEY, SERVERS)
    assert traffic == MessageCounts(writes=0, reads=1, system_calls=1)


EDIT = ("ipvsadm", "-e", "-t", "10.96.0.1:80", "-r", "10.0.0.2:8080")


@pytest.mark.parametrize(
    "change",
    [
        (*EDIT, "-m", "-w", "0"),
        (*EDIT, "-m", "-w", "5"),
        (*EDIT, "-m", "-w", "1", "-x", "100"),
        (*EDIT, "-m", "-w", "1", "-x", "100", "-y", "50"),
        ("ipvsadm", "-d", "-t", "10.96.0.1:80", "-r", "10.0.0.1:8080"),
        ("ipvsadm", "-d", "-t", "10.96.0.1:80", "-r", "10.0.0.3:8080"),
        ("ipvsadm", "-a", "-t", "10.96.0.1:80", "-r", "10.0.0.4:8080", "-m"),
        ("ipvsadm", "-a", "-t", "10.96.0.1:80", "-r", "10.0.0.1:8081", "-m"),
        ("ipvsadm", "-D", "-t", "10.96.0.1:80"),
    ],
    ids=lambda change: " ".join(change[1:]),
)
def test_whatever_somebody_changes_is_not_confirmed(look, change):
    fill()
    run(*change)
    assert not look.confirms(KEY, SERVERS)


def test_another_forwarding_method_is_not_confirmed(look, ipvs):
    fill()
    server, direct_routing = next(iter(SERVERS)), RealServer(forwarding=3)
    assert ipvs.apply([RealServerOperation(Verb.SET, KEY, server, direct_routing)]) == [0]
    assert not look.confirms(KEY, SERVERS)
    assert look.confirms(KEY, SERVERS | {server: direct_routing})


def test_one_for_another_is_not_confirmed(look):
    fill()
    run("ipvsadm", "-d", "-t", "10.96.0.1:80", "-r", "10.0.0.2:8080")
    run("ipvsadm", "-a", "-t", "10.96.0.1:80", "-r", "10.0.0.9:8080", "-m")
    assert not look.confirms(KEY, SERVERS)


def test_a_virtual_server_without_real_servers_is_confirmed(look):
    fill(servers={})
    assert look.confirms(KEY, {})
    assert not look.confirms(KEY, SERVERS)


def test_thresholds_and_weights_that_are_expected_are_confirmed(look):
    servers = {server: RealServer(7, 0, 100, 50) for server in SERVERS}
    fill(servers=servers)
    assert look.confirms(KEY, servers)


@pytest.mark.parametrize(
    "key",
    [
        KEY._replace(protocol=Protocol.UDP, port=53),
        KEY._replace(protocol=Protocol.SCTP, port=65535),
        VirtualServerKey(bytes(4), Protocol.TCP, 0, mark=0x80000001),
    ],
    ids=str,
)
def test_every_kind_of_virtual_server_is_found_by_its_key(look, key):
    fill(key)
    assert look.confirms(key, SERVERS)
    assert not look.confirms(key, {})


def test_a_thousand_real_servers_are_confirmed_and_a_small_one_after_them(look):
    large = {RealServerKey(parse_address(f"10.1.{n // 250}.{n % 250 + 1}"), 8080): ACTIVE for n in range(1000)}
    fill(servers=large)
    fill(KEY._replace(port=81))
    assert look.confirms(KEY, large)
    assert look.confirms(KEY._replace(port=81), SERVERS)
    large.popitem()
    assert not look.confirms(KEY, large)


def test_connections_do_not_disturb(look):
    server = RealServerKey(parse_address("127.0.0.1"), 18080)
    run("ip", "address", "add", "10.96.0.1/32", "dev", "lo")
    fill(servers={server: ACTIVE})
    with (
        sockets.create_server(("127.0.0.1", 18080)),
        sockets.create_connection(("10.96.0.1", 80), timeout=5),
    ):
        assert look.confirms(KEY, {server: ACTIVE})


def test_ipv6_is_never_confirmed(look):
    key = VirtualServerKey(parse_address("fd00::1"), Protocol.TCP, 80)
    servers = {RealServerKey(parse_address("fd01::1"), 8080): ACTIVE}
    fill(key, servers)
    assert not look.confirms(key, servers)
