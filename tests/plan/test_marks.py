"""Marks: given out once, kept over restarts, never with a bit of somebody else."""

from __future__ import annotations

import pytest

from ipvs_proxy.plan.endpoints import PortKey
from ipvs_proxy.plan.marks import CLASS, CLASS_MASK, Marks, is_ours, mark_key
from ipvs_proxy.plan.tables import Family, Protocol, SetEntry
from tests.support.objects import virtual

WEB, API = ("default", "web"), ("default", "api")
HTTP, DNS = PortKey("http", Protocol.TCP), PortKey("dns", Protocol.UDP)
VIP = virtual("203.0.113.5")


def test_a_port_keeps_its_mark_and_others_get_others() -> None:
    marks = Marks()
    first = marks.assign(WEB, HTTP, [VIP])
    assert marks.assign(WEB, HTTP, []) == first
    assert len({first, marks.assign(WEB, DNS, []), marks.assign(API, HTTP, [])}) == 3


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("family", Family)
def test_a_mark_tells_its_protocol_and_is_known_as_ours(protocol: Protocol, family: Family) -> None:
    mark = Marks().assign(WEB, PortKey("p", protocol), [])
    assert mark is not None
    assert is_ours(mark)
    key = mark_key(mark, family)
    assert (key.protocol, key.port, key.mark, len(key.address)) == (
        protocol,
        0,
        mark,
        4 if family is Family.IPV4 else 16,
    )


@pytest.mark.parametrize("mark", [0, 1, 0x2000, 0x2001, 0x4005, 0x6005, 0x12005, 0x8000])
def test_marks_of_others_are_not_ours(mark: int) -> None:
    assert not is_ours(mark)


@pytest.mark.parametrize("bit", range(32))
def test_no_mark_has_the_bit_that_asks_for_masquerading(bit: int) -> None:
    marks = Marks(bit)
    given = [marks.assign(WEB, PortKey(str(number), Protocol.TCP), []) for number in range(3000)]
    found = [mark for mark in given if mark is not None]
    assert len(found) == len(set(found)) == {13: 0, 0: 0, 1: 0}.get(bit, 1023 if bit < 13 else 2047)
    assert not any(mark & 1 << bit for mark in found)
    assert all(mark & CLASS_MASK == CLASS for mark in found)


def test_a_restart_goes_on_with_what_the_set_holds() -> None:
    before = Marks()
    for number in range(7):
        mark = before.assign(WEB, PortKey(str(number), Protocol.TCP), [])
    assert mark is not None
    after = Marks()
    after.restore([SetEntry(*VIP[:3], mark=mark)])
    assert after.assign(API, HTTP, []) != mark
    assert after.assign(WEB, PortKey("6", Protocol.TCP), [VIP]) == mark


def test_a_mark_that_was_given_back_is_not_soon_given_again() -> None:
    marks = Marks()
    first = marks.assign(WEB, HTTP, [])
    marks.keep(WEB, ())
    assert marks.assign(API, HTTP, []) != first
    others = {marks.assign(API, PortKey(str(number), Protocol.TCP), []) for number in range(2046)}
    assert first in others
