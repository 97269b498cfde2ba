"""The choice of links for addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvs_proxy.kernel.links.placement import FIRST, Placement
from ipvs_proxy.plan.tables import AddressOperation, Verb
from tests.support.objects import packed

ROOM = 2
A, B, C, D, A6, B6, C6 = map(packed, ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "fd00::1", "fd00::2", "fd00::3"))


def placed(*links: tuple[int, tuple[bytes, ...]]) -> Placement:
    placement = Placement(ROOM)
    for number, addresses in links:
        placement.open(number)
        for address in addresses:
            placement.add(address, number)
    return placement


@pytest.mark.parametrize(
    ("links", "address", "chosen"),
    [
        ((), A, 0),
        (((0, (A,)),), B, 0),
        (((0, (A, B)), (1, ())), C, 1),
        # IPv6 addresses take no room, and stay on the first link.
        (((0, (A6, B6, A)),), B, 0),
        (((0, (A, B)), (1, ())), A6, 0),
        (((0, (A6, B6)), (1, ())), C6, 0),
        # The lowest number comes first, in whichever order the links were found.
        (((0, (A, B)), (7, ()), (3, ())), C, 3),
        (((0, (A, B)), (3, (C, D)), (7, ())), packed("10.0.0.5"), 7),
        (((0, (A,)), (1, (C, D))), B, 0),
        # What an earlier version put on the first link stays there.
        (((0, (A, B, C, D)), (1, ())), C, 0),
        (((0, (A, B, C, D)), (1, ())), packed("10.0.0.5"), 1),
        # An address that is there is where it is.
        (((0, ()), (1, (A,))), A, 1),
        (((0, ()), (1, (A6,))), A6, 1),
        # Nowhere is room, and no further link can be made.
        (((0, (A, B)),), C, 0),
    ],
)
def test_where_an_address_goes(links: tuple[tuple[int, tuple[bytes, ...]], ...], address: bytes, chosen: int) -> None:
    assert placed(*links).choose(address) == chosen


def add(*addresses: bytes) -> list[AddressOperation]:
    return [AddressOperation(Verb.ADD, address) for address in addresses]


@pytest.mark.parametrize(
    ("links", "operations", "lacking"),
    [
        ((), add(A, B), False),
        ((), add(A, B, C), True),
        ((), add(A6, B6, C6), False),
        (((0, (A, B)),), [], False),
        (((0, (A, B)),), add(A, B), False),
        (((0, (A, B)),), [AddressOperation(Verb.DELETE, A), *add(C)], True),
        (((0, (A, B, C)),), add(C), False),
        (((0, (A, B, C)),), add(D), True),
        (((0, (A, B, C)), (1, ())), add(D), False),
        (((0, (A,)), (1, (B,))), add(C, D), False),
        (((0, (A,)), (1, (B, C))), add(D, packed("10.0.0.5")), True),
    ],
)
def test_when_another_link_is_needed(
    links: tuple[tuple[int, tuple[bytes, ...]], ...], operations: list[AddressOperation], lacking: bool
) -> None:
    assert placed(*links).lacks_room(operations) is lacking


def test_an_address_on_two_links_is_known_on_both() -> None:
    placement = placed((0, (A,)), (1, (A, B)), (2, (A,)))
    assert list(placement.links_of(A)) == [0, 1, 2]
    placement.remove(A, 0)
    assert list(placement.links_of(A)) == [1, 2]
    placement.remove(A, 2)
    assert list(placement.links_of(A)) == [1]
    placement.remove(A, 1)
    assert list(placement.links_of(A)) == []
    assert placement.empty == [2]


def test_a_link_is_empty_when_neither_family_has_an_address_there() -> None:
    placement = placed((0, ()), (1, (A, A6)), (2, ()))
    assert placement.empty == [2], "the first one is never empty"
    placement.remove(A, 1)
    assert placement.empty == [2]
    placement.remove(A6, 1)
    assert placement.empty == [1, 2]
    placement.close(1)
    assert placement.empty == [2]


LINKS = (0, 1, 2)
STEPS = st.lists(
    st.tuples(st.booleans(), st.sampled_from((A, B, C, D, A6, B6)), st.sampled_from(LINKS)),
    max_size=30,
)


@given(STEPS)
def test_what_is_noted_is_what_is_there(steps: list[tuple[bool, bytes, int]]) -> None:
    placement = placed(*((number, ()) for number in LINKS))
    there: dict[int, set[bytes]] = {number: set() for number in LINKS}
    for adds, address, number in steps:
        (placement.add if adds else placement.remove)(address, number)
        (there[number].add if adds else there[number].discard)(address)
    assert {number: {a for a in (A, B, C, D, A6, B6) if number in placement.links_of(a)} for number in LINKS} == there
    assert placement.empty == [number for number in LINKS if number != FIRST and not there[number]]
    new = packed("10.0.0.9")
    counted = {number: len([a for a in there[number] if number or len(a) == 4]) for number in LINKS}
    assert placement.choose(new) == next((number for number in LINKS if counted[number] < ROOM), FIRST)
