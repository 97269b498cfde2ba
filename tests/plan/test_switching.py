"""A change of scheduler: new connections wait for it instead of being refused."""

from __future__ import annotations

import pytest
from msgspec import structs

from ipvs_proxy.plan import roles
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.switching import keep_waiting
from ipvs_proxy.plan.tables import (
    Family,
    SetEntry,
    SetEntryOperation,
    Verb,
    VirtualServer,
    VirtualServerKey,
    VirtualServerOperation,
)
from tests.support.objects import packed, virtual

VIP = virtual("10.96.0.10")
MEMBER = (roles.NO_LOCAL[Family.IPV4], SetEntry(*VIP[:3]))
THERE = VirtualServer(VIP, "rr")
SWITCH = VirtualServerOperation(Verb.SET, VirtualServer(VIP, "wrr"))


def test_a_member_comes_before_and_goes_after() -> None:
    found = keep_waiting([SWITCH], DesiredTables(), KernelTables({VIP: THERE}))
    assert found == [SetEntryOperation(Verb.ADD, *MEMBER), SWITCH, SetEntryOperation(Verb.DELETE, *MEMBER)]


@pytest.mark.parametrize("wanted", [False, True], ids=["it is there", "it is wanted"])
def test_a_member_that_drops_everything_anyway_stays(wanted: bool) -> None:
    desired, actual = DesiredTables(), KernelTables({VIP: THERE})
    if wanted:
        desired.entries[MEMBER] += 1
    else:
        actual.entries[MEMBER[0]] = {MEMBER[1]}
    assert keep_waiting([SWITCH], desired, actual) == [SWITCH]


@pytest.mark.parametrize(
    "operation",
    [
        VirtualServerOperation(Verb.SET, structs.replace(THERE, flags=1, timeout=600)),
        VirtualServerOperation(Verb.ADD, VirtualServer(virtual("10.96.0.11"), "wrr")),
        VirtualServerOperation(Verb.DELETE, THERE),
    ],
    ids=["flags", "new", "gone"],
)
def test_other_operations_are_left_alone(operation: VirtualServerOperation) -> None:
    assert keep_waiting([operation], DesiredTables(), KernelTables({VIP: THERE})) == [operation]


def test_a_virtual_server_with_a_mark_has_no_member() -> None:
    key = VirtualServerKey(packed("0.0.0.0"), 6, 0, 0x1000)
    operation = VirtualServerOperation(Verb.SET, VirtualServer(key, "wrr"))
    actual = KernelTables({key: VirtualServer(key, "rr")})
    assert keep_waiting([operation], DesiredTables(), actual) == [operation]
