"""Marks: given out once, kept over restarts, some left for everybody."""

from __future__ import annotations

import pytest

from ipvs_proxy.plan.endpoints import PortKey
from ipvs_proxy.plan.marks import (
    CLASS,
    CLASS_MASK,
    NAMESPACE_SHARE,
    RESTING,
    SERVICE_SHARE,
    Marks,
    corrections,
    is_ours,
    mark_key,
    spelling,
)
from ipvs_proxy.plan.roles import MARK_BITS
from ipvs_proxy.plan.tables import Family, Protocol, SetEntry, SetEntryOperation, Verb
from tests.support.objects import virtual
from tests.support.roles import role

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


@pytest.mark.parametrize("mark", [0, 1, 0x2000, 0x2001, 0x2004, 0x4005, 0x6005, 0x12005, 0x8000])
def test_marks_of_others_are_not_ours(mark: int) -> None:
    assert not is_ours(mark)


def every_mark(marks: Marks) -> list[int]:
    """Ask for marks until there is none left."""
    services = [(f"team-{number // 4}", f"service-{number}") for number in range(20)]
    ports = [PortKey(str(number), Protocol.TCP) for number in range(SERVICE_SHARE)]
    given = [marks.assign(service, port, []) for service in services for port in ports]
    return [mark for mark in given if mark is not None]


@pytest.mark.parametrize("bit", [0, 1, 5, 12, 13, 14, 31])
def test_there_are_2047_marks_unless_the_masquerade_mark_looks_like_one(bit: int) -> None:
    found = every_mark(Marks(bit))
    assert len(found) == len(set(found)) == (0 if bit == 13 else 2047)
    assert all(mark & CLASS_MASK == CLASS and mark != 1 << bit for mark in found)


def test_the_lowest_numbers_go_first() -> None:
    marks = Marks()
    assert [marks.assign(WEB, PortKey(str(number), Protocol.TCP), []) for number in range(1, 4)] == [
        CLASS | number << 2 | 1 for number in range(1, 4)
    ]


def test_churn_does_not_use_up_numbers_nor_give_one_again_at_once() -> None:
    marks = Marks()
    given: list[int] = []
    for _ in range(3 * RESTING):
        mark = marks.assign(WEB, HTTP, [])
        assert mark is not None
        assert mark not in given[-RESTING:]
        given.append(mark)
        marks.keep(WEB, ())
    assert max(given) == CLASS | RESTING + 1 << 2 | 1


def test_a_service_with_thousands_of_ports_leaves_numbers_to_others_and_who_has_one_keeps_it() -> None:
    marks = Marks()
    first = marks.assign(API, HTTP, [])
    greedy = [marks.assign(("evil", "greedy"), PortKey(str(number), Protocol.UDP), []) for number in range(2100)]
    assert sum(mark is not None for mark in greedy) == SERVICE_SHARE
    more = [marks.assign(("evil", str(number)), DNS, []) for number in range(2100)]
    assert sum(mark is not None for mark in more) == NAMESPACE_SHARE - SERVICE_SHARE
    assert marks.assign(API, HTTP, []) == first
    assert marks.assign(WEB, DNS, []) is not None
    assert [
        marks.assign(("evil", "greedy"), PortKey(str(number), Protocol.UDP), []) for number in range(2100)
    ] == greedy


def test_what_a_namespace_gives_back_it_can_have_again() -> None:
    marks = Marks()
    ports = [PortKey(str(number), Protocol.TCP) for number in range(SERVICE_SHARE)]
    for name in ("one", "two"):
        assert all(marks.assign(("team", name), port, []) for port in ports)
    assert marks.assign(("team", "three"), HTTP, []) is None
    marks.keep(("team", "one"), ports[1:])
    assert marks.assign(("team", "three"), HTTP, []) is not None
    assert marks.assign(("team", "three"), DNS, []) is None
    for name in ("one", "two", "three"):
        marks.keep(("team", name), ())
    assert not marks._held
    assert not marks._by_namespace


def test_a_restart_takes_no_mark_away_from_who_has_more_than_its_share() -> None:
    marks = Marks()
    addresses = [virtual("203.0.113.5", port) for port in range(1, SERVICE_SHARE + 3)]
    marks.restore(SetEntry(*address[:3], mark=CLASS | number << 2 | 1) for number, address in enumerate(addresses, 1))
    given = [marks.assign(WEB, PortKey(str(address.port), Protocol.TCP), [address]) for address in addresses]
    assert given == [CLASS | number << 2 | 1 for number in range(1, SERVICE_SHARE + 3)]


