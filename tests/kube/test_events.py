"""Events against a scripted API server, through the real client; the clock is the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog

from ipvs_proxy.kube import events as events_module
from ipvs_proxy.kube.client import connect
from ipvs_proxy.kube.events import LIMIT, Events, Regarding
from tests.support.apiserver import Answer, ApiServer, status

LB = Regarding("Service", "ns", "lb", "uid-1")
NODE = Regarding("Node", "", "node-0", "node-0")
CREATED, OK, NOT_FOUND = status(201), status(200), status(404)
BASE = "/apis/events.k8s.io/v1/namespaces/"
#: 2026-11-23T04:06:57.284839319Z
START = 1_795_406_817_284_839_319


class Scene:
    """The events, a server, and a clock that a test moves."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.seconds = 1000.0
        self.events: Events

    def emit(self, regarding: Regarding = LB, note: str = "cannot bind", **fields: Any) -> None:
        words: dict[str, Any] = {"type": "Warning", "reason": "Failed", "action": "Listen"} | fields
        self.events.emit(regarding, note=note, **words)

    async def run(self, seconds: float) -> None:
        """Let time pass, and do what is due when it is due."""
        end = self.seconds + seconds
        while (pause := await self.events.post_due()) is not None and self.seconds + pause <= end:
            self.seconds += pause
        self.seconds = end

    async def has_written(self, number: int) -> None:
        """Wait until the server got so many writes."""
        async with asyncio.timeout(5):
            while len(self.server.writes) < number:  # noqa: ASYNC110  the server does not tell
                await asyncio.sleep(0.005)

    @property
    def methods(self) -> list[str]:
        return [method for method, *_ in self.server.writes]

    @property
    def counts(self) -> list[int]:
        return [body.get("series", {"count": 1})["count"] for *_, body in self.server.writes]


@asynccontextmanager
async def scene(*script: Answer) -> AsyncIterator[Scene]:
    server = ApiServer(*script)
    await server.start()
    client = await connect(kubeconfig="", master=f"http://127.0.0.1:{server.port}")
    it = Scene(server)
    it.events = Events(
        client.send,
        reporting_instance="ipvs-proxy-host",
        clock=lambda: it.seconds,
        now=lambda: START + round((it.seconds - 1000) * 1e9),
    )
    try:
        yield it
    finally:
        await client.close()
        await server.stop()


async def test_event_is_posted_as_the_api_documents_it() -> None:
    async with scene(CREATED) as it:
        it.emit()
        assert await it.events.post_due() is not None
    ((method, path, content_type, body),) = it.server.writes
    assert (method, path, content_type) == ("POST", f"{BASE}ns/events", "application/json")
    assert body == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"lb.{START:016x}", "namespace": "ns"},
        "eventTime": "2026-11-23T04:06:57.284839Z",
        "reportingController": "ipvs-proxy",
        "reportingInstance": "ipvs-proxy-host",
        "regarding": {"apiVersion": "v1", "kind": "Service", "namespace": "ns", "name": "lb", "uid": "uid-1"},
        "type": "Warning",
        "reason": "Failed",
        "action": "Listen",
        "note": "cannot bind",
    }


@pytest.mark.parametrize(
    ("regarding", "namespace", "reference"),
    [
        (NODE, "default", {"apiVersion": "v1", "kind": "Node", "name": "node-0", "uid": "node-0"}),
        (
            Regarding("EndpointSlice", "a", "b"),
            "a",
            {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "namespace": "a", "name": "b"},
        ),
    ],
)
async def test_event_is_in_the_namespace_of_its_object_or_in_default(
    regarding: Regarding, namespace: str, reference: dict[str, str]
) -> None:
    async with scene(CREATED) as it:
        it.emit(regarding)
        await it.run(0)
    ((_, path, _, body),) = it.server.writes
    assert path == f"{BASE}{namespace}/events"
    assert body["metadata"]["namespace"] == namespace
    assert body["regarding"] == reference


@pytest.mark.parametrize(
    ("note", "posted"),
    [
        ("", ""),
        ("x" * 1024, "x" * 1024),
        ("x" * 1025, "x" * 1024),
        ("x" + "é" * 1000, "x" + "é" * 511),
        ("\ud800", "?"),
    ],
)
async def test_note_is_cut_to_what_the_api_takes(note: str, posted: str) -> None:
    async with scene(CREATED) as it:
        it.emit(note=note)
        await it.run(0)
    assert it.server.writes[0][3]["note"] == posted


async def test_name_of_an_event_is_unique_and_within_253_characters() -> None:
    async with scene(CREATED) as it:
        for note in ("a", "b"):
            it.emit(Regarding("Node", "", "n" * 235 + "." + "m" * 17), note=note)
        await it.run(0)
    names = [body["metadata"]["name"] for *_, body in it.server.writes]
    assert names == [f"{'n' * 235}.{START + offset:016x}" for offset in (0, 1)]
    assert max(map(len, names)) <= 253


