"""What is read of EndpointSlices, and how they are merged."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvs_proxy.kube.objects import Endpoint as SliceEndpoint
from ipvs_proxy.kube.objects import EndpointConditions, EndpointPort, EndpointSlice
from ipvs_proxy.plan.endpoints import Gathered, Omission, PortKey
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.slice_cache import SliceCache
from ipvs_proxy.plan.tables import Family, Protocol
from tests.support.endpoints import (
    DRAINING,
    GONE,
    HTTP,
    NODE,
    OTHER,
    UNREADY,
    far,
    gathered,
    near,
    only,
    some_endpoints,
    the_state,
)
from tests.support.objects import endpoint, endpoint_slice, real


@pytest.mark.parametrize(("given_", "expected"), [(None, True), (True, True), (False, False)])
def test_nil_ready_and_nil_serving_are_true(given_: bool | None, expected: bool) -> None:
    found = the_state(endpoint_slice(endpoint("10.0.0.1", ready=given_)))
    assert found.ready is expected
    assert found.serving is True
    found = the_state(endpoint_slice(endpoint("10.0.0.1", serving=given_)))
    assert found.serving is expected
    assert found.ready is True


@pytest.mark.parametrize(("given_", "expected"), [(None, False), (True, True), (False, False)])
def test_nil_terminating_is_false(given_: bool | None, expected: bool) -> None:
    found = the_state(endpoint_slice(endpoint("10.0.0.1", terminating=given_)))
    assert found.terminating is expected


def test_nil_serving_while_terminating_counts_as_serving() -> None:
    found = the_state(endpoint_slice(endpoint("10.0.0.1", ready=False, terminating=True)))
    assert found.fallback


@pytest.mark.parametrize(
    ("node", "local"), [(NODE, True), (OTHER, False), (None, False), ("", False), ("NODE-A", False)]
)
def test_local_is_exactly_the_own_node(node: str | None, local: bool) -> None:
    found = the_state(endpoint_slice(endpoint("10.0.0.1", node=node)))
    assert found.local is local


# Merging slices.


def test_slices_are_merged_by_address_and_port() -> None:
    found = gathered(
        endpoint_slice(endpoint("10.0.0.9"), endpoint("10.0.0.10"), name="web-2"),
        endpoint_slice(endpoint("10.0.0.2"), name="web-1"),
        endpoint_slice(endpoint("10.0.0.2"), name="web-3", ports=[EndpointPort("http", 8081)]),
    )
    assert sorted(found.endpoints[HTTP]) == [
        real("10.0.0.2"),
        real("10.0.0.2", 8081),
        real("10.0.0.9"),
        real("10.0.0.10"),
    ]
    assert found.omissions == []


def test_ports_are_told_apart_by_name_and_protocol() -> None:
    ports = [
        EndpointPort("", 80),
        EndpointPort("dns", 53, "UDP"),
        EndpointPort("dns", 5353, "TCP"),
        EndpointPort("diameter", 3868, "SCTP"),
    ]
    found = gathered(endpoint_slice(endpoint("10.0.0.1"), ports=ports))
    assert {port: [key.port for key in some] for port, some in found.endpoints.items()} == {
        PortKey("", Protocol.TCP): [80],
        PortKey("dns", Protocol.UDP): [53],
        PortKey("dns", Protocol.TCP): [5353],
        PortKey("diameter", Protocol.SCTP): [3868],
    }


@pytest.mark.parametrize(
    ("port", "reason"),
    [
        (EndpointPort(None, 8080), Reason.NO_PORT_NAME),
        (EndpointPort("http", None), Reason.NO_PORT_NUMBER),
        (EndpointPort("http", 0), Reason.NO_PORT_NUMBER),
        (EndpointPort("http", 8080, "ICMP"), Reason.UNKNOWN_PROTOCOL),
        (EndpointPort("http", 8080, "tcp"), Reason.UNKNOWN_PROTOCOL),
        (EndpointPort("http", 8080, ""), Reason.UNKNOWN_PROTOCOL),
    ],
    ids=repr,
)
def test_a_bad_port_is_omitted_and_the_others_stay(port: EndpointPort, reason: Reason) -> None:
    good = EndpointPort("good", 1)
    found = gathered(endpoint_slice(endpoint("10.0.0.1"), ports=[port, good]))
    assert [omission.reason for omission in found.omissions] == [reason]
    assert found.omissions[0].where.startswith("endpointslice default/web-1 port ")
    assert list(found.endpoints) == [PortKey("good", Protocol.TCP)]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (endpoint(), Reason.NO_ADDRESS),
        (endpoint(""), Reason.INVALID_ADDRESS),
        (endpoint("10.0.0.256"), Reason.INVALID_ADDRESS),
        (endpoint("pod.example.com"), Reason.INVALID_ADDRESS),
        (endpoint("fd00::1"), Reason.INVALID_ADDRESS),
        (endpoint("nonsense", "10.0.0.3"), Reason.INVALID_ADDRESS),
    ],
    ids=repr,
)
def test_a_bad_address_is_omitted_once_and_the_other_endpoints_stay(bad: SliceEndpoint, reason: Reason) -> None:
    ports = [EndpointPort("http", 8080), EndpointPort("metrics", 9090)]
    found = gathered(endpoint_slice(endpoint("10.0.0.1"), bad, endpoint("10.0.0.2"), ports=ports))
    assert found.omissions == [Omission("endpointslice default/web-1 endpoint 1", reason)]
    assert list(found.endpoints[HTTP]) == [real("10.0.0.1"), real("10.0.0.2")]


def test_only_the_first_address_of_an_endpoint_counts() -> None:
    assert list(only(endpoint("10.0.0.1", "10.0.0.2"))) == [real("10.0.0.1")]


def test_addresses_are_compared_in_canonical_form() -> None:
    assert list(only(endpoint("10.0.0.1"), endpoint("010.000.0.01"))) == [real("10.0.0.1")]


def test_each_family_sees_its_own_slices_and_no_other_is_news() -> None:
    pieces = (
        endpoint_slice(endpoint("10.0.0.1"), name="web-4"),
        endpoint_slice(endpoint("fd00::1"), name="web-6", address_type="IPv6"),
    )
    ipv4, ipv6 = gathered(*pieces), gathered(*pieces, family=Family.IPV6)
    assert list(ipv4.endpoints[HTTP]) == [real("10.0.0.1")]
    assert list(ipv6.endpoints[HTTP]) == [real("fd00::1")]
    assert ipv4.omissions == ipv6.omissions == []


@pytest.mark.parametrize("kind", ["FQDN", "ipv4", ""])
def test_a_slice_of_another_address_type_is_omitted(kind: str) -> None:
    found = gathered(endpoint_slice(endpoint("10.0.0.1"), address_type=kind), endpoint_slice(far(2), name="web-2"))
    assert [omission.reason for omission in found.omissions] == [Reason.UNSUPPORTED_ADDRESS_TYPE]
    assert list(found.endpoints[HTTP]) == [real("10.0.0.2")]


def test_missing_lists_are_empty_lists() -> None:
    bare = endpoint_slice()
    bare = EndpointSlice(bare.metadata, "IPv4", None, None)
    no_ports = EndpointSlice(bare.metadata, "IPv4", [endpoint("10.0.0.1")], None)
    assert gathered(bare, no_ports) == Gathered({}, [])


def test_a_port_without_endpoints_has_no_entry() -> None:
    assert gathered(endpoint_slice()).endpoints == {}


# Duplicates.


@pytest.mark.parametrize(
    ("first", "second"),
    [(near(1), far(1, **DRAINING)), (near(1), far(1, **GONE)), (near(1, **UNREADY), far(1, **DRAINING))],
    ids=["ready, serving-terminating", "ready, terminating", "unready, terminating"],
)
def test_a_duplicate_that_is_not_terminating_wins_in_any_order(first: SliceEndpoint, second: SliceEndpoint) -> None:
    for pair in ((first, second), (second, first)):
        same_slice = the_state(endpoint_slice(*pair))
        assert (same_slice.local, same_slice.terminating) == (True, False)
        two_slices = the_state(endpoint_slice(pair[0], name="web-1"), endpoint_slice(pair[1], name="web-2"))
        assert (two_slices.local, two_slices.terminating) == (True, False)


@pytest.mark.parametrize("other", [UNREADY, DRAINING, GONE], ids=["unready", "serving-terminating", "terminating"])
def test_an_endpoint_that_is_ready_in_one_place_is_ready(other: dict[str, bool]) -> None:
    """kube-proxy takes the slice that comes last, which is another one after each start."""
    for pair in ((near(1), near(1, **other)), (near(1, **other), near(1))):
        assert the_state(endpoint_slice(*pair)).ready
        slices = [endpoint_slice(one, name=f"web-{number}") for number, one in enumerate(pair)]
        assert the_state(*slices).ready
        remembered = SliceCache()
        for known in (slices, slices[:1], slices):
            (found,) = remembered.gather(known, Family.IPV4, NODE).endpoints[HTTP].values()
            assert found is the_state(*known)


def test_of_two_that_terminate_the_one_that_serves_counts() -> None:
    for pair in ((near(1, **DRAINING), near(1, **GONE)), (near(1, **GONE), near(1, **DRAINING))):
        assert the_state(endpoint_slice(*pair)).serving
        assert the_state(*(endpoint_slice(one, name=f"web-{number}") for number, one in enumerate(pair))).serving


def test_between_two_of_one_rank_the_later_slice_name_wins() -> None:
    older, newer = endpoint_slice(near(1), name="web-1"), endpoint_slice(far(1), name="web-2")
    for pieces in ((older, newer), (newer, older)):
        assert not the_state(*pieces).local


@settings(deadline=None)
@given(st.lists(some_endpoints, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_the_order_in_which_slices_arrive_means_nothing(pieces: list[list[SliceEndpoint]], random: object) -> None:
    slices = [endpoint_slice(*piece, name=f"web-{number}") for number, piece in enumerate(pieces)]
    shuffled = list(slices)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert gathered(*shuffled) == gathered(*slices)


@settings(deadline=None)
@given(some_endpoints)
def test_an_endpoint_is_ready_if_one_of_its_duplicates_is(endpoints: list[SliceEndpoint]) -> None:
    for key, state in only(*endpoints).items():
        twins = [twin.conditions for twin in endpoints if real(twin.addresses[0]) == key]
        assert state.ready == any(twin.ready is not False for twin in twins)
        ready = [twin for twin in twins if twin.ready is not False] or twins
        assert state.terminating == all(twin.terminating for twin in ready)


def test_endpoints_of_one_state_share_it() -> None:
    found = only(*(near(number, zones=["zone-a", "zone-b"]) for number in range(1, 100)))
    assert len(set(map(id, found.values()))) == 1


def test_neighbours_that_share_objects_have_states_of_their_own() -> None:
    """The decoder gives equal conditions and hints of one slice as one object each."""
    conditions, unready = EndpointConditions(), EndpointConditions(ready=False)
    hints = {zone: endpoint(zones=[zone]).hints for zone in ("zone-a", "zone-b")}
    pieces = [
        SliceEndpoint([f"10.0.0.{number}"], of, node, None if zone is None else hints[zone])
        for number, (of, node, zone) in enumerate(
            [
                (conditions, NODE, "zone-a"),
                (conditions, OTHER, "zone-a"),
                (conditions, OTHER, "zone-b"),
                (conditions, NODE, "zone-b"),
                (unready, NODE, "zone-b"),
                (unready, NODE, None),
                (unready, "node-c", None),
                (unready, OTHER, None),
            ],
            1,
        )
    ]
    assert only(*pieces) == {
        real(piece.addresses[0]): the_state(endpoint_slice(piece)) for piece in pieces if piece.addresses
    }
    assert len(set(only(*pieces).values())) == 7


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (near(1), near(1, **UNREADY), near(1)),
        (near(1, **UNREADY), near(1), near(1)),
        (near(1, **GONE), near(1, **DRAINING), near(1, **DRAINING)),
        (near(1), far(1), far(1)),
    ],
)
def test_of_an_address_that_a_slice_lists_twice_the_better_state_counts_then_the_later(
    first: SliceEndpoint, second: SliceEndpoint, expected: SliceEndpoint
) -> None:
    assert only(first, near(2), second) == only(expected, near(2))


def test_two_numbers_for_one_port_name_are_endpoints_of_the_same_port() -> None:
    ports = [EndpointPort("http", 8080), EndpointPort("http", 8081)]
    found = gathered(endpoint_slice(near(1), ports=ports)).endpoints
    assert set(found) == {HTTP}
    assert set(found[HTTP]) == {real("10.0.0.1"), real("10.0.0.1", 8081)}


@pytest.mark.parametrize("node", [None, ""])
def test_a_node_without_a_name_has_no_endpoint_of_its_own(node: str | None) -> None:
    found = gathered(endpoint_slice(endpoint("10.0.0.1", node=node)), node="")
    assert not found.endpoints[HTTP][real("10.0.0.1")].local


def test_slices_beyond_the_bound_are_left_out_and_smaller_ones_after_them_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ipvs_proxy.plan.endpoints.MAX_ENDPOINT_PORTS", 7)
    two = [EndpointPort("http", 8080), EndpointPort("https", 8443)]
    found = gathered(
        endpoint_slice(near(1), near(2), near(3), name="web-1", ports=two),
        endpoint_slice(near(4), name="web-2", ports=two),
        endpoint_slice(near(5), name="web-3"),
        endpoint_slice(near(6), name="web-4"),
    )
    assert set(found.endpoints[HTTP]) == {real(f"10.0.0.{number}") for number in (1, 2, 3, 5)}
    assert found.omissions == [Omission(f"endpointslice default/web-{number}", Reason.TOO_MUCH) for number in (2, 4)]
