"""Changes of how a Service's connections are shared out, in the middle of its traffic: each in place, with one message.

While the kernel changes a scheduler, a virtual server has none for a moment, and would refuse whoever comes just then:
a member of a set comes before and goes after, by which their first packet is dropped, to come again a second later.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import pytest

from lab import manifests
from lab.agent import Agent, eventually, running_agent
from lab.topology import FAMILIES, Topology, exchange, topology
from tests.ring.scheduled import answering, done_since, entries, operations, saved, service, slices, vips_of

PODS = ("pod1", "pod2", "pod3")
CHANGED, OTHER = 70, 71
OPEN, REQUESTS = 50, 1_000


class Change(NamedTuple):
    """What the Service asks for, what ``ipvsadm`` shows then, and of how many objects that is a change."""

    wishes: dict[str, str]
    scheduler: str
    weights: tuple[int, int, int]
    objects: int


ZONE_A = "zone=zone-a:"
MH, SH = {"scheduler": "mh"}, {"scheduler": "sh"}
#: mh and sh refuse who has an endpoint of weight 0 until they have made their table anew, or else fall back to another.
FALLBACK = {**MH, "scheduler-flags": "mh-fallback"}
#: One after another, and the first one after the last. The Service has two virtual servers with three pods each.
SCHEDULERS = (
    Change({"scheduler": "lc"}, "lc", (1, 1, 1), 2),
    Change(MH, "mh -b mh-fallback,mh-port", (1, 1, 1), 2),
    Change({**SH, "scheduler-flags": "sh-port,sh-fallback"}, "sh -b sh-fallback,sh-port", (1, 1, 1), 2),
    Change({"weights": f"{ZONE_A}3"}, "wrr", (3, 1, 1), 4),
    Change({}, "rr", (1, 1, 1), 4),
)
SETTINGS = (
    Change({**MH, "scheduler-flags": ""}, "mh", (1, 1, 1), 2),
    Change(FALLBACK, "mh -b mh-fallback", (1, 1, 1), 2),
    Change({**FALLBACK, "weights": f"{ZONE_A}5"}, "mh -b mh-fallback", (5, 1, 1), 2),
    Change({**FALLBACK, "weights": f"{ZONE_A}0"}, "mh -b mh-fallback", (0, 1, 1), 2),
    Change({**MH, "max-connections": "9999", "weights": f"{ZONE_A}2"}, "mh -b mh-fallback,mh-port", (2, 1, 1), 8),
    Change({**MH, "weights": f"{ZONE_A}2"}, "mh -b mh-fallback,mh-port", (2, 1, 1), 6),
    Change(MH, "mh -b mh-fallback,mh-port", (1, 1, 1), 2),
)


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with topology() as net, answering(net, *PODS):
        yield net


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("manifests")
    manifests.write(directory, "node", manifests.node())
    for name, number in (("changed", CHANGED), ("other", OTHER)):
        manifests.write(directory, name, service(name, number), *slices(name, *PODS))
    return directory


@pytest.fixture(scope="module")
def agent(net: Topology, directory: Path) -> Iterator[Agent]:
    with running_agent(net, directory) as agent:
        yield agent


def shows(net: Topology, change: Change) -> bool:
    return all(
        [line.rpartition("-s ")[2] if "-A" in line else line.rpartition("-w ")[2] for line in of_family.splitlines()]
        == [change.scheduler, *map(str, change.weights)]
        for of_family in (saved(net, vip) for vip in vips_of(CHANGED).values())
    )


def write_changed(directory: Path, change: Change) -> None:
    manifests.write(directory, "changed", service("changed", CHANGED, change.wishes), *slices("changed", *PODS))


@contextmanager
def requests(net: Topology) -> Iterator[tuple[threading.Thread, list[str]]]:
    """Make requests, one after another, over both families; yield who makes them, and what fails."""
    failures: list[str] = []

    def make() -> None:
        with net.inside("client"):
            for number in range(REQUESTS):
                try:
                    with socket.create_connection((vips_of(CHANGED)[FAMILIES[number % 2]], 80), timeout=10) as client:
                        exchange(client)
                except OSError as error:
                    failures.append(repr(error))

    thread = threading.Thread(target=make)
    thread.start()
    try:
        yield thread, failures
    finally:
        thread.join()


@pytest.mark.parametrize(
    ("changes", "more"),
    [(SETTINGS, {}), (SCHEDULERS, {("sets", "add"): 2, ("sets", "delete"): 2})],
    ids=["settings", "schedulers"],
)
def test_a_change_takes_place_under_traffic(
    net: Topology,
    directory: Path,
    agent: Agent,
    changes: tuple[Change, ...],
    more: dict[tuple[str, str], int],
) -> None:
    assert agent.named("started")
    write_changed(directory, changes[-1])
    eventually(lambda: shows(net, changes[-1]))
    others = {vip: saved(net, vip) for vip in vips_of(OTHER).values()}
    with ExitStack() as stack:
        opened = [
            stack.enter_context(net.connect("client", vips_of(CHANGED)[FAMILIES[number % 2]], 80))
            for number in range(OPEN)
        ]
        served = [exchange(client)[0] for client in opened]
        maker, failures = stack.enter_context(requests(net))
        for made, change in enumerate(cycle(changes)):
            if made >= len(changes) and not maker.is_alive():
                break
            before = operations(net)
            write_changed(directory, change)
            expected = {("ipvs", "set"): change.objects, **more}
            eventually(
                lambda before=before, expected=expected: done_since(net, before).total() >= sum(expected.values())
            )
            assert shows(net, change), change
            assert done_since(net, before) == expected, change
        assert [exchange(client)[0] for client in opened] == served
    assert failures == []
    assert {vip: saved(net, vip) for vip in others} == others
    assert all(len(entries(net, vip)) >= (OPEN + REQUESTS) / 2 for vip in vips_of(CHANGED).values())