async def test_repetition_becomes_a_series_of_the_same_event() -> None:
    async with scene(CREATED, OK) as it:
        it.emit()
        await it.run(1)
        it.emit()
        await it.run(0)
    (_, _, _, posted), (method, path, content_type, patch) = it.server.writes
    assert (method, path) == ("PATCH", f"{BASE}ns/events/{posted['metadata']['name']}")
    assert content_type == "application/merge-patch+json"
    assert patch == {"series": {"count": 2, "lastObservedTime": "2026-11-23T04:06:58.284839Z"}}


async def test_series_that_goes_on_is_written_every_five_minutes_and_at_its_end() -> None:
    async with scene(CREATED, OK) as it:
        for _ in range(700):  # once per second
            it.emit()
            await it.run(1)
        assert it.counts == [1, 2, 301, 601]
        await it.run(3600)
        assert it.counts == [1, 2, 301, 601, 700]
        assert it.methods == ["POST", "PATCH", "PATCH", "PATCH", "PATCH"]
        it.emit()  # the series is over: this is a new event
        await it.run(0)
        assert it.methods[-1] == "POST"
        assert it.counts[-1] == 1


async def test_repetitions_before_the_first_write_are_in_it() -> None:
    async with scene(CREATED) as it:
        for _ in range(3):
            it.emit()
        await it.run(0)
    assert it.methods == ["POST"]
    assert it.server.writes[0][3]["series"] == {"count": 3, "lastObservedTime": "2026-11-23T04:06:57.284839Z"}


@pytest.mark.parametrize(
    "other",
    [{"note": "else"}, {"reason": "Else"}, {"type": "Normal"}, {"action": "Else"}, {"regarding": NODE}],
)
async def test_another_fact_is_another_event(other: dict[str, Any]) -> None:
    async with scene(CREATED) as it:
        it.emit()
        it.emit(**other)
        await it.run(0)
    assert it.methods == ["POST", "POST"]


async def test_event_that_the_server_forgot_is_posted_again() -> None:
    async with scene(CREATED, NOT_FOUND, CREATED) as it:
        it.emit()
        await it.run(1)
        it.emit()
        await it.run(1)
    assert it.methods == ["POST", "PATCH", "POST"]
    assert it.counts == [1, 2, 2]


async def test_object_has_25_events_at_once_and_then_one_per_five_minutes() -> None:
    async with scene(CREATED) as it:
        with structlog.testing.capture_logs() as logs:
            for number in range(40):
                it.emit(note=str(number))
            it.emit(NODE)  # not held up by the other object
            await it.run(60)
        assert [body["note"] for *_, body in it.server.writes] == [*map(str, range(25)), "cannot bind"]
        assert it.events.dropped == 15
        (line,) = [line for line in logs if line["event"] == "events_dropped"]
        assert line["regarding"] == "Service ns/lb"
        await it.run(240)
        it.emit(note="first after five minutes")
        it.emit(note="second after five minutes")
        await it.run(0)
        assert it.server.writes[-1][3]["note"] == "first after five minutes"
        assert it.events.dropped == 16


async def test_repetition_of_an_object_without_tokens_is_counted_and_written_later() -> None:
    async with scene(CREATED) as it:
        for number in range(25):
            it.emit(note=str(number))
        await it.run(10)
        for _ in range(50):
            it.emit(note="0")
            await it.run(1)
        assert it.methods == ["POST"] * 25
        await it.run(300)
        assert it.methods == ["POST"] * 25 + ["PATCH"]
        assert it.counts[-1] == 51
        assert len(it.events._heap) < 100  # waiting costs nothing


async def test_requests_of_all_objects_are_paced() -> None:
    async with scene(CREATED) as it:
        for number in range(40):
            it.emit(Regarding("Service", "ns", f"s{number}"))
        await it.run(0)
        assert len(it.server.writes) == 10
        await it.run(2)
        assert len(it.server.writes) == 20
        await it.run(4)
        assert len(it.server.writes) == 40
    assert it.events.dropped == 0


async def test_what_is_remembered_is_bounded_and_what_is_dropped_is_told_once() -> None:
    async with scene(CREATED) as it:
        with structlog.testing.capture_logs() as logs:
            for number in range(LIMIT + 100):
                it.emit(Regarding("Service", "ns", f"s{number}"))
        assert it.events.dropped == 100
        assert [line["event"] for line in logs] == ["events_dropped"]
        assert len(it.events._series) == LIMIT
        assert len(it.events._heap) <= 2 * LIMIT
        assert len(it.events._objects) <= LIMIT


