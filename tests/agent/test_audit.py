"""When an audit looks at what, with a clock that a test sets, over a fake kernel."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from errno import EIO

import pytest
from msgspec import structs

from ipvs_proxy.agent.sync.audit import IPV6_EVERY, audit_for_ever, follow_for_ever
from ipvs_proxy.kernel.dataplane import Failure
from ipvs_proxy.kernel.ipvs.records import ListDifference
from ipvs_proxy.kernel.links.monitor import LinkChange, LinkEvent
from ipvs_proxy.plan.tables import ACTIVE, DRAINING, Operation, RealServerKey, SetEntry, VirtualServer, VirtualServerKey
from tests.support.clock import Clock
from tests.support.failing import failing
from tests.support.fake_dataplane import FakeDataplane
from tests.support.listening import Listening
from tests.support.objects import dual_stack, endpoint, endpoint_slice, packed, service, virtual
from tests.support.rig import POD1, POD2, SLICE, VIP, WEB, Rig, running

#: Virtual servers, and how many of them are looked at in one go: four pieces of a round.
NUMBER, PIECE = 40, 10
MANY = [
    item
    for number in range(NUMBER)
    for item in (
        service(f"a{number}", cluster_ip=f"10.97.0.{number}"),
        endpoint_slice(endpoint("10.244.0.1"), name=f"a{number}-x", of=f"a{number}"),
    )
]
STRANGER, FOREIGN = virtual("10.96.9.9"), virtual("fd00::9")


@pytest.fixture
def plane() -> FakeDataplane:
    return FakeDataplane()


class Audits:
    """The audits of an agent, as they go on; what was begun and finished, and when real servers were looked at."""

    def __init__(self, rig: Rig, clock: Clock) -> None:
        self.rig = rig
        self.clock = clock
        self.period = 30.0
        self.rounds: list[tuple[str, float]] = []
        self.looks: list[float] = []
        self.until = 0.0
        self.due = 0.0
        self.later = asyncio.Event()
        #: Seconds that a look at real servers takes.
        self.takes = 0.0
        plane = rig.plane
        differing = plane.differing

        def timed(servers: Iterable[VirtualServer]) -> list[VirtualServerKey]:
            self.looks.append(clock.now - self.begin)
            clock.now += self.takes
            return differing(servers)

        plane.differing = timed  # type: ignore[method-assign]
        self.begin = clock.now

    async def sleep(self, seconds: float) -> None:
        """Sleep until the test lets the time go on to the end of it."""
        self.due = self.clock.now + seconds
        while self.until < self.due:
            await self.later.wait()
        self.clock.now, self.due = self.due, 0.0
        await asyncio.sleep(0)

    async def run(self) -> None:
        await audit_for_ever(
            self.rig.audit,
            period=lambda: self.period,
            begun=lambda: self.rounds.append(("begun", self.clock.now - self.begin)),
            finished=lambda: self.rounds.append(("finished", self.clock.now - self.begin)),
            clock=self.clock,
            sleep=self.sleep,
        )

    async def go_on(self, seconds: float) -> None:
        """Let time pass until some seconds after the begin; what was to happen until then has."""
        self.until = self.begin + seconds
        self.later.set()
        self.later = asyncio.Event()
        # All that is left is later.
        await self.rig.until(lambda: self.due > self.until)


@asynccontextmanager
async def auditing(plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Audits]:
    monkeypatch.setattr("ipvs_proxy.agent.sync.audit.LOOKED_AT_ONCE", PIECE)
    async with running(plane, *MANY) as rig:
        audits = Audits(rig, Clock())
        task = asyncio.create_task(audits.run())
        yield audits
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_round_is_spread_evenly_over_half_of_the_period_and_rounds_begin_once_in_each(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with auditing(plane, monkeypatch) as audits:
        await audits.go_on(89.0)
        assert audits.looks == pytest.approx([30.0, 33.75, 37.5, 41.25, 60.0, 63.75, 67.5, 71.25])
        kinds, times = zip(*audits.rounds, strict=True)
        assert kinds == ("begun", "finished") * 2
        assert times == pytest.approx([30.0, 41.25, 60.0, 71.25])


async def test_a_shorter_period_counts_at_once_between_two_rounds_and_in_one(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with auditing(plane, monkeypatch) as audits:
        audits.period = 3600.0
        await audits.go_on(100.0)
        assert audits.rounds == []
        audits.period = 150.0
        await audits.go_on(160.0)
        assert [time for _, time in audits.rounds] == pytest.approx([150.0])
        audits.period = 10.0
        await audits.go_on(170.0)
        assert audits.rounds[1] == ("finished", pytest.approx(audits.looks[3]))
        assert audits.looks[3] <= 150.0 + 10.0 + 5.0


async def test_a_round_that_takes_longer_than_the_period_is_followed_by_a_rest(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with auditing(plane, monkeypatch) as audits:
        audits.takes = 100.0
        await audits.go_on(1029.0)
        kinds, times = zip(*audits.rounds, strict=True)
        assert kinds == ("begun", "finished") * 2
        # 400 s of work that waits for nothing, and a quarter of that.
        assert times == pytest.approx([30.0, 430.0, 530.0, 930.0])


def weight_changed(plane: FakeDataplane, key: VirtualServerKey) -> Callable[[], bool]:
    servers = plane.kernel.virtual_servers[key].real_servers
    servers[POD1] = DRAINING
    return lambda: servers[POD1] == ACTIVE


def virtual_server_removed(plane: FakeDataplane, key: VirtualServerKey) -> Callable[[], bool]:
    del plane.kernel.virtual_servers[key]
    return lambda: key in plane.kernel.virtual_servers and POD1 in plane.kernel.virtual_servers[key].real_servers


def scheduler_changed(plane: FakeDataplane, key: VirtualServerKey) -> Callable[[], bool]:
    found = plane.kernel.virtual_servers[key]
    plane.kernel.virtual_servers[key] = VirtualServer(key, "wlc", real_servers=found.real_servers)
    return lambda: plane.kernel.virtual_servers[key].scheduler == "rr"


def address_removed(plane: FakeDataplane, key: VirtualServerKey) -> Callable[[], bool]:
    plane.kernel.addresses.remove(key.address)
    return lambda: key.address in plane.kernel.addresses


def service_leaked(plane: FakeDataplane, _: VirtualServerKey) -> Callable[[], bool]:
    plane.kernel.virtual_servers[STRANGER] = VirtualServer(STRANGER, "rr")
    plane.kernel.addresses.add(STRANGER.address)
    return lambda: STRANGER not in plane.kernel.virtual_servers and STRANGER.address not in plane.kernel.addresses


def member_removed(plane: FakeDataplane, key: VirtualServerKey) -> Callable[[], bool]:
    members = plane.kernel.sets["KUBE-CLUSTER-IP"]
    members.remove(SetEntry(*key[:3]))
    return lambda: SetEntry(*key[:3]) in members


@pytest.mark.parametrize("seconds", [31.0, 36.0, 44.0, 59.0])
@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize(
    "drift",
    [weight_changed, virtual_server_removed, scheduler_changed, address_removed, service_leaked, member_removed],
)
async def test_whatever_somebody_changes_and_whenever_it_is_repaired_within_a_period(
    plane: FakeDataplane,
    monkeypatch: pytest.MonkeyPatch,
    drift: Callable[[FakeDataplane, VirtualServerKey], Callable[[], bool]],
    place: int,
    seconds: float,
) -> None:
    async with auditing(plane, monkeypatch) as audits:
        key = list(audits.rig.writer.actual.virtual_servers)[place]
        await audits.go_on(seconds)
        is_repaired = drift(plane, key)
        assert not is_repaired()
        await audits.go_on(seconds + audits.period)
        assert is_repaired()
        assert sum(audits.rig.repairs.values()) == (2 if drift is service_leaked else 1), "it is told once"


async def test_a_look_that_fails_fails_its_round_and_the_next_one_finds_what_was_left(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with auditing(plane, monkeypatch) as audits:
        keys = list(audits.rig.writer.actual.virtual_servers)
        is_repaired = [weight_changed(plane, key) for key in (keys[0], keys[2 * PIECE], keys[-1])]
        monkeypatch.setattr(plane, "differing", failing(plane.differing, 3))
        await audits.go_on(59.0)
        assert [check() for check in is_repaired] == [True, False, True]
        assert [kind for kind, _ in audits.rounds] == ["begun"]
        await audits.go_on(89.0)
        assert [check() for check in is_repaired] == [True, True, True]
        assert [kind for kind, _ in audits.rounds] == ["begun", "begun", "finished"]
        assert audits.rig.repairs == {"ipvs": 3}


@asynccontextmanager
async def listening(rig: Rig, heard: list[asyncio.Event]) -> AsyncIterator[None]:
    """Listen to rtnetlink until one event after another is set, each of which is a failure."""
    failures = iter(heard)

    async def watch() -> AsyncGenerator[list[LinkEvent], None]:
        await next(failures).wait()
        raise OSError("no buffer space")
        yield []

    reads = rig.plane.calls["read_addresses"]
    task = asyncio.create_task(
        follow_for_ever(rig.audit.handle_events, lambda: Listening(watch), failed=rig.audit.stop_listening)
    )
    await rig.until(lambda: rig.plane.calls["read_addresses"] > reads)
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def reads_addresses(rig: Rig) -> bool:
    """Run a round; return whether it read the addresses."""
    before = rig.plane.calls["read_addresses"]
    await rig.audit.run_once()
    return rig.plane.calls["read_addresses"] > before


async def test_addresses_are_not_read_as_long_as_rtnetlink_tells_of_their_changes(plane: FakeDataplane) -> None:
    broken = asyncio.Event()
    async with running(plane, WEB, SLICE) as rig:
        assert [await reads_addresses(rig) for _ in range(2)] == [True, True], "nobody listens"
        async with listening(rig, [broken, asyncio.Event()]):
            assert [await reads_addresses(rig) for _ in range(3)] == [True, False, False], "once after it began"
            broken.set()
            await asyncio.sleep(0.05)
            assert [await reads_addresses(rig) for _ in range(2)] == [True, True], "until it listens again"


async def test_addresses_of_which_some_have_routes_are_read_in_each_round(plane: FakeDataplane) -> None:
    plane.announces = False
    async with running(plane, WEB, SLICE) as rig, listening(rig, [asyncio.Event()]):
        assert [await reads_addresses(rig) for _ in range(3)] == [True, True, True]


@pytest.mark.parametrize(
    ("event", "doubtful"),
    [
        (LinkEvent(LinkChange.ADDRESS_ADDED, packed("10.96.9.9")), True),
        (LinkEvent(LinkChange.ADDRESS_ADDED, VIP.address), True),
        (LinkEvent(LinkChange.ADDRESS_REMOVED, packed("10.96.9.9")), True),
        (LinkEvent(LinkChange.ADDRESS_REMOVED, VIP.address), True),
        (LinkEvent(LinkChange.LINK_ADDED), True),
        (LinkEvent(LinkChange.LINK_REMOVED), True),
        (LinkEvent(LinkChange.LOST), True),
        (LinkEvent(LinkChange.HOST_ADDRESSES_CHANGED), False),
    ],
    ids=str,
)
async def test_addresses_are_read_once_after_an_event_that_makes_them_doubtful(
    plane: FakeDataplane, event: LinkEvent, doubtful: bool
) -> None:
    async with running(plane, WEB, SLICE) as rig, listening(rig, [asyncio.Event()]):
        await rig.audit.run_once()
        await rig.audit.handle_events([event])
        assert [await reads_addresses(rig) for _ in range(2)] == [doubtful, False]


async def test_an_address_that_goes_while_its_service_is_being_written_is_back(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, loop, apply = packed("10.97.0.7"), asyncio.get_running_loop(), plane.apply
    async with running(plane, WEB, SLICE) as rig, listening(rig, [asyncio.Event()]):

        def interfere(operations: Sequence[Operation]) -> list[Failure]:
            failures = apply(operations)
            if new in plane.kernel.addresses:
                monkeypatch.setattr(plane, "apply", apply)
                plane.kernel.addresses.remove(new)
                events = [LinkEvent(change, new) for change in (LinkChange.ADDRESS_ADDED, LinkChange.ADDRESS_REMOVED)]
                asyncio.run_coroutine_threadsafe(rig.audit.handle_events(events), loop)
                time.sleep(0.05)  # what has been written is not recorded yet
            return failures

        monkeypatch.setattr(plane, "apply", interfere)
        rig.add(service("b", cluster_ip="10.97.0.7"), endpoint_slice(endpoint("10.244.0.1"), name="b-x", of="b"))
        await rig.until(lambda: plane.apply == apply)
        await rig.until(lambda: new in plane.kernel.addresses)


async def test_addresses_are_read_where_the_link_was_missing(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(plane, WEB, SLICE) as rig, listening(rig, [asyncio.Event()]):
        await rig.audit.run_once()
        plane.kernel.addresses.clear()
        with monkeypatch.context() as patched:
            patched.setattr(plane, "ensure_tables", lambda: ["link"])
            await rig.audit.run_once()
        assert plane.kernel.addresses == {VIP.address}
        assert not await reads_addresses(rig)


async def test_addresses_stay_doubtful_where_they_were_not_read_or_not_dealt_with(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in ("read_addresses", "compare_list"):
        async with running(plane, WEB, SLICE) as rig, listening(rig, [asyncio.Event()]):
            await rig.audit.run_once()
            plane.kernel.addresses.add(STRANGER.address)
            await rig.audit.handle_events([LinkEvent(LinkChange.ADDRESS_ADDED, STRANGER.address)])
            monkeypatch.setattr(plane, call, failing(getattr(plane, call), 1))
            with pytest.raises(OSError, match="a fault"):
                await rig.audit.run_once()
            assert await reads_addresses(rig)
            assert STRANGER.address not in plane.kernel.addresses


async def test_virtual_servers_of_ipv6_are_listed_where_one_can_be_ours_and_else_now_and_then(
    plane: FakeDataplane,
) -> None:
    async with running(plane, WEB, SLICE) as rig:
        plane.kernel.virtual_servers[FOREIGN] = VirtualServer(FOREIGN, "rr")
        for _ in range(IPV6_EVERY + 1):
            await rig.audit.run_once()
            assert set(rig.writer.foreign) == {FOREIGN}, "it is known, and not forgotten meanwhile"
        assert (plane.calls["compare_list ipv6"], plane.calls["compare_list"]) == (2, IPV6_EVERY + 1)
        plane.kernel.addresses.add(FOREIGN.address)
        await rig.audit.run_once()
        assert FOREIGN not in plane.kernel.virtual_servers, "by its address it is ours"


async def test_with_services_of_ipv6_every_list_has_it(plane: FakeDataplane) -> None:
    async with running(plane, dual_stack(), SLICE) as rig:
        for _ in range(3):
            await rig.audit.run_once()
    assert plane.calls["compare_list ipv6"] == 3


async def test_a_round_at_rest_reads_nothing_again_and_compares_no_plans(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(plane, WEB, SLICE) as rig, listening(rig, [asyncio.Event()]):
        await rig.audit.run_once()
        await rig.audit.run_once()
        monkeypatch.setattr("ipvs_proxy.agent.sync.unsettled.suspects", None)
        plane.unchanged = True
        plane.calls.clear()
        await rig.audit.run_once()
        assert plane.calls == {
            "repair_rules": 1,
            "ensure_tables": 1,
            "compare_list": 1,
            "compare_list ipv6": 0,
            "differing": 1,
        }


def forget(rig: Rig, key: RealServerKey) -> None:
    """Have the mirror be without a real server, as after a fault."""
    known = rig.writer.actual.virtual_servers[VIP]
    others = {other: one for other, one in known.real_servers.items() if other != key}
    rig.writer.actual.virtual_servers[VIP] = structs.replace(known, real_servers=others)


async def test_a_virtual_server_that_cannot_be_read_keeps_no_others_from_repair(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipvs_proxy.agent.sync.audit.LOOKED_AT_ONCE", 1)
    others = [service(f"a{number}", cluster_ip=f"10.97.0.{number}") for number in (1, 2)]
    pods = [endpoint_slice(endpoint("10.244.0.1"), name=f"a{number}-x", of=f"a{number}") for number in (1, 2)]
    differing = plane.differing

    def fails_for_the_first(servers: Iterable[VirtualServer]) -> list[VirtualServerKey]:
        (server,) = servers
        if server.key == next(iter(plane.kernel.virtual_servers)):
            raise OSError(EIO, "the kernel does not say")
        return differing([server])

    async with running(plane, WEB, SLICE, *others, *pods) as rig:
        monkeypatch.setattr(plane, "differing", fails_for_the_first)
        *_, last = plane.kernel.virtual_servers.values()
        last.real_servers.clear()
        with pytest.raises(OSError, match="the kernel does not say"):
            await rig.audit.run_once()
        assert plane.kernel.virtual_servers[last.key].real_servers


async def test_plans_are_compared_again_after_any_change(plane: FakeDataplane) -> None:
    async with running(plane, WEB, SLICE) as rig:
        await rig.audit.run_once()
        await rig.audit.run_once()
        rig.replace(SLICE, endpoint_slice(endpoint("10.244.0.1")))
        await rig.until(lambda: plane.kernel.virtual_servers[VIP].real_servers[POD2] == DRAINING)
        forget(rig, POD1)
        del plane.kernel.virtual_servers[VIP].real_servers[POD1]
        await rig.audit.run_once()
        assert POD1 in plane.kernel.virtual_servers[VIP].real_servers


async def test_a_virtual_server_that_is_written_while_the_list_is_read_is_left_to_the_next_round(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(plane, WEB, SLICE) as rig:
        compare, loop = plane.compare_list, asyncio.get_running_loop()

        def slow(known: Mapping[VirtualServerKey, VirtualServer], *, ipv6: bool) -> ListDifference:
            found = compare(known, ipv6=ipv6)
            asyncio.run_coroutine_threadsafe(rig.writer.write_everything(), loop).result()
            return found._replace(differing=[*found.differing, VIP])

        monkeypatch.setattr(plane, "compare_list", slow)
        forget(rig, POD1)
        del plane.kernel.virtual_servers[VIP].real_servers[POD1]
        plane.calls.clear()
        await rig.audit.run_once()
        assert plane.calls["read_virtual_server"] == 0
        assert rig.repairs == {}
