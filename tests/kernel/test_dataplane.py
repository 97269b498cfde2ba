"""The order and the faults of the tables that the dataplane puts together; what it does to the kernel is the ring's."""

from __future__ import annotations

from errno import ECANCELED, ENOMEM
from typing import Any, cast

import pytest

from ipvs_proxy.kernel.dataplane import Dataplane
from ipvs_proxy.netlink.errors import Unusable
from ipvs_proxy.plan.tables import AddressOperation, SetEntry, SetEntryOperation, Verb
from tests.support.objects import virtual
from tests.support.roles import role


class Present:
    """A link that is there already."""

    def ensure_link(self) -> bool:
        return False


class Unreadable:
    """A packet filter whose rules cannot be read."""

    def ensure(self) -> list[str]:
        return []

    def look(self) -> None:
        raise Unusable("iptables-save failed")

    def write(self) -> list[str]:
        raise Unusable("iptables-save failed")


def dataplane(packet_filter: object) -> Dataplane:
    parts: dict[str, Any] = {"ipvs": None, "addresses": Present(), "packet_filter": packet_filter}
    return Dataplane(**parts)


def test_a_fault_while_preparing_is_left_to_the_take_over() -> None:
    plane = dataplane(Unreadable())
    plane.prepare()
    with pytest.raises(Unusable):
        plane.write_rules()


class Refusing:
    """A packet filter that refuses one operation."""

    def __init__(self, refused: SetEntryOperation) -> None:
        self.applied: list[SetEntryOperation] = []
        self._refused = refused

    def apply(self, operations: list[SetEntryOperation]) -> list[int]:
        self.applied += operations
        return [ENOMEM if operation == self._refused else 0 for operation in operations]

    def describe(self, code: int) -> str:
        return f"code {code}"


def test_a_mark_waits_until_the_kernel_has_all_of_its_bits() -> None:
    bare = SetEntry(*virtual("203.0.113.5")[:3])
    first, second = (SetEntryOperation(Verb.ADD, role(f"IPVS-PROXY-MARK-{bit}"), bare) for bit in ("0x4", "0x8"))
    internal = role("IPVS-PROXY-INTERNAL")
    other = SetEntryOperation(Verb.ADD, internal, SetEntry(*virtual("203.0.113.6")[:3], mark=0x2009))
    marked = SetEntryOperation(Verb.ADD, internal, bare._replace(mark=0x200D))
    refusing = Refusing(second)
    failures = dataplane(refusing).apply([first, second, other, marked])
    assert failures == [
        (second, ENOMEM, f"code {ENOMEM}"),
        (marked, ECANCELED, "held back: what it leads to could not be completed"),
    ]
    assert refusing.applied == [first, second, other]


class RefusingLink:
    """A link that has no room."""

    def apply(self, operations: list[object]) -> list[int]:
        return [ENOMEM] * len(operations)


def test_a_code_is_explained_by_the_table_that_it_comes_from() -> None:
    plane = dataplane(None)
    plane.addresses = cast("Any", RefusingLink())
    operation = AddressOperation(Verb.ADD, b"1234")
    assert plane.apply([operation]) == [(operation, ENOMEM, "Cannot allocate memory")]
