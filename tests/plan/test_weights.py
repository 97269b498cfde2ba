"""Weights: which rule counts for an endpoint, what both objects together give, and what the kernel gets of it."""

from __future__ import annotations

from collections import Counter

import pytest
from msgspec import structs

from ipvs_proxy.kube.objects import Endpoint
from ipvs_proxy.plan.endpoints import Omission, State, gather
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.tables import ACTIVE, Family, RealServer
from ipvs_proxy.plan.weights import MAX_RULES, MAX_WEIGHT, SLOTS, read_weights, real_servers_of, write_weights
from tests.support.endpoints import HTTP
from tests.support.objects import annotated_slice, endpoint, endpoint_slice

OURS, CILIUM = "ipvs-proxy.io/weight", "service.cilium.io/weight"
RULES = "node=edge-1:0, node=big:7, zone=eu-1a:3, local:10, *:2"
#: Of one endpoint on node ``big`` in zone ``eu-1a``.
PLACE = ("big", "eu-1a")


def at(node: str | None, zone: str | None) -> Endpoint:
    return structs.replace(endpoint("10.0.0.1", node=node), zone=zone)


def state_of(one: Endpoint, rules: str, node: str = "here", **annotations: str) -> State:
    pieces = [annotated_slice(endpoint_slice(one), annotations)]
    found = gather(pieces, Family.IPV4, node, read_weights(rules)) if rules else gather(pieces, Family.IPV4, node)
    (state,) = found.endpoints[HTTP].values()
    return state


# The table of docs/scheduling.md.
PRECEDENCE = [
    # The rules of the Service, the annotations of the EndpointSlice, node, zone: the weight, and who gave it.
    ("", {}, *PLACE, 1, ""),
    (RULES, {}, *PLACE, 7, "node=big:7"),
    (RULES, {}, "edge-1", "eu-1a", 0, "node=edge-1:0"),
    (RULES, {}, "other", "eu-1a", 3, "zone=eu-1a:3"),
    (RULES, {}, "here", "eu-1a", 3, "zone=eu-1a:3"),
    (RULES, {}, "here", "eu-1b", 10, "local:10"),
    (RULES, {}, "other", "eu-1b", 2, "*:2"),
    (RULES, {}, None, None, 2, "*:2"),
    ("zone=eu-1a:3", {}, "other", "eu-1b", 1, ""),
    ("", {OURS: "90"}, *PLACE, 90, "EndpointSlice:90"),
    ("", {CILIUM: "10"}, *PLACE, 10, "EndpointSlice:10"),
    ("", {OURS: "90", CILIUM: "10"}, *PLACE, 90, "EndpointSlice:90"),
    ("", {OURS: "0"}, *PLACE, 0, "EndpointSlice:0"),
    (RULES, {OURS: "90"}, *PLACE, 630, "node=big:7, EndpointSlice:90"),
    (RULES, {OURS: "0"}, *PLACE, 0, "node=big:7, EndpointSlice:0"),
    (RULES, {OURS: "90"}, "edge-1", "eu-1a", 0, "node=edge-1:0, EndpointSlice:90"),
]


@pytest.mark.parametrize(("rules", "annotations", "node", "zone", "weight", "source"), PRECEDENCE)
def test_the_weight_of_an_endpoint_is_that_of_its_slice_times_that_of_the_most_specific_rule(
    rules: str, annotations: dict[str, str], node: str | None, zone: str | None, weight: int, source: str
) -> None:
    state = state_of(at(node, zone), rules, **annotations)
    assert (state.weight, state.weight_from) == (weight, source)


def test_neighbours_in_a_slice_that_differ_only_in_their_zone_have_weights_of_their_own() -> None:
    piece = endpoint_slice(*(structs.replace(endpoint(f"10.0.0.{n}"), zone=f"eu-1{'ab'[n % 2]}") for n in range(1, 5)))
    found = gather([piece], Family.IPV4, "here", read_weights("zone=eu-1a:3"))
    assert [state.weight for state in found.endpoints[HTTP].values()] == [1, 3, 1, 3]


def test_neighbours_in_a_slice_that_differ_only_in_their_node_have_weights_of_their_own() -> None:
    piece = endpoint_slice(*(endpoint(f"10.0.0.{n}", node=f"edge-{n % 2}") for n in range(1, 5)))
    found = gather([piece], Family.IPV4, "here", read_weights("node=edge-0:3"))
    assert [state.weight for state in found.endpoints[HTTP].values()] == [1, 3, 1, 3]


