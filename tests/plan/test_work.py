"""The work of a change is that of the change, however many Services there are. Counted, never timed."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import pytest

from ipvs_proxy.plan import endpoints, services
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.fragment import Context, Fragment, ServiceName
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.services import plan_service
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import (
    ACTIVE,
    DRAINING,
    Family,
    Operation,
    Protocol,
    RealServerOperation,
    SetEntry,
    SetEntryOperation,
    Verb,
)
from tests.support.objects import endpoint, endpoint_slice, packed, real, service, virtual
from tests.support.roles import role
from tests.support.tables import everything, round_of

HERE = Context("here")
MANY = 2_000
CHANGED = ServiceName("default", "service-7")
KEY = virtual("10.96.0.7")


def fragment(number: int, *, pods: int = 5, local: bool = False) -> Fragment:
    """Plan the Service of a number, with ``pods`` endpoints of which the last may be local."""
    name = f"service-{number}"
    members = [
        endpoint(f"10.{number >> 8}.{number & 255}.{pod}", node="here" if local and pod == pods else "there")
        for pod in range(1, pods + 1)
    ]
    wanted = service(name, cluster_ip=f"10.96.{number >> 8}.{number & 255}")
    return plan_service(wanted, [endpoint_slice(*members, of=name)], HERE, Marks())


def settled(count: int) -> tuple[DesiredTables, KernelTables]:
    """Tables of so many Services, in the kernel already."""
    desired, actual = DesiredTables(), KernelTables()
    for number in range(1, count + 1):
        one = fragment(number)
        desired.replace(one.name, one)
    for operation in round_of(desired, actual, everything(desired, actual)):
        actual.record([operation])
    return desired, actual


def follow(desired: DesiredTables, actual: KernelTables, new: Fragment | None) -> list[Operation]:
    """The path of a change: from a new fragment to operations carried out."""
    operations = round_of(desired, actual, desired.replace(CHANGED, new))
    for operation in operations:
        actual.record([operation])
    return operations


@pytest.fixture(scope="module")
def many() -> tuple[DesiredTables, KernelTables]:
    return settled(MANY)


def test_one_endpoint_among_2000_services_is_one_operation(many: tuple[DesiredTables, KernelTables]) -> None:
    newcomer = real("10.0.7.6")
    assert follow(*many, fragment(7, pods=6)) == [RealServerOperation(Verb.ADD, KEY, newcomer, ACTIVE)]
    assert follow(*many, fragment(7, pods=5)) == [RealServerOperation(Verb.SET, KEY, newcomer, DRAINING)]
    assert follow(*many, fragment(7, pods=6)) == [RealServerOperation(Verb.SET, KEY, newcomer, ACTIVE)]
    assert follow(*many, fragment(7, pods=5)) == [RealServerOperation(Verb.SET, KEY, newcomer, DRAINING)]
    assert follow(*many, fragment(7, pods=5)) == []


def test_a_local_endpoint_is_one_operation_more(many: tuple[DesiredTables, KernelTables]) -> None:
    pod = packed("10.0.7.7")
    hairpin = SetEntry(pod, Protocol.TCP, 8080, pod)
    assert follow(*many, fragment(7, pods=7, local=True))[:1] == [
        SetEntryOperation(Verb.ADD, role("KUBE-LOOP-BACK"), hairpin)
    ]
    assert SetEntryOperation(Verb.DELETE, role("KUBE-LOOP-BACK"), hairpin) in follow(*many, fragment(7, pods=5))


def test_a_service_that_goes_and_comes_back_is_its_own_operations(many: tuple[DesiredTables, KernelTables]) -> None:
    gone, back = follow(*many, None), follow(*many, fragment(7))
    assert Counter((type(operation), operation.verb) for operation in gone) == {
        (RealServerOperation, Verb.SET): 5,
        (SetEntryOperation, Verb.DELETE): 1,
    }
    assert Counter((type(operation), operation.verb) for operation in back) == {
        (RealServerOperation, Verb.SET): 5,
        (SetEntryOperation, Verb.ADD): 1,
    }


def calls(work: Callable[[], object]) -> Counter[str]:
    """Count the calls of Python functions while something works, but for those that a collection of garbage makes."""
    counted: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            counted[frame.f_code.co_qualname] += 1

    gc.disable()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return counted


def test_a_change_makes_the_same_calls_among_20_services_as_among_2000(
    many: tuple[DesiredTables, KernelTables],
) -> None:
    few = settled(20)
    for tables in (few, many):
        follow(*tables, fragment(7))
    for wanted in (fragment(7, pods=6), fragment(7, pods=6), fragment(7, pods=5), None, fragment(7)):
        assert calls(lambda new=wanted: follow(*many, new)) == calls(lambda new=wanted: follow(*few, new))  # type: ignore[misc]


def _walked(*_: object) -> NoReturn:
    raise AssertionError("a change walked through a whole table")


class Unwalkable:
    """Mixed into a container: whoever goes through all of it fails; single members may be looked at."""

    __iter__ = keys = values = items = copy = __eq__ = _walked  # type: ignore[assignment]
    __or__ = __and__ = __sub__ = __xor__ = __ror__ = __rand__ = __rsub__ = __rxor__ = _walked
    __hash__ = None  # type: ignore[assignment]


class UnwalkableDict(Unwalkable, dict[Any, Any]):
    pass


class UnwalkableSet(Unwalkable, set[Any]):
    pass


class UnwalkableCounter(Unwalkable, Counter[Any]):
    pass


def test_a_change_walks_through_no_whole_table() -> None:
    desired, actual = settled(20)
    desired.virtual_servers = UnwalkableDict(desired.virtual_servers)
    desired.owners = UnwalkableDict(desired.owners)
    desired._contributions = UnwalkableDict(desired._contributions)
    desired._contested = UnwalkableDict(desired._contested)
    for name in ("addresses", "entries"):
        guarded = UnwalkableCounter()
        for item, number in getattr(desired, name).items():
            guarded[item] = number
        setattr(desired, name, guarded)
    actual.virtual_servers = UnwalkableDict(actual.virtual_servers)
    actual.addresses = UnwalkableSet(actual.addresses)
    actual.entries = {name: UnwalkableSet(entries) for name, entries in actual.entries.items()}

    changes = (fragment(7, pods=6), fragment(7, pods=6, local=True), fragment(7, pods=5), None, fragment(7))
    assert [len(follow(desired, actual, new)) for new in changes] == [1, 1, 2, 6, 6]
    with pytest.raises(AssertionError, match="walked"):
        everything(desired, actual)


def test_a_plan_parses_each_address_once_per_family(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []

    def counted(parse: Callable[..., bytes | None]) -> Callable[..., bytes | None]:
        def parse_and_count(text: str, *family: Family) -> bytes | None:
            parsed.append(text)
            return parse(text, *family)

        return parse_and_count

    for name in ("ordinary_address", "parse_address"):
        monkeypatch.setattr(endpoints, name, counted(getattr(endpoints, name)))
    gathered: list[object] = []
    gather = services.gather
    monkeypatch.setattr(services, "gather", lambda *arguments: gathered.append(arguments) or gather(*arguments))
    fragment(7, pods=100)
    assert len(parsed) == 100
    assert len(gathered) == 1


def test_touched_keys_add_up_without_looking_at_the_tables(many: tuple[DesiredTables, KernelTables]) -> None:
    touched = TableKeys()
    for number in (1, 2, 1):
        touched.add(many[0].replace(fragment(number).name, fragment(number, pods=6)))
    assert touched == TableKeys({virtual("10.96.0.1"), virtual("10.96.0.2")}, set(), set())
    assert len(round_of(*many, touched)) == 2
