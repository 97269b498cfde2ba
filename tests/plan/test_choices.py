"""Which endpoints get connections, case by case. The tables follow the behaviour that all kube-proxy modes share."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from ipvs_proxy.kube.objects import Endpoint as SliceEndpoint
from ipvs_proxy.plan.choices import Choices, choose_cluster, choose_local
from ipvs_proxy.plan.reasons import Reason
from tests.support.endpoints import (
    DRAINING,
    GONE,
    HTTP,
    NODE,
    OTHER,
    UNREADY,
    ZONE,
    far,
    gathered,
    near,
    only,
    some_endpoints,
)
from tests.support.objects import endpoint, endpoint_slice, real


def used(choices: Choices) -> str:
    """The last octets of the endpoints in use: ``"1 3"``."""
    shown = [choice.key for choice in choices if choice.used]
    assert shown == sorted(choices.real_servers)
    return " ".join(str(key.address[-1]) for key in shown)


def reasons(choices: Choices) -> list[Reason]:
    return [choice.reason for choice in choices]


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


def test_endpoints_of_this_node_are_told_whether_they_are_used_or_not() -> None:
    found = only(near(1), near(2, **UNREADY), far(3), far(4, **UNREADY))
    for choices in (choose_local(found), choose_cluster(found, node_name=NODE, zone=ZONE)):
        assert sorted(choices.local()) == [real("10.0.0.1"), real("10.0.0.2")]


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
        assert choices.any_open == any(choice.used for choice in choices if choice.state.weight)
        assert choices.lingering == {choice.key for choice in choices if choice.state.fallback and not choice.used}
    assert all(choice.state.local for choice in local if choice.used)
    # If there is any usable endpoint at all, the cluster list is not empty.
    usable = any(state.ready or state.fallback for state in found.values())
    assert usable == any(choice.used for choice in cluster)


# Conditions.
