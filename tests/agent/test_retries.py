"""When what failed is tried again: pure, with the clock as an argument."""

from __future__ import annotations

from ipvs_proxy.agent.sync.retries import BACKOFF, RetryQueue
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import SetEntry
from tests.support.objects import packed, virtual

FIRST_DELAY, LONGEST_DELAY = BACKOFF
A, B = virtual("10.96.0.1"), virtual("10.96.0.2")


def keys(*servers: object) -> TableKeys:
    return TableKeys(virtual_servers=set(servers))


def test_delay_doubles_up_to_its_limit() -> None:
    queue, now, delays = RetryQueue(), 0.0, []
    for _ in range(10):
        delays.append(queue.failed(keys(A), now))
        now += delays[-1]
        assert queue.take_due(now).virtual_servers == {A}
    assert delays[:4] == [FIRST_DELAY, 2 * FIRST_DELAY, 4 * FIRST_DELAY, 8 * FIRST_DELAY]
    assert delays[-1] == LONGEST_DELAY


def test_some_of_what_waits_is_named() -> None:
    queue = RetryQueue()
    queue.failed(TableKeys({A}, {packed("10.96.0.2")}), 0.0)
    assert set(queue.waiting(9)) == {A, packed("10.96.0.2")}
    assert len(queue.waiting(1)) == 1
    queue.settled(keys(A), TableKeys())
    assert queue.waiting(9) == [packed("10.96.0.2")]


def test_keys_are_due_by_themselves() -> None:
    queue = RetryQueue()
    queue.failed(keys(A), 0.0)
    queue.failed(keys(B), 0.3)
    assert queue.take_due(FIRST_DELAY).virtual_servers == {A}
    assert queue.next_due() == 0.3 + FIRST_DELAY


def test_success_forgets_the_attempts_but_those_still_failing_keep_theirs() -> None:
    queue = RetryQueue()
    for key in (A, B):
        queue.failed(keys(key), 0.0)
    queue.settled(keys(A, B), failing=keys(B))
    assert len(queue) == 1
    assert queue.take_due(100.0).virtual_servers == {B}
    assert queue.failed(keys(A, B), 100.0) == 2 * FIRST_DELAY


def test_what_succeeded_meanwhile_is_not_due() -> None:
    queue = RetryQueue()
    queue.failed(keys(A), 0.0)
    queue.settled(keys(A), failing=keys())
    assert queue.next_due() is None
    assert not queue.take_due(100.0)


def test_keys_of_all_tables_come_back_as_what_they_are() -> None:
    queue = RetryQueue()
    touched = TableKeys({A}, {packed("10.96.0.1")}, {("KUBE-CLUSTER-IP", SetEntry(packed("10.96.0.1"), 6, 80))})
    queue.failed(touched, 0.0)
    assert queue.take_due(FIRST_DELAY) == touched


def test_changes_of_what_is_refused_add_no_retries() -> None:
    queue = RetryQueue()
    for second in range(100):
        queue.settled(keys(A), failing=keys(A))
        queue.failed(keys(A), float(second))
    now, retries = 100.0, 0
    while (due := queue.next_due()) is not None and due < 100.0 + 10 * LONGEST_DELAY:
        now = max(now, due)
        assert queue.take_due(now).virtual_servers == {A}
        queue.failed(keys(A), now)
        retries += 1
    assert retries <= 11, f"{retries} retries in the time of 10"


def test_what_is_refused_for_what_it_asks_holds_nothing_up() -> None:
    queue = RetryQueue()
    queue.failed(keys(A), 0.0, refused={A})
    assert not queue.is_held_up()
    queue.failed(keys(B), 0.0)
    assert queue.is_held_up(), "another one waits, which is not"
    queue.settled(keys(B), failing=keys())
    assert not queue.is_held_up()
    queue.failed(keys(A), 1.0)
    assert queue.is_held_up(), "now it fails for another reason"
    queue.settled(keys(A), failing=keys())
    assert not queue.is_held_up()