@pytest.mark.parametrize("failure", [429, 500, 503, 401])
async def test_failure_is_tried_again_with_growing_pauses(failure: int) -> None:
    # The client itself asks twice when credentials are refused.
    failures = [status(failure)] * (4 if failure == 401 else 2)
    async with scene(*failures, CREATED) as it:
        it.emit()
        await it.run(0.9)
        assert len(it.server.writes) == len(failures) // 2
        await it.run(2.0)
        assert len(it.server.writes) == len(failures)
        await it.run(0.2)
        assert len(it.server.writes) == len(failures) + 1
        await it.run(300)
        assert len(it.server.writes) == len(failures) + 1


async def test_failure_that_stays_is_given_up_with_a_line() -> None:
    async with scene(status(500, {"message": "etcd is down"})) as it:
        with structlog.testing.capture_logs() as logs:
            it.emit()
            await it.run(300)
        assert it.methods == ["POST"] * events_module.ATTEMPTS
        (line,) = logs
        assert (line["event"], line["regarding"], line["note"]) == ("event_not_posted", "Service ns/lb", "cannot bind")
        assert "HTTP 500" in line["error"]
        assert "etcd is down" in line["error"]
        assert it.events.dropped == 1


async def test_server_that_is_not_there_is_tried_again() -> None:
    async with scene(CREATED) as it:
        await it.server.stop()
        it.emit()
        await it.run(0)
        assert it.server.writes == []
        await it.server.start()
        await it.run(1)
        assert it.methods == ["POST"]


@pytest.mark.parametrize("refusal", [400, 404, 422])
async def test_event_that_the_server_refuses_is_not_tried_again(refusal: int) -> None:
    async with scene(status(refusal), CREATED) as it:
        with structlog.testing.capture_logs() as logs:
            it.emit(note="bad")
            it.emit(note="good")
            await it.run(300)
    assert [body["note"] for *_, body in it.server.writes] == ["bad", "good"]
    assert [line["note"] for line in logs] == ["bad"]


async def test_event_that_is_there_already_was_posted() -> None:
    async with scene(status(409), OK) as it:
        it.emit()
        await it.run(1)
        it.emit()
        await it.run(1)
    assert it.methods == ["POST", "PATCH"]


async def test_without_the_right_to_write_events_nothing_is_tried_for_ten_minutes() -> None:
    async with scene(status(403), status(403), CREATED) as it:
        with structlog.testing.capture_logs() as logs:
            it.emit()
            it.emit(NODE)
            await it.run(599)
            assert len(it.server.writes) == 1
            await it.run(10)  # still forbidden
            assert len(it.server.writes) == 2
            await it.run(600)
            assert len(it.server.writes) == 4
        assert [line["event"] for line in logs] == ["events_forbidden"]  # once
        assert "events.k8s.io" in logs[0]["hint"]
    assert sorted(body["regarding"]["kind"] for *_, body in it.server.writes[2:]) == ["Node", "Service"]


async def test_namespace_that_is_being_deleted_does_not_stop_other_events() -> None:
    terminating = status(403, {"details": {"causes": [{"reason": "NamespaceTerminating"}]}})
    async with scene(terminating, CREATED) as it:
        it.emit()
        it.emit(NODE)
        await it.run(1)
    assert [body["regarding"]["kind"] for *_, body in it.server.writes] == ["Service", "Node"]


async def test_repetition_while_a_request_is_under_way_is_not_lost() -> None:
    async def slow(request: Any) -> Any:
        it.emit()
        return await CREATED(request)

    async with scene(slow, OK) as it:
        it.emit()
        await it.run(0)
    assert it.counts == [1, 2]


async def test_loop_writes_what_is_emitted_before_and_while_it_runs() -> None:
    async with scene(CREATED) as it:
        it.emit(note="before")
        task = asyncio.create_task(it.events.post_for_ever())
        for written, note in ((1, "while"), (2, "later")):
            await it.has_written(written)
            it.emit(note=note)
        await it.has_written(3)
        task.cancel()
        assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
    assert [body["note"] for *_, body in it.server.writes] == ["before", "while", "later"]


async def test_whatever_a_request_raises_the_other_events_go_on() -> None:
    posted = []

    async def send(method: str, path: str, body: bytes) -> Any:
        posted.append(path)
        if "ns" in path:
            raise RuntimeError("plugin broke")
        return events_module.Reply(201, "")

    seconds = 0.0
    events = Events(send, reporting_instance="x" * 200, clock=lambda: seconds)
    for regarding in (LB, NODE):
        events.emit(regarding, type="Normal", reason="R", action="A", note="n")
    assert await events.post_due() == pytest.approx(1.0)
    assert posted == [f"{BASE}ns/events", f"{BASE}default/events"]
