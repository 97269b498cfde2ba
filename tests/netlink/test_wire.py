"""Framing and parsing: what is packed comes back, and garbage is one declared exception."""

from __future__ import annotations

from errno import EEXIST
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvs_proxy.netlink.wire import (
    ACK,
    CREATE,
    DUMP_INTERRUPTED,
    REQUEST,
    Acknowledgement,
    Data,
    Done,
    MalformedMessage,
    Overrun,
    Request,
    attribute,
    attributes,
    frame,
    frame_batch,
    integer,
    parse,
    text,
    text_attribute,
    walk,
)

ECHO = pack("=IHHII", 20, 30, 1, 7, 0)


def message(kind: int, payload: bytes = b"", *, flags: int = 0, sequence: int = 7) -> bytes:
    return pack("=IHHII", 16 + len(payload), kind, flags, sequence, 99) + payload + bytes(-len(payload) & 3)


def test_a_request_is_framed_with_its_length_and_flags():
    framed = frame(Request(0x1E, b"\x05\x01\0\0"), sequence=0x01020304, flags=ACK)
    assert framed == pack("=IHHII", 20, 0x1E, 0x5, 0x01020304, 0) + b"\x05\x01\0\0"


@pytest.mark.parametrize(
    ("datagram", "expected"),
    [
        (b"", []),
        (message(30, b"abcd", flags=2), [Data(30, 2, 7, b"abcd")]),
        (message(30, b"abcde") + message(31), [Data(30, 0, 7, b"abcde"), Data(31, 0, 7, b"")]),
        (message(2, pack("=i", 0) + ECHO), [Acknowledgement(7, 0)]),
        (message(2, pack("=i", -EEXIST) + ECHO), [Acknowledgement(7, EEXIST)]),
        (message(2, pack("=i", -4103) + ECHO + b"echo"), [Acknowledgement(7, 4103, b"echo")]),
        (message(3, pack("=i", 0), flags=DUMP_INTERRUPTED), [Done(DUMP_INTERRUPTED, 7, 0)]),
        (message(3), [Done(0, 7, 0)]),
        (message(3, pack("=i", -2)), [Done(0, 7, 2)]),
        (message(4), [Overrun(7)]),
        (message(1) + message(30), [Data(30, 0, 7, b"")]),
    ],
)
def test_replies_are_typed(datagram, expected):
    assert list(parse(datagram)) == expected


@pytest.mark.parametrize(
    "datagram",
    [
        b"\x10\0\0\0",
        pack("=IHHII", 15, 30, 0, 7, 0),
        pack("=IHHII", 0, 30, 0, 7, 0),
        pack("=IHHII", 17, 30, 0, 7, 0),
        message(2),
        message(2, b"abc"),
        message(3, b"abc"),
    ],
)
def test_wrong_lengths_are_malformed(datagram):
    with pytest.raises(MalformedMessage):
        list(parse(datagram))


def test_what_comes_before_garbage_is_given():
    replies = parse(message(30) + b"garbage")
    assert next(replies) == Data(30, 0, 7, b"")
    with pytest.raises(MalformedMessage, match="7 bytes at the end"):
        next(replies)


@given(st.lists(st.tuples(st.integers(5, 0xFFFF), st.binary(max_size=64)), max_size=8), st.integers(0, 0xFFFFFFFF))
def test_messages_come_back_from_a_datagram(messages, sequence):
    datagram = b"".join(message(kind, payload, sequence=sequence) for kind, payload in messages)
    assert list(parse(datagram)) == [Data(kind, 0, sequence, payload) for kind, payload in messages]


@given(st.dictionaries(st.integers(0, 0x3FFF), st.binary(max_size=64)))
def test_attributes_come_back(payloads):
    packed = b"".join(attribute(kind, payload) for kind, payload in payloads.items())
    assert len(packed) % 4 == 0
    assert attributes(packed) == payloads


@given(st.binary(max_size=256))
def test_any_datagram_is_parsed_or_malformed(datagram):
    try:
        replies = list(parse(datagram))
    except MalformedMessage:
        return
    assert len(replies) <= len(datagram) // 16


@given(st.binary(max_size=256), st.integers(0, 16))
def test_any_attributes_are_walked_or_malformed(data, start):
    try:
        found = list(walk(data, start))
    except MalformedMessage:
        return
    assert len(found) <= len(data) // 4
    assert all(start + 4 <= first <= last <= len(data) for _, first, last in found)


def test_an_attribute_that_does_not_fit_its_length_field_is_refused():
    assert len(attribute(1, bytes(0xFFFF - 4))) == 0x10000
    with pytest.raises(ValueError, match="too many for one netlink attribute"):
        attribute(1, bytes(0xFFFF - 3))


@pytest.mark.parametrize(
    ("payload", "expected"), [(b"\x2a", 42), (pack("=H", 42), 42), (pack("=I", 42), 42), (pack("=Q", 42), 42)]
)
def test_integers_of_any_width(payload, expected):
    assert integer({1: payload}, 1) == expected


def test_missing_and_odd_integers():
    assert integer({}, 1, 5) == 5
    with pytest.raises(MalformedMessage, match="attribute 1 is missing"):
        integer({}, 1)
    with pytest.raises(MalformedMessage, match="3 bytes"):
        integer({1: b"abc"}, 1)


def test_text_ends_with_a_zero_byte():
    assert text_attribute(3, "rr") == pack("=HH", 7, 3) + b"rr\0\0"
    assert text(b"rr\0\0") == text(b"rr") == "rr"
    with pytest.raises(MalformedMessage):
        text(b"\xff")


@given(st.lists(st.binary(max_size=5).map(lambda words: words * 4), min_size=1, max_size=5), st.integers(1, 2**31))
def test_batch_is_its_messages_in_a_row_of_which_the_last_asks_for_an_answer(payloads: list[bytes], first: int) -> None:
    requests = [Request(20 + number, payload, CREATE | REQUEST) for number, payload in enumerate(payloads)]
    framed = [frame(request, sequence=first + number) for number, request in enumerate(requests[:-1])]
    framed.append(frame(requests[-1], sequence=first + len(requests) - 1, flags=ACK))
    assert frame_batch(requests, sequence=first) == b"".join(framed)
