"""The reflector against a scripted HTTP server on the loopback: each test is one way in which a watch goes wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ipvs_proxy.kube.reflector import Timing, reflect
from ipvs_proxy.kube.resources import SERVICES
from ipvs_proxy.kube.sinks import Interruption
from ipvs_proxy.pacing import Backoff
from tests.support.apiserver import Answer, ApiServer, PlainTransport, bookmark, line, page, service, status, stream
from tests.support.recorder import Recorder

REFUSED_STREAMING = status(422)
QUIET = stream(hang=True)
FAST = Timing(watch=300.0, inactivity=5.0, pauses=Backoff(0.01, 0.05))


class Running:
    def __init__(self, server: ApiServer, sink: Recorder, transport: PlainTransport, pauses: list[float]) -> None:
        self.server, self.sink, self.transport, self.pauses = server, sink, transport, pauses

    async def until(self, condition: Callable[[], object], patience: float = 10.0) -> None:
        async with asyncio.timeout(patience):
            while not condition():  # noqa: ASYNC110  what is waited for is in another process's hands
                await asyncio.sleep(0.005)

    def watches(self) -> list[str]:
        """The resource versions that watches went on from."""
        return [
            query["resourceVersion"] for query in self.server.queries if "watch" in query and "resourceVersion" in query
        ]


@asynccontextmanager
async def reflecting(*script: Answer, timing: Timing = FAST) -> AsyncIterator[Running]:
    server, sink, pauses = ApiServer(*script), Recorder(), []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(min(seconds, 0.05))

    await server.start()
    transport = PlainTransport(server)
    task = asyncio.create_task(
        reflect(SERVICES, transport, sink, timing=timing, jitter=lambda: 0.5, sleep=sleep, observer=sink)
    )
    try:
        yield Running(server, sink, transport, pauses)
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await transport.close()
        await server.stop()


INITIAL = (line("ADDED", service("a", "5")), line("ADDED", service("b", "6")), bookmark("9", initial_end=True))


async def test_streaming_list_goes_on_as_a_watch() -> None:
    async with reflecting(stream(*INITIAL, line("MODIFIED", service("a", "11", "10.0.0.2")), hang=True)) as running:
        await running.until(lambda: len(running.sink.changes) == 3)
        assert running.sink.batches[0] == 2
        assert running.sink.synced_kinds == ["Service"]
        query = running.server.queries[0]
        assert query["sendInitialEvents"] == "true"
        assert query["resourceVersionMatch"] == "NotOlderThan"
        assert query["labelSelector"] == "!service.kubernetes.io/service-proxy-name"
        assert query["fieldSelector"] == "spec.clusterIP!=None"


async def test_first_list_is_handed_on_as_it_comes() -> None:
    async with reflecting(stream(*INITIAL[:2], hang=True)) as running:
        await running.until(lambda: running.sink.known.keys() == {"a", "b"})
        assert not running.sink.synced_kinds


async def test_half_a_streaming_list_is_begun_again_and_what_has_gone_is_taken_back() -> None:
    async with reflecting(stream(*INITIAL[:2]), stream(*INITIAL[1:], hang=True)) as running:
        await running.until(lambda: running.sink.synced_kinds)
        assert running.sink.changes == [(None, "a"), (None, "b"), ("a", None)]


@pytest.mark.parametrize("refusal", [status(400), status(422), page(service("a"))], ids=["400", "422", "plain list"])
async def test_server_without_streaming_lists_is_asked_for_pages(refusal: Answer) -> None:
    script = (refusal, page(service("a"), token="more"), page(service("b"), version="20"), QUIET)
    async with reflecting(*script) as running:
        await running.until(running.watches)
        assert sorted(running.sink.known) == ["a", "b"]
        assert running.server.queries[1]["limit"] == "500"
        assert running.server.queries[1]["resourceVersion"] == "0"
        assert running.server.queries[2]["continue"] == "more"
        assert running.watches() == ["20"]


async def test_expired_continue_token_begins_the_list_again() -> None:
    begun = (REFUSED_STREAMING, page(service("a"), token="old"), status(410))
    async with reflecting(*begun, REFUSED_STREAMING, page(service("b"), version="30"), QUIET) as running:
        await running.until(running.watches)
        assert list(running.sink.known) == ["b"]


GONE_EVENT = stream(line("ERROR", {"kind": "Status", "code": 410, "message": "too old"}))


@pytest.mark.parametrize("gone", [GONE_EVENT, status(410)], ids=["event", "status"])
async def test_410_leads_to_a_list_that_delivers_only_differences(gone: Answer) -> None:
    relist = page(service("a", "77"), service("c", "78"), version="80")
    async with reflecting(
        REFUSED_STREAMING, page(service("a", "1"), service("b", "2")), gone, relist, QUIET
    ) as running:
        await running.until(lambda: "80" in running.watches())
        # "a" has a new version but says the same: no change.
        assert running.sink.changes[2:] == [("b", None), (None, "c")]


async def test_end_of_stream_goes_on_from_the_last_version_without_a_list() -> None:
    async with reflecting(
        REFUSED_STREAMING, page(service("a")), stream(line("ADDED", service("b", "15")), bookmark("17")), QUIET
    ) as running:
        await running.until(lambda: len(running.watches()) == 2)
        assert running.watches() == ["10", "17"]
        assert sorted(running.sink.known) == ["a", "b"]


async def test_half_a_line_at_the_end_is_dropped_and_read_again() -> None:
    whole = line("ADDED", service("b", "15"))
    async with reflecting(REFUSED_STREAMING, page(), stream(whole[:40]), stream(whole, hang=True)) as running:
        await running.until(lambda: "b" in running.sink.known)
        assert running.watches() == ["10", "10"]


async def test_lines_that_drip_in_single_bytes_are_put_together() -> None:
    drip = [part for byte in line("ADDED", service("b", "15")) for part in (bytes([byte]), 0.0005)]
    async with reflecting(REFUSED_STREAMING, page(), stream(*drip, hang=True)) as running:
        await running.until(lambda: "b" in running.sink.known)


async def test_silence_ends_the_watch_and_it_goes_on() -> None:
    timing = FAST._replace(inactivity=0.1)
    async with reflecting(REFUSED_STREAMING, page(), QUIET, timing=timing) as running:
        await running.until(lambda: len(running.watches()) >= 3)


async def test_restart_of_the_server_is_survived_without_a_list() -> None:
    async with reflecting(REFUSED_STREAMING, page(service("a")), QUIET) as running:
        await running.until(running.watches)
        await running.server.stop()
        await running.until(lambda: len(running.pauses) > 4)
        running.server.script = [stream(line("DELETED", service("a", "40")), hang=True)]
        await running.server.start()
        await running.until(lambda: not running.sink.known)
        assert set(running.watches()) == {"10"}


async def test_401_is_answered_with_fresh_credentials_at_once() -> None:
    async with reflecting(status(401), stream(*INITIAL, hang=True)) as running:
        await running.until(lambda: running.sink.synced_kinds)
        assert running.server.tokens[:2] == ["Bearer 0", "Bearer 1"]
        assert running.pauses == []


async def test_401_that_stays_backs_off() -> None:
    async with reflecting(status(401)) as running:
        await running.until(lambda: len(running.pauses) >= 4)
        assert running.pauses[0] < running.pauses[2] <= FAST.pauses.longest


async def test_retry_after_is_honoured_and_spread() -> None:
    async with reflecting(status(429, **{"Retry-After": "7"}), stream(*INITIAL, hang=True)) as running:
        await running.until(lambda: running.sink.synced_kinds)
        assert 7.0 < running.pauses[0] < 14.0


async def test_list_of_ten_megabytes_and_a_line_of_ten_megabytes_are_read() -> None:
    many = [service(f"s{number}", annotations_of_some_length="x" * 1000) for number in range(10_000)]
    huge = service("huge", "12", ports=[{"name": f"p{number}", "port": 80, "x": "y" * 5000} for number in range(2000)])
    async with reflecting(REFUSED_STREAMING, page(*many), stream(line("ADDED", huge), hang=True)) as running:
        await running.until(lambda: "huge" in running.sink.known)
        assert len(running.sink.known) == 10_001


async def test_malformed_objects_are_skipped_by_name_and_keep_their_last_good_version() -> None:
    script = (
        REFUSED_STREAMING,
        page(service("good"), service("bad", cluster_ip=5)),
        stream(line("MODIFIED", service("good", "20", {"not": "text"})), line("ADDED", service("other", "21"))),
        status(410),
        page(service("good", cluster_ip=7), service("other"), version="40"),
        QUIET,
    )
    async with reflecting(*script) as running:
        await running.until(lambda: "40" in running.watches())
        assert sorted(running.sink.known) == ["good", "other"]
        assert running.sink.faults == ["Service ns/bad", "Service ns/good", "Service ns/good"]


async def test_garbage_instead_of_an_event_is_survived() -> None:
    async with reflecting(
        REFUSED_STREAMING, page(), stream(b"<html>sorry</html>\n"), stream(line("ADDED", service("b")), hang=True)
    ) as running:
        await running.until(lambda: "b" in running.sink.known)


#: With status 200, and no list of Services.
WRONG_ANSWERS: dict[str, Answer] = {
    "a Status": status(200, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500}),
    "an error of a proxy": status(200, {"error": "upstream unavailable"}),
    "pods": page(kind="PodList"),
    "another version": page(apiVersion="v2"),
    "no kind": status(200, {"apiVersion": "v1", "metadata": {"resourceVersion": "9"}, "items": []}),
    "no version": status(200, {"kind": "ServiceList", "metadata": {"resourceVersion": "9"}, "items": []}),
    "no items": status(200, {"kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": "9"}}),
    "items that are none": page(items="none"),
    "items of another kind": page(items=[{"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}}]),
    "texts": page(items=["a", "b"]),
    "a list of any kind": page(kind="List"),
    "a table": page(kind="Table", apiVersion="meta.k8s.io/v1"),
    "an event": stream(line("ADDED", service("x"))),
    "half a list": stream(b'{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"9"},"items":['),
    "two lists": stream(2 * b'{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"9"},"items":[]}'),
    "a web page": stream(b"<html><body>\n<h1>Sorry</h1>\n</body></html>"),
    "a number": stream(b"7"),
    "null": stream(b"null"),
    "an array": stream(b"[]"),
    "brackets": stream(b"}]}]"),
    "nothing": stream(),
}


def wrong(*but: str) -> pytest.MarkDecorator:
    names = [name for name in WRONG_ANSWERS if name not in but]
    return pytest.mark.parametrize("answer", [WRONG_ANSWERS[name] for name in names], ids=names)


@wrong()
async def test_an_answer_that_is_no_list_at_the_start_is_no_empty_one(answer: Answer) -> None:
    """The server knows no streaming lists, and then answers something else four times."""
    script = [*[REFUSED_STREAMING, answer] * 4, REFUSED_STREAMING, page(service("a")), QUIET]
    async with reflecting(*script) as running:
        await running.until(lambda: len(running.sink.causes) == 4)
        assert not running.sink.synced_kinds
        await running.until(lambda: running.sink.synced_kinds)
        assert list(running.sink.known) == ["a"]
        assert running.sink.causes == [Interruption.MALFORMED] * 4
        assert running.pauses[6] > running.pauses[1], "it does not wait longer each time"


@wrong("an event", "nothing")
async def test_an_answer_that_is_no_streaming_list_is_no_empty_one(answer: Answer) -> None:
    async with reflecting(answer, answer, stream(*INITIAL[:1], bookmark("10", initial_end=True), hang=True)) as running:
        await running.until(lambda: running.sink.synced_kinds)
        assert list(running.sink.known) == ["a"]
        assert running.sink.causes == [Interruption.MALFORMED], "the second answer was to a page"


@wrong()
async def test_an_answer_that_is_no_list_after_a_410_removes_nothing(answer: Answer) -> None:
    before = page(service("a"), service("b"))
    again = [answer, REFUSED_STREAMING] * 2
    script = [REFUSED_STREAMING, before, status(410), *again, page(service("b"), version="40"), QUIET]
    async with reflecting(*script) as running:
        await running.until(lambda: len(running.sink.causes) == 3)
        assert sorted(running.sink.known) == ["a", "b"]
        await running.until(lambda: "40" in running.watches())
        assert list(running.sink.known) == ["b"]
        assert running.sink.changes == [(None, "a"), (None, "b"), ("a", None)]


@wrong()
async def test_a_page_that_is_none_removes_nothing(answer: Answer) -> None:
    before = page(service("a"), service("b"))
    half = [page(service("a"), token="more"), answer]
    script = [REFUSED_STREAMING, before, status(410), *half, REFUSED_STREAMING, before, QUIET]
    async with reflecting(*script) as running:
        await running.until(lambda: len(running.watches()) >= 2)
        assert running.sink.changes == [(None, "a"), (None, "b")]


@wrong("an event", "nothing")
async def test_an_answer_that_is_no_watch_is_told_and_removes_nothing(answer: Answer) -> None:
    script = [REFUSED_STREAMING, page(service("a")), answer, answer, stream(line("ADDED", service("b")), hang=True)]
    async with reflecting(*script) as running:
        await running.until(lambda: "b" in running.sink.known)
        assert running.sink.causes == [Interruption.MALFORMED] * 2
        assert sorted(running.sink.known) == ["a", "b"]


@pytest.mark.parametrize("type_", ["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "RENAMED"])
@pytest.mark.parametrize(
    "other",
    [
        {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a", "namespace": "ns", "resourceVersion": "99"}},
        {"kind": "Service", "apiVersion": "v2", "metadata": {"name": "a", "namespace": "ns", "resourceVersion": "99"}},
        {"metadata": {"name": "a", "namespace": "ns", "resourceVersion": "99"}},
        {"kind": "Status", "apiVersion": "v1", "message": "no"},
        {"error": "upstream unavailable"},
        ["a"],
        None,
    ],
    ids=["pod", "version", "no kind", "status", "error", "array", "null"],
)
async def test_an_object_of_another_kind_in_an_event_changes_nothing(type_: str, other: Any) -> None:
    again = stream(line("ADDED", service("b")), hang=True)
    async with reflecting(REFUSED_STREAMING, page(service("a")), stream(line(type_, other)), again) as running:
        await running.until(lambda: "b" in running.sink.known)
        assert running.sink.changes == [(None, "a"), (None, "b")]
        assert running.watches() == ["10", "10"]
        assert running.sink.causes == [Interruption.MALFORMED]


async def test_a_list_that_says_that_it_is_empty_is() -> None:
    for empty in (page(version="40"), page(version="40", items=None)):
        async with reflecting(REFUSED_STREAMING, page(service("a")), status(410), empty, QUIET) as running:
            await running.until(lambda: "40" in running.watches())
            assert not running.sink.known


async def test_an_item_without_a_name_may_be_any_of_those_that_are_missing() -> None:
    nameless = {"metadata": {"name": 7}, "spec": {}}
    before, after = page(service("a"), service("b")), page(service("a"), nameless, version="40")
    async with reflecting(REFUSED_STREAMING, before, status(410), after, QUIET) as running:
        await running.until(lambda: "40" in running.watches())
        assert sorted(running.sink.known) == ["a", "b"]


@pytest.mark.parametrize("code", [201, 204, 206, 302, 303])
async def test_a_status_that_is_no_success_of_a_list_is_a_refusal(code: int) -> None:
    odd = status(code, {"kind": "ServiceList", "apiVersion": "v1", "items": []})
    async with reflecting(REFUSED_STREAMING, odd, REFUSED_STREAMING, page(service("a")), QUIET) as running:
        await running.until(lambda: running.sink.synced_kinds)
        assert list(running.sink.known) == ["a"]
        assert running.sink.causes == [Interruption.REFUSED]


MONSTER = service("monster", "20", annotations="x" * (17 << 20))


async def test_an_event_of_a_monstrous_object_is_skipped_by_name_and_the_watch_goes_on() -> None:
    compact = json.dumps({"type": "MODIFIED", "object": MONSTER}, separators=(",", ":")).encode() + b"\n"
    events = stream(compact, line("ADDED", service("b", "21")), hang=True)
    async with reflecting(REFUSED_STREAMING, page(service("monster")), events) as running:
        await running.until(lambda: "b" in running.sink.known)
        assert running.sink.faults == ["Service ns/monster"]
        assert sorted(running.sink.known) == ["b", "monster"]
        assert running.sink.causes == []


async def test_a_monstrous_item_of_a_list_is_skipped_and_stays_as_it_was() -> None:
    body = {"kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": "40"}}
    items = [{key: MONSTER[key] for key in ("metadata", "spec")}, service("b")]
    relist = stream(json.dumps({**body, "items": items}, separators=(",", ":")).encode())
    before = page(service("monster"), service("a"))
    async with reflecting(REFUSED_STREAMING, before, status(410), relist, QUIET) as running:
        await running.until(lambda: "40" in running.watches())
        assert sorted(running.sink.known) == ["b", "monster"]
        assert running.sink.faults == ["Service ns/monster"]


async def test_retry_after_is_bounded() -> None:
    for asked in ("1000000000", "9" * 400, "٩" * 9):
        refusal = status(503, **{"Retry-After": asked})
        async with reflecting(refusal, stream(*INITIAL, hang=True)) as running:
            await running.until(lambda: running.sink.synced_kinds)
            assert running.pauses[0] <= 240.0


@pytest.mark.parametrize("tokens", [("x", "x"), ("x", "y", "x"), ("x", "y", "y")], ids=" ".join)
async def test_continue_tokens_that_lead_in_a_circle_end_the_list(tokens: tuple[str, ...]) -> None:
    pages = [page(service("a"), token=token) for token in tokens]
    again = (REFUSED_STREAMING, page(service("b"), version="40"))
    async with reflecting(REFUSED_STREAMING, *pages, *again, QUIET) as running:
        await running.until(lambda: "40" in running.watches())
        assert running.sink.causes == [Interruption.MALFORMED]
        assert list(running.sink.known) == ["b"]


async def test_a_refusal_is_quoted_by_its_message_and_in_part() -> None:
    refusals = [status(500, {"kind": "Status", "message": "etcd is\ntired"}), status(500, {"not": "x" * 100_000})]
    async with reflecting(*refusals, QUIET) as running:
        await running.until(lambda: len(running.sink.errors) == 2)
        first, second = map(str, running.sink.errors)
        assert first == "HTTP 500: etcd is tired"
        assert len(second) < 300


async def test_watches_that_end_at_once_do_not_spin_and_are_told() -> None:
    async with reflecting(REFUSED_STREAMING, page(), stream()) as running:
        await running.until(lambda: len(running.watches()) >= 6)
        assert set(running.sink.causes) == {Interruption.BROKEN}
        assert len(running.pauses) >= 5
        assert running.pauses[-1] > running.pauses[0]


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (GONE_EVENT, Interruption.EXPIRED),
        (status(410), Interruption.EXPIRED),
        (status(401), Interruption.REFUSED),
        (status(503), Interruption.REFUSED),
        (QUIET, Interruption.SILENT),
        (stream(b"<html>sorry</html>\n"), Interruption.MALFORMED),
    ],
    ids=["410 event", "410", "401", "503", "silence", "garbage"],
)
async def test_interruption_is_told_with_its_cause(fault: Answer, cause: Interruption) -> None:
    script = (REFUSED_STREAMING, page(), fault, page(version="50"), QUIET)
    async with reflecting(*script, timing=FAST._replace(inactivity=0.3)) as running:
        await running.until(lambda: running.sink.causes)
        assert running.sink.causes[0] == cause


async def test_streaming_list_that_ends_too_early_is_no_silence() -> None:
    async with reflecting(stream(*INITIAL[:2]), stream(*INITIAL, hang=True)) as running:
        await running.until(lambda: running.sink.synced_kinds)
        assert running.sink.causes == [Interruption.BROKEN]


async def test_bookmarks_are_heard_and_an_ordinary_end_is_no_interruption() -> None:
    async with reflecting(REFUSED_STREAMING, page(), stream(bookmark("17")), QUIET) as running:
        await running.until(lambda: running.watches() == ["10", "17"])
        assert running.sink.words == 2  # the list, and the bookmark
        assert running.sink.causes == []