@pytest.mark.parametrize("text", ["much", "", "-1", "1.5", str(MAX_WEIGHT + 1), "9" * 10_000, "٣"])
@pytest.mark.parametrize("name", [OURS, CILIUM])
def test_a_weight_of_a_slice_that_cannot_be_read_is_told_and_gives_none(name: str, text: str) -> None:
    found = gather([annotated_slice(endpoint_slice(at(*PLACE)), {name: text})], Family.IPV4, "here")
    assert found.omissions == [
        Omission(f"endpointslice default/web-1 annotation {name} {text}", Reason.INVALID_ENDPOINT_WEIGHT)
    ]
    assert [state.weight for state in found.endpoints[HTTP].values()] == [1]


def test_a_weight_of_ours_that_cannot_be_read_does_not_give_way_to_another() -> None:
    """It would be a surprise to find traffic split by an annotation that was overruled."""
    found = gather([annotated_slice(endpoint_slice(at(*PLACE)), {OURS: "x", CILIUM: "5"})], Family.IPV4, "here")
    assert [state.weight for state in found.endpoints[HTTP].values()] == [1]
    assert len(found.omissions) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ",",
        "*",
        "*:",
        ":1",
        "*:1,",
        "*:x",
        "*:-1",
        f"*:{MAX_WEIGHT + 1}",
        "*:1, *:1",
        "zone=a:1, zone=a:2",
        "node=:1",
        "node=UPPER:1",
        f"node={'n' * 254}:1",
        f"zone={'z' * 64}:1",
        "zone=a b:1",
        "zone=-a:1",
        "rack=a:1",
        "local=a:1",
        ",".join(f"node=n{number}:1" for number in range(MAX_RULES + 1)),
        "x" * 300_000,
        ":" * 300_000,
    ],
    ids=lambda text: repr(text[:20]),
)
def test_rules_that_cannot_be_read_are_refused_as_a_whole(text: str) -> None:
    with pytest.raises(ValueError, match=r"rule|whole number"):
        read_weights(text)


def test_as_many_rules_as_there_may_be_are_read_and_written() -> None:
    text = ", ".join(f"node={number:0>253}:{number}" for number in range(MAX_RULES))
    assert write_weights(read_weights(text)) == text


@pytest.mark.parametrize(
    ("weights", "factor", "expected"),
    [
        ([1, 1], 1, [1, 1]),
        ([0, 3], 1, [0, 3]),
        ([1, 3], 10, [10, 30]),
        ([MAX_WEIGHT, 1], 1, [MAX_WEIGHT, 1]),
        ([2 * MAX_WEIGHT, MAX_WEIGHT, 0], 1, [MAX_WEIGHT, 32_767, 0]),
        ([MAX_WEIGHT * MAX_WEIGHT, 1], 10, [MAX_WEIGHT, 1]),
    ],
)
def test_weights_keep_their_proportions_within_what_the_kernel_takes(
    weights: list[int], factor: int, expected: list[int]
) -> None:
    real_servers = real_servers_of(Counter(weights), factor=factor, scheduler="wrr", upper=0, lower=0)
    assert [real_servers[weight].weight for weight in weights] == expected


@pytest.mark.parametrize(
    ("scheduler", "counted", "factor", "expected"),
    [
        ("sh", {90: 3, 10: 3}, 1, {90: 9, 10: 1}),
        ("sh", {100: 3}, 1, {100: 1}),
        ("sh", {3: 2, 0: 1}, 1, {3: 1, 0: 0}),
        ("sh", {1: 2}, 10, {1: 10}),
        ("sh", {1: 30}, 10, {1: 8}),
        ("sh", {9: 40, 1: 40}, 1, {9: 5, 1: 1}),
        ("sh", {1: 300}, 10, {1: 1}),
        ("sh", {0: 3}, 10, {0: 0}),
        ("sh", {}, 1, {}),
        ("mh", {90: 50, 10: 50}, 1, {90: 9, 10: 1}),
        ("mh", {99: 50, 1: 50}, 1, {99: 80, 1: 1}),
        ("mh", {1: 409}, 10, {1: 10}),
        ("mh", {MAX_WEIGHT: 1, 1: 3_000}, 1, {MAX_WEIGHT: 1093, 1: 1}),
    ],
)
def test_weights_have_room_in_the_table_of_a_scheduler_that_hashes(
    scheduler: str, counted: dict[int, int], factor: int, expected: dict[int, int]
) -> None:
    found = real_servers_of(counted, factor=factor, scheduler=scheduler, upper=0, lower=0)
    assert {weight: settings.weight for weight, settings in found.items()} == expected
    in_a_turn = sum(max(1, found[weight].weight) * number for weight, number in counted.items())
    assert in_a_turn <= max(SLOTS[scheduler], sum(counted.values())), "some endpoint gets nothing"


def test_what_is_as_usual_is_the_usual_object() -> None:
    assert real_servers_of({1: 2}, factor=1, scheduler="rr", upper=0, lower=0)[1] is ACTIVE
    assert real_servers_of({1: 2}, factor=1, scheduler="rr", upper=9, lower=5)[1] == RealServer(1, 0, 9, 5)
