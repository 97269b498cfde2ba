"""Which flows are stale, as a table; the addresses say who is who."""

from __future__ import annotations

import pytest

from ipvs_proxy.plan.flows import Flow, stale
from ipvs_proxy.plan.tables import ACTIVE, DRAINING, Protocol, VirtualServer
from tests.support.objects import packed, real, virtual

VIP, POD, OTHER_POD, CLIENT = "10.96.0.10", "10.244.0.1", "10.244.0.2", "10.244.3.3"
KEY = virtual(VIP, 53, Protocol.UDP)


def flow(
    *, to: str = VIP, port: int = 53, answers: str, answering_port: int = 53, protocol: int = Protocol.UDP
) -> Flow:
    client, source = packed(CLIENT if ":" not in to else "fd00::3"), 40000
    return Flow(protocol, client, source, packed(to), port, packed(answers), answering_port, client, source)


def server(*pods: str, lingering: tuple[str, ...] = (), settings=ACTIVE) -> VirtualServer:
    servers = {real(pod, 53): settings for pod in pods}
    return VirtualServer(KEY, "rr", real_servers=servers, lingering=frozenset(real(pod, 53) for pod in lingering))


TO_POD, UNTRANSLATED = flow(answers=POD), flow(answers=VIP)


@pytest.mark.parametrize(
    ("name", "found", "virtual_server", "expected"),
    [
        ("to a real server", TO_POD, server(POD), False),
        ("to one of several", TO_POD, server(OTHER_POD, POD), False),
        ("to a real server of weight 0 that is wanted", TO_POD, server(POD, settings=DRAINING), False),
        ("to one that terminates and still serves", TO_POD, server(OTHER_POD, lingering=(POD,)), False),
        ("to the last one, which terminates and still serves", TO_POD, server(lingering=(POD,)), False),
        ("to one that is gone", TO_POD, server(OTHER_POD), True),
        ("to one that is gone while others terminate", TO_POD, server(lingering=(OTHER_POD,)), True),
        ("to one that is gone, scaled to zero", TO_POD, server(), True),
        ("to another port of a real server", flow(answers=POD, answering_port=5353), server(POD), True),
        ("never translated, and there is a real server", UNTRANSLATED, server(POD), True),
        ("never translated, and there is none", UNTRANSLATED, server(), False),
        ("never translated, and there is only one that terminates", UNTRANSLATED, server(lingering=(POD,)), False),
        ("translated to another port of its own address", flow(answers=VIP, answering_port=5353), server(), True),
        ("TCP", flow(answers=OTHER_POD, protocol=Protocol.TCP), server(POD), False),
        ("SCTP", flow(answers=OTHER_POD, protocol=Protocol.SCTP), server(POD), False),
        ("to another port of the address", flow(port=54, answers=OTHER_POD), server(POD), False),
        ("to the same port of another address", flow(to="203.0.113.9", answers="203.0.113.9"), server(POD), False),
        ("translated by somebody else", flow(to="203.0.113.9", answers=OTHER_POD), server(POD), False),
    ],
)
def test_flow_of_a_virtual_server(name, found, virtual_server, expected):
    assert stale(found, {KEY: virtual_server}, set()) is expected, name


def test_flow_to_a_virtual_server_that_is_gone_is_stale():
    assert stale(TO_POD, {}, {KEY})


def test_flow_that_passes_through_to_an_address_that_was_ours_stays():
    assert not stale(UNTRANSLATED, {}, {KEY})


def test_flow_to_what_never_was_ours_stays():
    assert not stale(TO_POD, {}, set())


def test_virtual_server_that_is_back_is_judged_by_what_it_has_now():
    assert not stale(TO_POD, {KEY: server(POD)}, {KEY})
    assert stale(TO_POD, {KEY: server(OTHER_POD)}, {KEY})


def test_node_port_concerns_only_this_nodes_addresses():
    node_port = virtual("192.0.2.1", 30053, Protocol.UDP)
    servers = {node_port: VirtualServer(node_port, "rr", real_servers={real(POD, 53): ACTIVE})}
    assert stale(flow(to="192.0.2.1", port=30053, answers=OTHER_POD), servers, set())
    assert not stale(flow(to="203.0.113.9", port=30053, answers="203.0.113.9", answering_port=30053), servers, set())


@pytest.mark.parametrize(
    ("found", "virtual_server", "expected"),
    [
        (TO_POD, server(OTHER_POD), False),
        (TO_POD, server(), False),
        (flow(answers=CLIENT), server(OTHER_POD), True),
        (UNTRANSLATED, server(), True),
    ],
)
def test_real_servers_of_another_virtual_server_for_the_same_destination_are_allowed(found, virtual_server, expected):
    assert stale(found, {KEY: virtual_server}, set(), also_allowed={KEY: [real(POD, 53)]}) is expected


def test_ipv6():
    key = virtual("fd00:96::10", 53, Protocol.UDP)
    servers = {key: VirtualServer(key, "rr", real_servers={real("fd00:244::1", 53): ACTIVE})}
    assert stale(flow(to="fd00:96::10", answers="fd00:244::2"), servers, set())
    assert not stale(flow(to="fd00:96::10", answers="fd00:244::1"), servers, set())
