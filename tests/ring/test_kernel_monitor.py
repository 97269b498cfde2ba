"""The monitor against a real kernel: what ``ip`` does to the link arrives as events."""

from __future__ import annotations

import asyncio
import socket as sockets
from contextlib import closing

import pytest

from ipvs_proxy.kernel.links import monitor as monitor_module
from ipvs_proxy.kernel.links.addresses import Addresses
from ipvs_proxy.kernel.links.monitor import LinkChange, LinkEvent, Monitor
from ipvs_proxy.plan.tables import AddressOperation, Verb
from tests.support.namespaces import fresh_namespace, missing_piece, run

pytestmark = pytest.mark.skipif(missing_piece() is not None, reason=str(missing_piece()))

VIP = sockets.inet_pton(sockets.AF_INET, "10.96.0.1")
VIP6 = sockets.inet_pton(sockets.AF_INET6, "fd00::1")


@pytest.fixture(autouse=True)
def namespace():
    with fresh_namespace():
        yield


@pytest.fixture
def link():
    with closing(Addresses()) as addresses:
        addresses.ensure_link()
    run("ip", "link", "add", "other", "type", "dummy")


@pytest.fixture
def monitor(link):
    with closing(Monitor()) as made:
        yield made


@pytest.mark.parametrize(("address", "text"), [(VIP, "10.96.0.1/32"), (VIP6, "fd00::1/128")])
def test_addresses_that_come_and_go(monitor, address, text):
    run("ip", "address", "add", text, "dev", "kube-ipvs0")
    # An IPv6 address is announced again when it leaves the tentative state.
    assert set(monitor.read()) == {LinkEvent(LinkChange.ADDRESS_ADDED, address)}
    run("ip", "address", "delete", text, "dev", "kube-ipvs0")
    assert monitor.read() == [LinkEvent(LinkChange.ADDRESS_REMOVED, address)]
    run("ip", "address", "add", text, "dev", "other")
    run("ip", "link", "delete", "other")
    assert monitor.read() == []


def test_a_link_that_goes_takes_its_addresses(monitor):
    run("ip", "address", "add", "10.96.0.1/32", "dev", "kube-ipvs0")
    run("ip", "link", "delete", "kube-ipvs0")
    events = monitor.read()
    assert events[0] == LinkEvent(LinkChange.ADDRESS_ADDED, VIP)
    assert events[-1] == LinkEvent(LinkChange.LINK_REMOVED)
    run("ip", "link", "add", "kube-ipvs0", "type", "dummy")
    assert monitor.read() == [LinkEvent(LinkChange.LINK_ADDED)]
    run("ip", "address", "add", "10.96.0.1/32", "dev", "kube-ipvs0")
    assert monitor.read() == [LinkEvent(LinkChange.ADDRESS_ADDED, VIP)]


def test_a_link_that_is_replaced_between_two_looks(monitor):
    run("ip", "link", "delete", "kube-ipvs0")
    run("ip", "link", "add", "kube-ipvs0", "type", "dummy")
    assert monitor.read() == [LinkEvent(LinkChange.LINK_REMOVED), LinkEvent(LinkChange.LINK_ADDED)]


def test_a_link_that_is_renamed(monitor):
    run("ip", "link", "set", "kube-ipvs0", "name", "elsewhere")
    assert monitor.read() == [LinkEvent(LinkChange.LINK_REMOVED)]
    run("ip", "link", "set", "elsewhere", "name", "kube-ipvs0")
    assert monitor.read() == [LinkEvent(LinkChange.LINK_ADDED)]


def test_setting_the_link_up_and_down_takes_ipv6_addresses_away(monitor):
    run("ip", "address", "add", "fd00::1/128", "dev", "kube-ipvs0")
    run("ip", "link", "set", "kube-ipvs0", "up")
    monitor.read()
    run("ip", "link", "set", "kube-ipvs0", "down")
    assert LinkEvent(LinkChange.ADDRESS_REMOVED, VIP6) in monitor.read()


def test_lost_notifications_are_an_event_of_their_own(link, monkeypatch):
    monkeypatch.setattr(monitor_module, "_RECEIVE_BUFFER", 4096)
    with closing(Monitor()) as monitor, closing(Addresses()) as addresses:
        addresses.apply([AddressOperation(Verb.ADD, bytes((10, 96, 1, number))) for number in range(100)])
        # While nobody listened, the link has become another one.
        run("ip", "link", "delete", "kube-ipvs0")
        run("ip", "link", "add", "kube-ipvs0", "type", "dummy")
        events = monitor.read()
        assert LinkEvent(LinkChange.LOST) in events
        run("ip", "address", "add", "10.96.0.1/32", "dev", "kube-ipvs0")
        assert monitor.read() == [LinkEvent(LinkChange.ADDRESS_ADDED, VIP)]


async def test_events_arrive_while_waiting(monitor):
    async def first() -> list[LinkEvent]:
        async for events in monitor.follow():
            return events
        return []

    waiting = asyncio.create_task(first())
    await asyncio.sleep(0)
    run("ip", "address", "add", "10.96.0.1/32", "dev", "kube-ipvs0")
    assert await asyncio.wait_for(waiting, 10) == [LinkEvent(LinkChange.ADDRESS_ADDED, VIP)]


async def test_a_thousand_addresses_arrive_in_order_and_a_few_at_a_time(monitor):
    addresses = [bytes((10, 96, 1 + number // 250, number % 250)) for number in range(1000)]
    with closing(Addresses()) as link:
        link.apply([AddressOperation(Verb.ADD, address) for address in addresses])
    told: list[bytes] = []

    async def follow() -> None:
        async for events in monitor.follow():
            assert len(events) <= monitor_module._DATAGRAMS
            told.extend(event.address for event in events)
            if len(told) >= len(addresses):
                return

    await asyncio.wait_for(follow(), 60)
    assert told == addresses
    assert monitor.read() == []
