"""What is said of an API server that is not heard, and how often."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from structlog.testing import capture_logs

from ipvs_proxy.agent.observe.metrics import Metrics
from ipvs_proxy.kube.decode import DecodeError
from ipvs_proxy.kube.hearing import QUIET, REMINDER, Hearing
from ipvs_proxy.kube.reflector import RefusedError, Timing, reflect
from ipvs_proxy.kube.resources import ENDPOINT_SLICES, SERVICES, own_node
from ipvs_proxy.kube.sinks import Interruption
from ipvs_proxy.pacing import Backoff
from ipvs_proxy.plan.tables import Family
from tests.support.apiserver import ApiServer, PlainTransport, status
from tests.support.clock import Clock
from tests.support.recorder import Recorder

RESOURCES = (SERVICES, ENDPOINT_SLICES, own_node("node"))
KINDS = [resource.kind for resource in RESOURCES]
EXPIRED = RefusedError(401, 0.0, "Unauthorized")


@pytest.fixture
def clock() -> Clock:
    return Clock(5000.0)


@pytest.fixture
def hearing(clock: Clock) -> Hearing:
    return Hearing(RESOURCES, Metrics(tuple(Family)), clock=clock)


def test_a_trouble_of_all_resources_is_logged_once_and_its_end_once(hearing: Hearing, clock: Clock) -> None:
    with capture_logs() as lines:
        for _ in range(14):
            clock.now += 1
            for kind in KINDS:
                hearing.interrupted(kind, Interruption.REFUSED, EXPIRED)
        for kind in KINDS:
            hearing.heard(kind)
    assert [line["event"] for line in lines] == ["credentials_refused", "api_heard_again"]
    assert "401" in lines[0]["error"]
    assert lines[1]["after"] == 13.0


def test_a_trouble_that_goes_on_is_logged_every_ten_minutes_with_its_age(hearing: Hearing, clock: Clock) -> None:
    with capture_logs() as lines:
        for _ in range(121):
            hearing.interrupted("Service", Interruption.REFUSED, EXPIRED)
            clock.now += REMINDER / 60
    assert [line.get("since") for line in lines] == [None, REMINDER, 2 * REMINDER]


def test_a_trouble_that_comes_and_goes_is_logged_once_a_minute(hearing: Hearing, clock: Clock) -> None:
    with capture_logs() as lines:
        for _ in range(3 * int(QUIET)):
            hearing.interrupted("Service", Interruption.BROKEN, aiohttp.ServerDisconnectedError())
            clock.now += 0.5
            hearing.heard("Service")
            clock.now += 0.5
    assert sum(line["event"] == "watch_interrupted" for line in lines) == 3


def test_troubles_that_take_turns_are_logged_once_each(hearing: Hearing, clock: Clock) -> None:
    with capture_logs() as lines:
        for _ in range(200):
            clock.now += 1
            hearing.interrupted("Service", Interruption.REFUSED, EXPIRED)
            hearing.interrupted("Service", Interruption.REFUSED, OSError("no plugin"))
    assert [line["event"] for line in lines] == ["credentials_refused", "credentials_not_readable"]


@pytest.mark.parametrize(
    ("cause", "error", "event"),
    [
        (Interruption.REFUSED, EXPIRED, "credentials_refused"),
        (Interruption.REFUSED, RefusedError(403, 0.0, "no"), "permission_missing"),
        (Interruption.REFUSED, RefusedError(503, 7.0, "busy"), "request_refused"),
        (Interruption.SILENT, TimeoutError(), "api_silent"),
        (Interruption.BROKEN, OSError("broken"), "watch_interrupted"),
        (Interruption.MALFORMED, DecodeError("no list"), "watch_interrupted"),
    ],
)
def test_each_trouble_is_called_by_its_name(hearing: Hearing, cause, error: Exception, event: str) -> None:
    with capture_logs() as lines:
        hearing.interrupted("Service", cause, error)
        hearing.interrupted("Node", Interruption.EXPIRED, None)
    assert [line["event"] for line in lines] == [event]
    assert lines[0]["error"]


def test_a_missing_permission_is_logged_for_each_resource_with_what_is_missing(hearing: Hearing) -> None:
    with capture_logs() as lines:
        for kind in KINDS * 5:
            hearing.interrupted(kind, Interruption.REFUSED, RefusedError(403, 0.0, f"cannot list {kind}"))
    assert [line["path"] for line in lines] == [resource.path for resource in RESOURCES]


def test_a_hostile_text_is_quoted_in_part_and_on_one_line(hearing: Hearing) -> None:
    with capture_logs() as lines:
        hearing.interrupted("Service", Interruption.BROKEN, OSError("x\n\x1b[31m" * 10_000))
    assert len(lines[0]["error"]) < 250
    assert lines[0]["error"].isprintable()


def test_what_fails_is_told_with_its_age_until_something_is_heard(hearing: Hearing, clock: Clock) -> None:
    hearing.interrupted("Service", Interruption.REFUSED, EXPIRED)
    clock.now += 70
    hearing.interrupted("Service", Interruption.REFUSED, EXPIRED)
    assert hearing.failures() == {"Service": (70.0, "HTTP 401: Unauthorized")}
    assert hearing.failing_for("Service") == 70.0
    hearing.heard("Service")
    assert hearing.failures() == {}
    assert hearing.failing_for("Service") == 0.0


async def test_an_expired_token_is_logged_once_whatever_the_server_repeats() -> None:
    """Three reflectors, a real server that refuses each request, and more than a dozen attempts."""
    server, hearing = ApiServer(status(401)), Hearing(RESOURCES, Metrics(tuple(Family)))
    await server.start()
    transport = PlainTransport(server)
    timing = Timing(pauses=Backoff(0.01, 0.02))
    with capture_logs() as lines:
        tasks = [
            asyncio.create_task(reflect(resource, transport, Recorder(), timing=timing, observer=hearing))
            for resource in RESOURCES
        ]
        async with asyncio.timeout(10):
            while len(server.queries) < 42:  # noqa: ASYNC110  what is waited for is in another process's hands
                await asyncio.sleep(0.005)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await transport.close()
    await server.stop()
    assert [line["event"] for line in lines] == ["credentials_refused"]


async def test_credentials_that_fresh_ones_replace_are_no_trouble() -> None:
    hearing = Hearing(RESOURCES, Metrics(tuple(Family)))
    with capture_logs() as lines:
        hearing.interrupted("Service", Interruption.REFUSED, None)
    assert not lines
    assert hearing.failures() == {}
