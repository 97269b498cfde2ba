"""How the dataplane saves processes in a start; what it does to the kernel is the ring's to see."""

from __future__ import annotations

from errno import ECANCELED, ENOMEM
from typing import Any, cast

import pytest

from ipvs_proxy.kernel import dataplane as dataplane_module
from ipvs_proxy.kernel.dataplane import Dataplane
from ipvs_proxy.kernel.filter.other_modes import Leftovers
from ipvs_proxy.netlink.errors import Unusable
from ipvs_proxy.plan.tables import Family, SetEntry, SetEntryOperation, Verb
from tests.support.objects import virtual
from tests.support.roles import role

SEEN = "*nat\n:KUBE-SVC-0123456789ABCDEF - [0:0]\nCOMMIT\n"


class LookedAt:
    """Rules that say how often they were looked at, and what they were told was there."""

    def __init__(self) -> None:
        self.looks = 0
        self.told: list[str] = []

    def look(self) -> str:
        self.looks += 1
        return SEEN

    def write(self, seen: str) -> list[str]:
        self.told.append(seen)
        return ["nat: chain KUBE-SERVICES is missing"]


class Present:
    """Link or sets that are there already."""

    def ensure_link(self) -> bool:
        return False

    def ensure(self) -> list[str]:
        return []


@pytest.fixture
def rules() -> LookedAt:
    return LookedAt()


@pytest.fixture
def plane(rules: LookedAt) -> Dataplane:
    # Nothing runs iptables: what was seen is handed on.
    leftovers = Leftovers(cast("Any", None), (Family.IPV4,))
    parts: dict[str, Any] = {"ipvs": None, "addresses": Present(), "sets": Present(), "leftovers": leftovers}
    return Dataplane(**parts, rules={Family.IPV4: cast("Any", rules)})


def test_a_start_looks_at_the_rules_once(plane: Dataplane, rules: LookedAt) -> None:
    plane.prepare()
    assert plane.find_leftovers() == ["IPv4: 1 chains of iptables mode"]
    assert plane.write_rules() == ["IPv4 nat: chain KUBE-SERVICES is missing"]
    assert (rules.looks, rules.told) == (1, [SEEN])


def test_what_was_seen_before_a_write_is_not_taken_for_what_is_there(plane: Dataplane, rules: LookedAt) -> None:
    plane.write_rules()
    plane.write_rules()
    assert rules.looks == 2


def test_what_was_seen_long_ago_is_looked_at_again(
    plane: Dataplane, rules: LookedAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataplane_module, "RECENT", -1.0)
    plane.prepare()
    plane.write_rules()
    assert rules.looks == 2


def test_a_fault_while_preparing_is_left_to_the_take_over(
    plane: Dataplane, rules: LookedAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise Unusable("iptables-save failed")

    monkeypatch.setattr(rules, "look", fail)
    plane.prepare()
    with pytest.raises(Unusable):
        plane.write_rules()


class Refusing:
    """Sets that refuse one operation."""

    def __init__(self, refused: SetEntryOperation) -> None:
        self.applied: list[SetEntryOperation] = []
        self._refused = refused

    def apply(self, operations: list[SetEntryOperation]) -> list[int]:
        self.applied += operations
        return [ENOMEM if operation == self._refused else 0 for operation in operations]


def test_a_mark_waits_until_the_kernel_has_all_of_its_bits() -> None:
    bare = SetEntry(*virtual("203.0.113.5")[:3])
    first, second = (SetEntryOperation(Verb.ADD, role(f"IPVS-PROXY-MARK-{bit}"), bare) for bit in ("0x4", "0x8"))
    other = SetEntryOperation(Verb.ADD, role("IPVS-PROXY-INTERNAL"), SetEntry(*virtual("203.0.113.6")[:3], mark=0x2009))
    marked = SetEntryOperation(Verb.ADD, role("IPVS-PROXY-INTERNAL"), bare._replace(mark=0x200D))
    refusing = Refusing(second)
    parts: dict[str, Any] = {"ipvs": None, "addresses": None, "sets": refusing, "leftovers": None, "rules": {}}
    failures = Dataplane(**parts).apply([first, second, other, marked])
    assert [(failure.operation, failure.code) for failure in failures] == [(second, ENOMEM), (marked, ECANCELED)]
    assert refusing.applied == [first, second, other]
