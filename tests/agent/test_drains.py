"""When a drain begins and ends: pure, with the clock as an argument."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Collection
from typing import NamedTuple

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from ipvs_proxy.agent.sync.drains import Drains, Ending, Looks, Target
from ipvs_proxy.plan.tables import ACTIVE, DRAINING, RealServer, RealServerKey, VirtualServer
from ipvs_proxy.state.documents import DrainState
from tests.support.objects import real, virtual

KEY, POD = virtual("10.96.0.10"), real("10.244.0.1")


class Count(NamedTuple):
    active: int
    inactive: int


def server(pod: RealServer | None = None, *, lingering: bool = False) -> VirtualServer:
    found: dict[RealServerKey, RealServer] = {} if pod is None else {POD: pod}
    return VirtualServer(KEY, "rr", real_servers=found, lingering=frozenset([POD] if lingering else []))


NOT_WANTED, WANTED, SERVING = server(), server(pod=ACTIVE), server(lingering=True)
IN_KERNEL = server(pod=DRAINING)


@pytest.fixture
def endings() -> list[Ending]:
    return []


@pytest.fixture
def drains(endings: list[Ending]) -> Drains:
    drains = Drains(deadline=60.0, finished=endings.append)
    drains.observe(KEY, NOT_WANTED, IN_KERNEL, now=0.0)
    return drains


def test_real_server_with_weight_0_that_nobody_wants_is_draining(drains: Drains) -> None:
    assert len(drains) == 1
    assert drains.virtual_servers() == [KEY]


@pytest.mark.parametrize(
    ("active", "now", "level"), [(0, 1.0, "debug"), (1, 60.0, "info")], ids=["idle", "connections are cut"]
)
def test_end_of_a_drain_is_news_if_it_cuts_connections(drains: Drains, active: int, now: float, level: str) -> None:
    assert drains.due(KEY, {POD: Count(active, 0)}, now)
    with capture_logs() as logs:
        drains.observe(KEY, NOT_WANTED, NOT_WANTED, now)
    assert [(line["event"], line["log_level"]) for line in logs] == [("drained", level)]


def test_drains_are_counted_in_another_thread_while_they_begin_and_end(drains: Drains) -> None:
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for actual in (IN_KERNEL, NOT_WANTED):
                for number in range(200):
                    drains.observe(virtual(f"10.96.1.{number}"), NOT_WANTED, actual, now=0.0)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            assert 1 <= len(drains) <= 201
    finally:
        stop.set()
        thread.join()


def test_drains_are_described_in_another_thread_while_they_begin_and_end(drains: Drains) -> None:
    stop, many = threading.Event(), [real(f"10.244.{number // 200}.{number % 200 + 1}") for number in range(600)]
    emptied, full = server(), VirtualServer(KEY, "rr", real_servers=dict.fromkeys(many, DRAINING))

    def churn() -> None:
        while not stop.is_set():
            for actual in (full, emptied):
                drains.observe(KEY, NOT_WANTED, actual, now=0.0)

    thread, interval = threading.Thread(target=churn), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        numbers = set()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            numbers.add(len(drains.states(drains.virtual_servers(), now=1.0, limit=1_000)))
        assert numbers <= {0, 1, len(many)}, "a description had a part of the drains"
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


def test_weight_0_of_somebody_who_is_wanted_is_no_drain() -> None:
    drains = Drains(deadline=60.0, finished=lambda _: None)
    drains.observe(KEY, WANTED, IN_KERNEL, now=0.0)
    assert len(drains) == 0


@pytest.mark.parametrize(
    ("active", "inactive", "now", "ends"),
    [(0, 0, 1.0, True), (1, 0, 59.9, False), (0, 1, 59.9, False), (1, 0, 60.0, True), (0, 5, 60.0, True)],
)
def test_it_ends_when_idle_or_at_its_deadline(
    drains: Drains, active: int, inactive: int, now: float, ends: bool
) -> None:
    due = drains.due(KEY, {POD: Count(active, inactive)}, now)
    assert due == ([(KEY, POD)] if ends else [])


def test_outcome_is_told_when_the_real_server_is_gone(drains: Drains, endings: list[Ending]) -> None:
    drains.due(KEY, {POD: Count(0, 0)}, 1.0)
    assert endings == []
    drains.observe(KEY, NOT_WANTED, server(), now=1.0)
    assert endings == [Ending.IDLE]
    assert len(drains) == 0


def test_one_that_somebody_else_removed_is_told_as_gone(drains: Drains, endings: list[Ending]) -> None:
    drains.observe(KEY, NOT_WANTED, server(), now=1.0)
    assert endings == [Ending.GONE]


def test_one_that_is_wanted_again_has_returned(drains: Drains, endings: list[Ending]) -> None:
    drains.observe(KEY, WANTED, WANTED, now=1.0)
    assert endings == [Ending.RETURNED]


def test_deadline_counts_from_when_the_endpoint_stops_serving() -> None:
    drains = Drains(deadline=60.0, finished=lambda _: None)
    busy = {POD: Count(1, 0)}
    drains.observe(KEY, SERVING, IN_KERNEL, now=0.0)
    assert drains.due(KEY, busy, 1000.0) == []
    drains.observe(KEY, NOT_WANTED, IN_KERNEL, now=1000.0)
    assert drains.due(KEY, busy, 1059.0) == []
    drains.observe(KEY, NOT_WANTED, IN_KERNEL, now=1059.5)
    assert drains.due(KEY, busy, 1060.0) == [(KEY, POD)]


def test_without_a_deadline_only_idleness_ends_it() -> None:
    drains = Drains(deadline=0.0, finished=lambda _: None)
    drains.observe(KEY, NOT_WANTED, IN_KERNEL, now=0.0)
    assert drains.due(KEY, {POD: Count(1, 0)}, 1e9) == []


@pytest.mark.parametrize(
    ("timeout", "now", "ends"),
    [(5.0, 4.9, False), (5.0, 5.0, True), (0.0, 0.0, True), (math.inf, 1e9, False), (None, 60.0, True)],
)
def test_a_service_may_have_a_deadline_of_its_own_also_when_it_is_deleted(
    timeout: float | None, now: float, ends: bool
) -> None:
    for gone in (False, True):
        drains = Drains(deadline=60.0, finished=lambda _: None)
        desired = replace(NOT_WANTED, drain_timeout=timeout)
        drains.observe(KEY, replace(WANTED, drain_timeout=timeout), WANTED, now=0.0)
        drains.observe(KEY, None if gone else desired, IN_KERNEL, now=0.0)
        assert drains.due(KEY, {POD: Count(1, 0)}, now) == ([(KEY, POD)] if ends else [])


def test_connections_to_a_dead_node_end(endings: list[Ending]) -> None:
    drains = Drains(deadline=60.0, finished=endings.append, node_of=lambda _: "elsewhere")
    busy = {POD: Count(1, 0)}
    drains.observe(KEY, NOT_WANTED, IN_KERNEL, now=0.0)
    assert drains.suspects(9.9) == set()
    assert drains.suspects(10.0) == {"elsewhere"}
    assert drains.due(KEY, busy, 11.0, {"another"}) == []
    assert drains.due(KEY, busy, 11.0, {"elsewhere"}) == [(KEY, POD)]
    drains.observe(KEY, NOT_WANTED, server(), now=11.0)
    assert endings == [Ending.NODE_DEAD]


def test_an_endpoint_that_still_serves_is_not_suspected() -> None:
    drains = Drains(deadline=60.0, finished=lambda _: None, node_of=lambda _: "elsewhere")
    drains.observe(KEY, SERVING, IN_KERNEL, now=0.0)
    assert drains.suspects(1e9) == set()
    assert drains.due(KEY, {POD: Count(1, 0)}, 1e9, {"elsewhere"}) == []


def test_each_drain_is_told_with_its_age_and_what_is_left(drains: Drains) -> None:
    other, younger = virtual("10.96.0.11"), real("10.244.0.9")
    drains.observe(other, NOT_WANTED, VirtualServer(other, "rr", real_servers={younger: DRAINING}), now=10.0)
    drains.due(KEY, {POD: Count(2, 3)}, now=20.0)
    assert drains.states([other, KEY], now=20.0, limit=9) == [
        DrainState(str(KEY), str(POD), seconds=20.0, seconds_left=40.0, connections=5),
        DrainState(str(other), str(younger), seconds=10.0, seconds_left=50.0, connections=None),
    ]
    assert [found.seconds for found in drains.states([other, KEY], now=20.0, limit=1)] == [20.0]
    assert drains.states([virtual("10.96.0.12")], now=20.0, limit=9) == []


@pytest.mark.parametrize(("deadline", "desired"), [(0.0, NOT_WANTED), (60.0, SERVING)])
def test_nothing_is_left_to_tell_where_there_is_no_deadline(deadline: float, desired: VirtualServer) -> None:
    drains = Drains(deadline=deadline, finished=lambda _: None)
    drains.observe(KEY, desired, IN_KERNEL, now=0.0)
    assert [found.seconds_left for found in drains.states([KEY], now=20.0, limit=9)] == [None]


def test_a_drain_that_begins_is_looked_at_without_delay(drains: Drains) -> None:
    assert drains.begun.is_set()
    drains.begun.clear()
    drains.observe(KEY, NOT_WANTED, IN_KERNEL, now=1.0)
    assert not drains.begun.is_set()


def test_a_virtual_server_that_nobody_wants_drains_as_a_whole(endings: list[Ending]) -> None:
    drains = Drains(deadline=60.0, finished=endings.append)
    drains.observe(KEY, None, IN_KERNEL, now=0.0)
    assert drains.due(KEY, {POD: Count(0, 0)}, 0.0) == [(KEY, POD)]
    drains.observe(KEY, None, None, now=0.0)
    assert endings == [Ending.IDLE]


def test_deletion_of_the_virtual_server_ends_its_drains(drains: Drains, endings: list[Ending]) -> None:
    drains.observe(KEY, None, None, now=1.0)
    assert (len(drains), endings) == (0, [Ending.GONE])


def test_one_that_cannot_be_counted_stays(drains: Drains) -> None:
    assert drains.due(KEY, {}, 1e9) == []


# What the counters do not say.


@pytest.mark.parametrize(
    ("counted", "doubtful"),
    [(Count(1, 2), False), (Count(0, 2), True), (Count(0, 0), False)],
    ids=["established", "inactive", "none"],
)
def test_inactive_connections_need_a_look_at_their_states(drains: Drains, counted: Count, *, doubtful: bool) -> None:
    assert drains.doubtful(KEY, {POD: counted}) == ([(KEY, POD)] if doubtful else [])


def test_udp_has_no_state_to_look_at() -> None:
    drains, key = Drains(deadline=60.0, finished=lambda _: None), KEY._replace(protocol=17)
    drains.observe(key, replace(SERVING, key=key), replace(IN_KERNEL, key=key), now=0.0)
    assert len(drains) == 1
    assert drains.doubtful(key, {POD: Count(0, 1)}) == []


def test_it_ends_with_the_last_connection_that_is_not_closed_by_both_sides(
    drains: Drains, endings: list[Ending]
) -> None:
    assert drains.due(KEY, {POD: Count(0, 3)}, 1.0) == []
    assert drains.due(KEY, {POD: Count(1, 3)}, 1.0, over=[(KEY, POD)]) == [], "one was opened after the look"
    assert drains.due(KEY, {POD: Count(0, 3)}, 1.0, over=[(KEY, POD)]) == [(KEY, POD)]
    drains.observe(KEY, NOT_WANTED, NOT_WANTED, now=1.0)
    assert endings == [Ending.IDLE]


async def test_looks_take_a_small_share_of_the_time() -> None:
    now, looked = [0.0], []

    def look(targets: Collection[Target]) -> set[Target]:
        looked.append(now[0])
        now[0] += 2.0
        return set()

    looks = Looks(look, clock=lambda: now[0])
    assert await looks.over([]) == ()
    assert await looks.over([(KEY, POD)]) == {(KEY, POD)}
    while now[0] < 100.0:
        await looks.over([(KEY, POD)])
        now[0] += 1.0
    assert looked == [0.0, 42.0, 84.0]


async def test_without_the_table_the_counters_decide() -> None:
    def look(targets: Collection[Target]) -> set[Target]:
        raise PermissionError(13, "not allowed")

    assert await Looks(look).over([(KEY, POD)]) == ()
