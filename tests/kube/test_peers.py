"""Where connections lead: open ones, those of the last hour, and not more of them than can be asked for."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection, Iterator
from contextlib import ExitStack

import pytest

from ipvs_proxy.kube.peers import LIMIT, REMEMBERED, Peer, Peers, follow_peers
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(0.0)


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def attempt(peers: Peers, host: str, port: int = 443) -> socket.socket:
    address = (host, port, 0, 0) if ":" in host else (host, port)
    return peers.open((socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, 0, "", address))


@pytest.mark.parametrize(
    ("host", "packed"),
    [
        ("192.0.2.1", bytes((192, 0, 2, 1))),
        ("2001:db8::1", bytes.fromhex("20010db8000000000000000000000001")),
        ("::ffff:192.0.2.1", bytes((192, 0, 2, 1))),
        ("fe80::1%eth0", bytes.fromhex("fe800000000000000000000000000001")),
    ],
)
def test_addresses_are_packed(host: str, packed: bytes, sockets: ExitStack) -> None:
    peers = Peers()
    sockets.enter_context(attempt(peers, host, 6443))
    assert peers.known() == {Peer(packed, 6443)}


def test_an_open_connection_counts_for_ever_and_an_ended_one_for_an_hour(clock: Clock, sockets: ExitStack) -> None:
    peers = Peers(clock)
    with attempt(peers, "192.0.2.1"):
        clock.now = 10 * REMEMBERED
        assert len(peers.known()) == 1
    clock.now += REMEMBERED - 1
    sockets.enter_context(attempt(peers, "192.0.2.2"))
    assert {peer.address[-1] for peer in peers.known()} == {1, 2}
    clock.now += 2
    assert {peer.address[-1] for peer in peers.known()} == {2}


def test_where_none_is_tried_the_old_ones_count(clock: Clock) -> None:
    peers = Peers(clock)
    attempt(peers, "192.0.2.1").close()
    clock.now = 2 * REMEMBERED
    assert {peer.address[-1] for peer in peers.known()} == {1}
    attempt(peers, "192.0.2.2").close()
    assert {peer.address[-1] for peer in peers.known()} == {2}


def test_a_name_with_ever_new_addresses_is_remembered_in_part(clock: Clock) -> None:
    peers = Peers(clock)
    for number in range(3 * LIMIT):
        clock.now += 1
        attempt(peers, f"192.0.{number // 256}.{number % 256}").close()
    known = peers.known()
    assert len(known) == LIMIT
    assert max(peer.address for peer in known) == bytes((192, 0, 0, 3 * LIMIT - 1))


async def test_what_is_tried_is_handed_on_once(sockets: ExitStack) -> None:
    peers, taken = Peers(), list[Collection[Peer]]()
    following = asyncio.create_task(follow_peers(peers, taken.append))
    for hosts in (("192.0.2.1",), ("192.0.2.1", "192.0.2.1"), ("192.0.2.2",)):
        for host in hosts:
            sockets.enter_context(attempt(peers, host))
        for _ in range(5):
            await asyncio.sleep(0)
    following.cancel()
    assert [len(known) for known in taken] == [1, 2]
