"""Which endpoints get connections, case by case. The tables follow the behaviour that all kube-proxy modes share."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvs_proxy.kube.objects import Endpoint as SliceEndpoint
from ipvs_proxy.kube.objects import EndpointPort, EndpointSlice
from ipvs_proxy.plan import endpoints as endpoints_module
from ipvs_proxy.plan.endpoints import (
    Choices,
    Endpoints,
    Gathered,
    Omission,
    PortKey,
    Readings,
    State,
    choose_cluster,
    choose_local,
    gather,
    read_slice,
)
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.tables import Family, Protocol
from tests.support.objects import endpoint, endpoint_slice, real

NODE, OTHER = "node-a", "node-b"
ZONE = "zone-a"
HTTP = PortKey("http", Protocol.TCP)

GONE = {"ready": False, "serving": False, "terminating": True}
DRAINING = {"ready": False, "serving": True, "terminating": True}
UNREADY = {"ready": False, "serving": False, "terminating": False}


def gathered(*pieces: EndpointSlice, family: Family = Family.IPV4, node: str = NODE) -> Gathered:
    return gather(pieces, family, node)


def only(*endpoints: SliceEndpoint) -> Endpoints:
    """The endpoints of one slice, as the choice sees them."""
    return gathered(endpoint_slice(*endpoints)).endpoints.get(HTTP, {})


def the_state(*pieces: EndpointSlice) -> State:
    """The state of the only endpoint."""
    (state,) = gathered(*pieces).endpoints[HTTP].values()
    return state


def used(choices: Choices) -> str:
    """The last octets of the endpoints in use: ``"1 3"``."""
    shown = [choice.key for choice in choices if choice.used]
    assert shown == sorted(choices.real_servers)
    return " ".join(str(key.address[-1]) for key in shown)


def reasons(choices: Choices) -> list[Reason]:
    return [choice.reason for choice in choices]


def near(number: int, **more: object) -> SliceEndpoint:
    return endpoint(f"10.0.0.{number}", node=NODE, **more)  # type: ignore[arg-type]


def far(number: int, **more: object) -> SliceEndpoint:
    return endpoint(f"10.0.0.{number}", node=OTHER, **more)  # type: ignore[arg-type]


# Categories: the cases of the upstream table, each with the cluster list and the local list of node-a in zone-a.

CASES = {
    "hints on all endpoints filter by zone, and never the local list": (
        [near(1, zones=["zone-a"]), far(2, zones=["zone-b"]), near(3, zones=["zone-b"]), far(4, zones=["zone-a"])],
        "1 4",
        "1 3",
    ),
    "nobody names this zone: no filtering": ([far(1, zones=["zone-b"]), near(2, zones=["zone-c"])], "1 2", "2"),
    "hints are judged on ready endpoints only: an unready one without hints does not disable them": (
        [near(1, zones=["zone-a"]), far(2, zones=["zone-b"]), far(3, **UNREADY)],
        "1",
        "1",
    ),
    "only unready endpoints in this zone: no filtering": (
        [near(1, zones=["zone-a"], **UNREADY), far(2, zones=["zone-b"]), far(3, zones=["zone-c"])],
        "2 3",
        "",
    ),
    "one ready endpoint without hints disables the filter": (
        [near(1, zones=["zone-a"]), far(2, zones=["zone-b"]), far(3)],
        "1 2 3",
        "1",
    ),
    "an empty list of zones is no hint": ([near(1, zones=["zone-a"]), far(2, zones=[])], "1 2", "1"),
    "several zones per endpoint": (
        [near(1, zones=["zone-a", "zone-b"]), far(2, zones=["zone-b", "zone-c"]), far(3, zones=["zone-b", "zone-a"])],
        "1 3",
        "1",
    ),
    "node hints win over zone hints": (
        [
            near(1, nodes=[NODE], zones=["zone-a"]),
            far(2, nodes=[OTHER], zones=["zone-a"]),
            far(3, nodes=[OTHER], zones=["zone-b"]),
        ],
        "1",
        "1",
    ),
    "an endpoint may be hinted to a node that it is not on": (
        [far(1, nodes=[NODE]), near(2, nodes=[OTHER]), far(3, nodes=[OTHER, NODE])],
        "1 3",
        "2",
    ),
    "node hints are ignored if some have none, zone hints apply": (
        [near(1, nodes=[NODE], zones=["zone-a"]), far(2, zones=["zone-a"]), far(3, nodes=[OTHER], zones=["zone-b"])],
        "1 2",
        "1",
    ),
    "node hints that do not name this node fall back to zone hints": (
        [far(1, nodes=[OTHER], zones=["zone-a"]), far(2, nodes=["node-c"], zones=["zone-b"])],
        "1",
        "",
    ),
    "node hints alone that do not name this node: no filtering": (
        [far(1, nodes=[OTHER]), far(2, nodes=["node-c"])],
        "1 2",
        "",
    ),
    "local and cluster lists are independent": (
        [near(1, zones=["zone-b"]), far(2, zones=["zone-a"]), far(3, zones=["zone-b"])],
        "2",
        "1",
    ),
    "no endpoints": ([], "", ""),
    "all remote": ([far(1), far(2)], "1 2", ""),
    "all local": ([near(1), near(2)], "1 2", "1 2"),
    "some local": ([near(1), far(2)], "1 2", "1"),
    "none ready": ([near(1, **UNREADY), far(2, **UNREADY)], "", ""),
    "some ready": ([near(1, **UNREADY), far(2)], "2", ""),
    "all serving and terminating": ([near(1, **DRAINING), far(2, **DRAINING)], "1 2", "1"),
    "all remote and terminating": ([far(1, **DRAINING), far(2, **DRAINING)], "1 2", ""),
    "terminating ones are left alone while one is ready": ([near(1, **DRAINING), far(2)], "2", "1"),
    "the fallbacks are independent: local has a ready one, the rest is terminating": (
        [near(1), near(2, **DRAINING), far(3, **DRAINING)],
        "1",
        "1",
    ),
    "the fallback takes only endpoints that serve": ([near(1, **GONE), far(2, **DRAINING), far(3, **UNREADY)], "2", ""),
    "the fallback ignores hints": (
        [near(1, zones=["zone-b"], **DRAINING), far(2, zones=["zone-a"], **DRAINING), far(3, nodes=[NODE], **DRAINING)],
        "1 2 3",
        "1",
    ),
    "not ready but serving and not terminating is never used": (
        [near(1, ready=False, serving=True, terminating=False), far(2, ready=False, serving=True)],
        "",
        "",
    ),
    "a single endpoint that is neither ready nor serving": ([near(1, **GONE)], "", ""),
    "ready while terminating (publishNotReadyAddresses) is ready": (
        [near(1, ready=True, serving=True, terminating=True), far(2, ready=True, terminating=True)],
        "1 2",
        "1",
    ),
}


@pytest.mark.parametrize(("endpoints", "cluster", "local"), CASES.values(), ids=CASES)
def test_categories(endpoints: list[SliceEndpoint], cluster: str, local: str) -> None:
    found = only(*endpoints)
    assert used(choose_cluster(found, node_name=NODE, zone=ZONE)) == cluster
    assert used(choose_local(found)) == local


@pytest.mark.parametrize("zone", ["", "zone-z"], ids=["node without a zone", "zone that no hint names"])
def test_zone_hints_do_not_apply_to_a_node_outside_them(zone: str) -> None:
    found = only(near(1, zones=["zone-a"]), far(2, zones=["zone-b"]), far(3, zones=[""]))
    assert used(choose_cluster(found, node_name=NODE, zone=zone)) == "1 2 3"


def test_a_node_without_a_name_matches_no_hint_and_no_endpoint() -> None:
    found = gathered(endpoint_slice(endpoint("10.0.0.1", node="", nodes=[""]), far(2, nodes=[OTHER])), node="")
    assert used(choose_cluster(found.endpoints[HTTP], node_name="", zone="")) == "1 2"
    assert used(choose_local(found.endpoints[HTTP])) == ""


# Reasons.


def test_reasons_under_a_zone_filter() -> None:
    found = only(
        near(1, zones=["zone-a"]),
        far(2, zones=["zone-b"]),
        far(3, **UNREADY),
        far(4, **DRAINING),
        far(5, **GONE),
    )
    assert reasons(choose_cluster(found, node_name=NODE, zone=ZONE)) == [
        Reason.READY,
        Reason.OTHER_ZONE,
        Reason.NOT_READY,
        Reason.TERMINATING,
        Reason.TERMINATING,
    ]


def test_reasons_under_a_node_filter() -> None:
    found = only(near(1, nodes=[NODE]), far(2, nodes=[OTHER]))
    assert reasons(choose_cluster(found, node_name=NODE, zone=ZONE)) == [Reason.READY, Reason.OTHER_NODE]


def test_reasons_of_the_local_list() -> None:
    found = only(near(1), near(2, **UNREADY), near(3, **DRAINING), far(4), far(5, **DRAINING))
    assert reasons(choose_local(found)) == [
        Reason.READY,
        Reason.NOT_READY,
        Reason.TERMINATING,
        Reason.NOT_LOCAL,
        Reason.NOT_LOCAL,
    ]


def test_reasons_of_the_fallback() -> None:
    found = only(near(1, **DRAINING), near(2, **GONE), near(3, **UNREADY), far(4, **DRAINING))
    assert reasons(choose_cluster(found, node_name=NODE, zone=ZONE)) == [
        Reason.TERMINATING_FALLBACK,
        Reason.TERMINATING,
        Reason.NOT_READY,
        Reason.TERMINATING_FALLBACK,
    ]
    assert reasons(choose_local(found)) == [
        Reason.TERMINATING_FALLBACK,
        Reason.TERMINATING,
        Reason.NOT_READY,
        Reason.NOT_LOCAL,
    ]


IN = {Reason.READY, Reason.TERMINATING_FALLBACK}
some_endpoints = st.lists(
    st.builds(
        endpoint,
        st.integers(1, 40).map("10.0.0.{}".format),
        ready=st.sampled_from([None, True, False]),
        serving=st.sampled_from([None, True, False]),
        terminating=st.sampled_from([None, True, False]),
        node=st.sampled_from([None, NODE, OTHER]),
        zones=st.none() | st.lists(st.sampled_from(["zone-a", "zone-b"]), max_size=2),
        nodes=st.none() | st.lists(st.sampled_from([NODE, OTHER]), max_size=2),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(some_endpoints)
def test_every_endpoint_has_one_decision_with_a_reason_that_agrees(endpoints: list[SliceEndpoint]) -> None:
    found = only(*endpoints)
    cluster, local = choose_cluster(found, node_name=NODE, zone=ZONE), choose_local(found)
    for choices in (cluster, local):
        assert [(choice.key, choice.state) for choice in choices] == sorted(found.items(), key=lambda item: item[0])
        assert all(choice.used == (choice.reason in IN) for choice in choices)
        # Ready and terminating endpoints are never mixed, and those that do neither serve nor end are never used.
        assert len({choice.reason for choice in choices if choice.used}) <= 1
        assert all(choice.state.ready or choice.state.fallback for choice in choices if choice.used)
        assert choices.any_used == any(choice.used for choice in choices)
        assert choices.lingering == {choice.key for choice in choices if choice.state.fallback and not choice.used}
    assert all(choice.state.local for choice in local if choice.used)
    # If there is any usable endpoint at all, the cluster list is not empty.
    usable = any(state.ready or state.fallback for state in found.values())
    assert usable == any(choice.used for choice in cluster)


# Conditions.


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


def test_slices_are_merged_and_sorted_by_address_and_port() -> None:
    found = gathered(
        endpoint_slice(endpoint("10.0.0.9"), endpoint("10.0.0.10"), name="web-2"),
        endpoint_slice(endpoint("10.0.0.2"), name="web-1"),
        endpoint_slice(endpoint("10.0.0.2"), name="web-3", ports=[EndpointPort("http", 8081)]),
    )
    assert [choice.key for choice in choose_cluster(found.endpoints[HTTP], node_name=NODE, zone=ZONE)] == [
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


def test_between_two_that_do_not_terminate_the_later_slice_name_wins() -> None:
    older, newer = endpoint_slice(near(1, **UNREADY), name="web-1"), endpoint_slice(near(1), name="web-2")
    for pieces in ((older, newer), (newer, older)):
        assert the_state(*pieces).ready


@settings(deadline=None)
@given(st.lists(some_endpoints, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_the_order_in_which_slices_arrive_means_nothing(pieces: list[list[SliceEndpoint]], random: object) -> None:
    slices = [endpoint_slice(*piece, name=f"web-{number}") for number, piece in enumerate(pieces)]
    shuffled = list(slices)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert gathered(*shuffled) == gathered(*slices)


@settings(deadline=None)
@given(some_endpoints)
def test_an_endpoint_is_terminating_only_if_all_its_duplicates_are(endpoints: list[SliceEndpoint]) -> None:
    for key, state in only(*endpoints).items():
        twins = [twin for twin in endpoints if real(twin.addresses[0]) == key]
        assert state.terminating == all(twin.conditions.terminating for twin in twins)


# Readings.


def test_a_slice_that_is_the_same_object_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = endpoint_slice(near(1), name="web-1"), endpoint_slice(near(2), name="web-2")
    changed = endpoint_slice(near(2), near(3), name="web-2")
    rounds = [(one, two), (one, two), (one, changed), (one, changed)]
    expected = [gathered(*pieces) for pieces in rounds]
    read: list[EndpointSlice] = []
    monkeypatch.setattr(
        endpoints_module, "read_slice", lambda piece, *facts: (read.append(piece), read_slice(piece, *facts))[1]
    )
    readings = Readings()
    assert [gather(pieces, Family.IPV4, NODE, readings) for pieces in rounds] == expected
    assert read == [one, two, changed]


def test_readings_of_slices_that_are_gone_are_forgotten() -> None:
    readings = Readings()
    one = endpoint_slice(near(1), name="web-1")
    first = readings.read(one, Family.IPV4, NODE)
    readings.keep({"web-1"})
    assert readings.read(one, Family.IPV4, NODE) is first
    readings.keep({"web-2"})
    assert readings.read(one, Family.IPV4, NODE) is not first


def test_endpoints_of_one_state_share_it() -> None:
    found = only(*(near(number, zones=["zone-a", "zone-b"]) for number in range(1, 100)))
    assert len(set(map(id, found.values()))) == 1
