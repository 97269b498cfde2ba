"""What is told of the agent's health."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from ipvs_proxy import __version__
from ipvs_proxy.agent.assembly import events_of
from ipvs_proxy.agent.observe import reports
from ipvs_proxy.agent.observe.health import HealthTracker
from ipvs_proxy.agent.observe.history import History
from ipvs_proxy.agent.observe.metrics import Metrics
from ipvs_proxy.agent.observe.reports import Reports, report_refused_health_check, watch_health_for_ever
from ipvs_proxy.kube.events import Regarding
from ipvs_proxy.kube.objects import Node, ObjectMeta
from ipvs_proxy.kube.responses import Reply
from ipvs_proxy.plan.tables import Family


async def test_each_change_of_health_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "HEALTH_INTERVAL", 0.0)
    seen = iter([True, True, False, False, False, True, True, False])
    told: list[bool] = []

    def healthy() -> bool:
        try:
            return next(seen)
        except StopIteration:
            raise asyncio.CancelledError from None

    with pytest.raises(asyncio.CancelledError):
        await watch_health_for_ever(healthy, told.append)
    assert told == [False, True, False]


@pytest.mark.parametrize(
    ("healthy", "kind", "reason", "event"),
    [(False, "Warning", "ProxyDegraded", "degraded"), (True, "Normal", "ProxyRecovered", "recovered")],
)
def test_node_gets_an_event(healthy: bool, kind: str, reason: str, event: str) -> None:
    told: list[tuple[Regarding, str, str]] = []
    families = tuple(Family)
    found = Reports(
        Metrics(families),
        HealthTracker(families, sync_period=1.0),
        wish=lambda *_: None,
        emit=lambda regarding, **fields: told.append((regarding, fields["type"], fields["reason"])),
        history=History(),
    )
    with capture_logs() as logs:
        found.health_changed(Node(ObjectMeta("node-a", uid="7")), "node-a", healthy=healthy)
        found.health_changed(None, "node-b", healthy=healthy)
    assert told == [
        (Regarding("Node", "", "node-a", "7"), kind, reason),
        (Regarding("Node", "", "node-b", ""), kind, reason),
    ]
    assert [entry["event"] for entry in logs] == [event, event]


def test_refused_health_check_is_told_to_the_service_itself() -> None:
    told: list[tuple[Regarding, dict[str, str]]] = []
    error = OSError(98, "Address already in use")
    service = ObjectMeta("web", "shop", uid="7")
    with capture_logs() as logs:
        report_refused_health_check(
            lambda regarding, **fields: told.append((regarding, dict(fields))), service, 30999, error
        )
        report_refused_health_check(None, service, 30999, error)
    ((regarding, fields),) = told
    # kubectl describe asks for events of this UID.
    assert regarding == Regarding("Service", "shop", "web", "7")
    assert (fields["type"], fields["reason"]) == ("Warning", "FailedToStartServiceHealthcheck")
    assert "30999" in fields["note"]
    assert "already in use" in fields["note"]
    assert [(entry["event"], entry["service"]) for entry in logs] == [("service_health_check_refused", "shop/web")] * 2


def test_the_start_is_told_with_the_node_and_the_version() -> None:
    told: list[tuple[str, str]] = []
    families = tuple(Family)
    found = Reports(
        Metrics(families),
        HealthTracker(families, sync_period=1.0),
        wish=lambda *_: None,
        emit=lambda _, **fields: told.append((fields["reason"], fields["note"])),
        history=History(),
    )
    found.started(None, "node-a")
    assert told == [("Starting", f"ipvs-proxy {__version__} serves the Services of node node-a")]
    found.skipped("Service", "", "nobody can be told of it")
    found.skipped("Service", "ns/web", "")
    assert len(told) == 2
    assert all(note for _, note in told)


def test_events_say_of_which_node_they_are() -> None:
    async def send(*_: object) -> Reply:
        raise AssertionError

    client = SimpleNamespace(send=send)
    events = events_of(client, "node-a")
    assert events is not None
    events.emit(Regarding("Node", "", "node-a"), type="Normal", reason="Starting", action="StartProxy", note="note")
    (series,) = events._series.values()
    assert json.loads(events._request(series)[1])["reportingInstance"] == "ipvs-proxy-node-a"