@pytest.mark.parametrize("number", [1, 2, 3, 1024, 2047])
def test_the_sets_of_bits_spell_the_number(number: int) -> None:
    mark = CLASS | number << 2 | 3
    assert sum(bit for bit, of_bit in MARK_BITS.items() if of_bit in spelling(mark)) == number << 2


def test_marks_without_their_bits_or_with_others_are_corrected() -> None:
    bare, other = SetEntry(*VIP[:3]), SetEntry(*virtual("203.0.113.6")[:3])
    entries = {
        role("IPVS-PROXY-INTERNAL"): {bare._replace(mark=CLASS | 0b101 << 2 | 1)},
        role("IPVS-PROXY-MARK-0x4"): {bare},
        role("IPVS-PROXY-MARK-0x8"): {bare, other},
    }
    assert corrections(entries) == [
        SetEntryOperation(Verb.DELETE, role("IPVS-PROXY-MARK-0x8"), bare),
        SetEntryOperation(Verb.ADD, role("IPVS-PROXY-MARK-0x10"), bare),
    ]


def test_a_restart_goes_on_with_what_the_set_holds() -> None:
    before = Marks()
    for number in range(7):
        mark = before.assign(WEB, PortKey(str(number), Protocol.TCP), [])
    assert mark is not None
    after = Marks()
    after.restore([SetEntry(*VIP[:3], mark=mark)])
    assert after.assign(API, HTTP, []) != mark
    assert after.assign(WEB, PortKey("6", Protocol.TCP), [VIP]) == mark


def number_of(mark: int | None) -> int:
    assert mark is not None
    return (mark & ~CLASS_MASK) >> 2


def test_what_an_earlier_agent_gave_out_is_not_given_to_others_before_all_services_are_planned() -> None:
    marks = Marks()
    marks.restore([SetEntry(*VIP[:3], mark=CLASS | 1 << 2 | 1), SetEntry(*virtual("203.0.113.6")[:3], mark=0x4009)])
    assert number_of(marks.assign(API, HTTP, [])) == 2, "1 is spoken for, and what is not ours is nobody's"
    marks.forget_restored()
    assert number_of(marks.assign(API, DNS, [])) == 1
    assert number_of(marks.assign(WEB, HTTP, [VIP])) == 3


def test_of_two_that_claim_the_mark_of_an_address_only_one_gets_it() -> None:
    marks = Marks()
    marks.restore([SetEntry(*VIP[:3], mark=CLASS | 9 << 2 | 1)])
    assert [number_of(marks.assign(service, HTTP, [VIP])) for service in (WEB, API)] == [9, 1]
    assert number_of(marks.assign(WEB, DNS, [virtual("203.0.113.9"), VIP])) == 2
    other = Marks()
    other.restore([SetEntry(*VIP[:3], mark=CLASS | 9 << 2 | 1)])
    assert number_of(other.assign(WEB, HTTP, [virtual("203.0.113.9"), VIP])) == 9, "a new address comes first"


def test_a_number_that_rests_is_given_out_when_no_other_is_left() -> None:
    marks = Marks()
    assert len(every_mark(marks)) == 2047
    service, (port, *others) = ("team-0", "service-0"), [PortKey(str(number), Protocol.TCP) for number in range(512)]
    before = marks.assign(service, port, [])
    assert marks.assign(WEB, HTTP, []) is None
    marks.keep(service, others)
    assert marks.assign(WEB, HTTP, []) == before
    assert marks.assign(WEB, DNS, []) is None


def test_no_number_is_lost_or_given_twice_when_the_marks_of_an_earlier_agent_are_forgotten() -> None:
    marks = Marks()
    for number in range(3 * RESTING):
        marks.assign(WEB, PortKey(str(number), Protocol.TCP), [])
    marks.keep(WEB, ())
    kept = number_of(marks.assign(WEB, HTTP, []))
    marks.forget_restored()
    found = [number_of(mark) for mark in every_mark(marks)]
    assert sorted([kept, *found]) == list(range(1, 2048))


def test_a_mark_of_others_has_a_key_too() -> None:
    assert mark_key(0x8000, Family.IPV4).protocol == mark_key(0x8003, Family.IPV4).protocol == Protocol.TCP
