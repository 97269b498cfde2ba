"""The health answers, byte for byte as kube-proxy's, with a clock of our own."""

from __future__ import annotations

import json

import pytest

from ipvs_proxy.agent.observe.health import HealthTracker
from ipvs_proxy.kube.objects import Node, NodeSpec, ObjectMeta, Taint
from ipvs_proxy.plan.tables import Family
from tests.support.clock import Clock
from tests.support.objects import EPOCH

NODE = Node(ObjectMeta("node"))


@pytest.fixture
def clock() -> Clock:
    return Clock(1_795_000_000.25)


@pytest.fixture
def tracker(clock: Clock) -> HealthTracker:
    tracker = HealthTracker(tuple(Family), sync_period=30.0, now=clock)
    tracker.node_changed(NODE)
    return tracker


def test_healthz_has_the_keys_order_and_form_of_kube_proxy(tracker: HealthTracker, clock: Clock) -> None:
    clock.now += 1
    assert tracker.healthz() == (
        200,
        b'{"lastUpdated":"2026-11-18T11:06:41.25Z","currentTime":"2026-11-18T11:06:41.25Z","nodeEligible":true,'
        b'"healthy":true,"status":{"IPv4":{"lastUpdated":"2026-11-18T11:06:40.25Z","healthy":true},'
        b'"IPv6":{"lastUpdated":"2026-11-18T11:06:40.25Z","healthy":true}}}',
    )


def test_work_that_waits_for_two_sync_periods_is_unhealthy_until_it_is_done(
    tracker: HealthTracker, clock: Clock
) -> None:
    tracker.queued()
    clock.now += 59.9
    tracker.queued()  # the oldest counts
    assert tracker.livez()[0] == 200
    clock.now += 0.2
    status, body = tracker.livez()
    assert status == 503
    assert json.loads(body)["healthy"] is False
    assert json.loads(body)["lastUpdated"] == json.loads(body)["status"]["IPv4"]["lastUpdated"]
    tracker.updated()
    assert tracker.livez()[0] == 200


@pytest.mark.parametrize(
    "node",
    [
        None,
        Node(ObjectMeta("node", deletion_timestamp=EPOCH)),
        Node(ObjectMeta("node"), NodeSpec(taints=[Taint("ToBeDeletedByClusterAutoscaler")])),
    ],
    ids=["never seen", "being deleted", "about to be deleted"],
)
def test_node_that_should_get_no_traffic_fails_healthz_only(tracker: HealthTracker, node: Node | None) -> None:
    tracker.node_changed(node)
    status, body = tracker.healthz()
    assert status == 503
    assert json.loads(body) | {"nodeEligible": False, "healthy": True} == json.loads(body)
    assert tracker.livez()[0] == 200
    assert "nodeEligible" not in json.loads(tracker.livez()[1])


def test_other_taints_do_not_matter(tracker: HealthTracker) -> None:
    tracker.node_changed(Node(ObjectMeta("node"), NodeSpec(taints=[Taint("node.kubernetes.io/not-ready")])))
    assert tracker.healthz()[0] == 200


def test_an_api_server_that_is_not_heard_for_a_while_is_shown_and_changes_no_status(clock: Clock) -> None:
    failures: dict[str, tuple[float, str]] = {}
    tracker = HealthTracker(tuple(Family), sync_period=30.0, now=clock, api_failures=lambda: failures)
    tracker.node_changed(NODE)
    failures |= {"Service": (59.0, "HTTP 401: Unauthorized"), "EndpointSlice": (10.0, "HTTP 401: Unauthorized")}
    assert "apiServer" not in json.loads(tracker.healthz()[1])
    failures["Service"] = (90.25, "HTTP 401: Unauthorized")
    status, body = tracker.healthz()
    assert status == 200, "all nodes lose the API server in the same second, and what they serve is as good as before"
    assert json.loads(body)["apiServer"] == {"failing": ["Service"], "since": "2026-11-18T11:05:10Z"}
    assert b"401" not in body, "the port is open to everybody"
    assert b"apiServer" not in tracker.livez()[1]
    failures.clear()
    assert "apiServer" not in json.loads(tracker.healthz()[1])
