"""ipset messages: golden bytes, pyroute2 as the oracle, round trips, and garbage."""

from __future__ import annotations

import contextlib
import sys
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.nfnetlink.ipset import ipset_msg

from ipvs_proxy.kernel.filter.ipset import codec
from ipvs_proxy.kernel.filter.ipset.codec import SetHeader
from ipvs_proxy.kernel.filter.ipset.names import SetDefinition, SetType
from ipvs_proxy.netlink.wire import MalformedMessage, attribute, frame, text_attribute
from ipvs_proxy.plan.tables import Family, Role, SetEntry, Verb

little_endian = pytest.mark.skipif(
    sys.byteorder != "little", reason="the golden bytes are those of little-endian hosts"
)

VIP = bytes((10, 96, 0, 1))
SET = SetDefinition(Role("set", Family.IPV4), "SET", SetType.HASH_IP_PORT, "")

#: nfgenmsg {family 2}, PROTOCOL 7, SETNAME "SET"
GOLDEN_HEAD = "02 00 0000 0500 0100 07 000000 0800 0200 53455400"
#: IP { IPADDR_IPV4 10.96.0.1 }, PORT 80, PROTO tcp
GOLDEN_MEMBER = "0c00 0180 0800 0140 0a600001 0600 0440 0050 0000 0500 0700 06 000000"


def packed_addresses(family: Family):
    length = 4 if family is Family.IPV4 else 16
    return st.binary(min_size=length, max_size=length)


@st.composite
def members(draw):
    kind, family = draw(st.sampled_from(SetType)), draw(st.sampled_from(Family))
    address, protocol = draw(packed_addresses(family)), draw(st.integers(0, 255))
    port, source = draw(st.integers(0, 0xFFFF)), draw(packed_addresses(family))
    entry = {
        SetType.BITMAP_PORT: SetEntry(port=port),
        SetType.HASH_IP: SetEntry(address),
        SetType.HASH_IP_PORT: SetEntry(address, protocol, port, mark=draw(st.just(0) | st.integers(0, 0xFFFF_FFFF))),
        SetType.HASH_IP_PORT_IP: SetEntry(address, protocol, port, source),
        SetType.HASH_IP_PORT_NET: SetEntry(address, protocol, port, source, draw(st.integers(0, len(source) * 8))),
    }[kind]
    return kind, entry


@little_endian
@pytest.mark.parametrize(
    ("request_", "kind", "flags", "golden"),
    [
        (codec.encode_get_protocol(), 0x601, 0x1, "02 00 0000 0500 0100 06 000000"),
        (codec.encode_get_header("SET", protocol=7), 0x60C, 0x1, GOLDEN_HEAD),
        (codec.encode_list("SET", protocol=7), 0x607, 0x1, GOLDEN_HEAD),
        (codec.encode_destroy("SET", protocol=7), 0x603, 0x1, GOLDEN_HEAD),
        # The other name is NEW.
        (codec.encode_swap("SET", "NEW", protocol=7), 0x606, 0x1, GOLDEN_HEAD + "0800 0300 4e455700"),
        (
            codec.encode_get_type(SetType.HASH_IP, Family.IPV6, protocol=7),
            0x60D,
            0x1,
            "0a 00 0000 0500 0100 07 000000 0c00 0300 686173683a697000 0500 0500 0a 000000",
        ),
        (
            codec.encode_create(SET, protocol=7, revision=5, hash_size=1024, maximum_members=65536),
            0x602,
            0x601,
            GOLDEN_HEAD + "1100 0300 686173683a69702c706f727400 000000"
            "0500 0400 05 000000 0500 0500 02 000000"
            "1400 0780 0800 1240 00000400 0800 1340 00010000",
        ),
        (
            codec.encode_create(
                SET._replace(type=SetType.BITMAP_PORT), protocol=7, revision=3, hash_size=1, maximum_members=1
            ),
            0x602,
            0x601,
            "00" + GOLDEN_HEAD[2:] + "1000 0300 6269746d61703a706f727400"
            "0500 0400 03 000000 0500 0500 00 000000"
            "1400 0780 0600 0440 0000 0000 0600 0540 ffff 0000",
        ),
        (
            codec.encode_create(
                SET._replace(marks=True), protocol=7, revision=5, hash_size=1024, maximum_members=65536
            ),
            0x602,
            0x601,
            GOLDEN_HEAD + "1100 0300 686173683a69702c706f727400 000000"
            "0500 0400 05 000000 0500 0500 02 000000"
            # What the other set is called comes second.
            "1c00 0780 0800 1240 00000400 0800 1340 00010000 0800 0840 00000040",
        ),
        # SKBMARK: the mark, and a mask that replaces all of a packet's.
        (
            codec.encode_members(
                Verb.DELETE,
                "SET",
                [codec.encode_member(SetEntry(VIP, 6, 80, mark=0x2005), SetType.HASH_IP_PORT)],
                protocol=7,
            ),
            0x60A,
            0x1,
            GOLDEN_HEAD + "0800 0900 00000000"
            "3800 0880"
            "3400 0780" + GOLDEN_MEMBER + "0c00 1b40 00002005 ffffffff" + "0800 0900 01000000",
        ),
        (
            codec.encode_members(
                Verb.ADD, "SET", [codec.encode_member(SetEntry(VIP, 6, 80), SetType.HASH_IP_PORT)] * 2, protocol=7
            ),
            0x609,
            0x1,
            GOLDEN_HEAD + "0800 0900 00000000"
            "5400 0880"
            "2800 0780" + GOLDEN_MEMBER + "0800 0900 01000000"
            "2800 0780" + GOLDEN_MEMBER + "0800 0900 02000000",
        ),
    ],
)
def test_golden_bytes(request_, kind, flags, golden):
    assert request_.payload.hex() == golden.replace(" ", "")
    assert (request_.type, request_.flags) == (kind, flags)


@pytest.mark.parametrize(
    ("address", "source", "texts"),
    [
        (VIP, bytes((10, 0, 0, 0)), ("10.96.0.1", "10.0.0.0")),
        (bytes.fromhex("fd") + bytes(14) + b"\1", bytes.fromhex("fd01") + bytes(14), ("fd00::1", "fd01::")),
    ],
)
def test_pyroute2_reads_the_members(address, source, texts):
    entry = SetEntry(address, 17, 53, source, 8)
    request = codec.encode_members(
        Verb.DELETE, "SET", [codec.encode_member(entry, SetType.HASH_IP_PORT_NET)] * 3, protocol=6
    )
    message = ipset_msg(frame(request, sequence=1))
    message.decode()
    assert message.get_attr("IPSET_ATTR_SETNAME") == "SET"
    assert message.get_attr("IPSET_ATTR_PROTOCOL") == 6
    found = message.get_attr("IPSET_ATTR_ADT").get_attrs("IPSET_ATTR_DATA")
    assert len(found) == 3
    version = "IPV4" if len(address) == 4 else "IPV6"
    for data in found:
        assert data.get_attr("IPSET_ATTR_IP_FROM").get_attr(f"IPSET_ATTR_IPADDR_{version}") == texts[0]
        assert data.get_attr("IPSET_ATTR_IP2").get_attr(f"IPSET_ATTR_IPADDR_{version}") == texts[1]
        assert data.get_attr("IPSET_ATTR_PORT_FROM") == 53
        assert data.get_attr("IPSET_ATTR_PROTO") == 17
        assert data.get_attr("IPSET_ATTR_CIDR2") == 8


@given(st.lists(members(), min_size=1, max_size=8))
def test_members_come_back(drawn):
    kind = drawn[0][0]
    entries = [entry for other, entry in drawn if other is kind]
    request = codec.encode_members(Verb.ADD, "SET", [codec.encode_member(entry, kind) for entry in entries], protocol=7)
    assert list(codec.decode_members(request.payload, kind)) == entries


def listed_member(entry: SetEntry) -> bytes:
    """Write a member as the kernel lists it: without the number of a line, and without a flag at the address."""
    inner = attribute({4: 1, 16: 2}[len(entry.address)], entry.address)
    return attribute(1 | 0x8000, inner) + codec.encode_member(entry, SetType.HASH_IP_PORT)[4 + len(inner) :]


def listed(members_: list[bytes]) -> bytes:
    inner = b"".join(attribute(7 | 0x8000, member) for member in members_)
    return pack("=BBH", 2, 0, 0) + text_attribute(2, "SET") + attribute(8 | 0x8000, inner)


@little_endian
def test_members_as_linux_7_lists_them_are_read_at_once():
    member = "2000 0780 0c00 0180 0800 0100 0a6001f1 0600 0440 0050 0000 0500 0700 06 000000"
    entry = SetEntry(bytes((10, 96, 1, 241)), 6, 80)
    assert codec._decode_alike(bytes.fromhex(member) * 2) == [entry, entry]
    assert listed([listed_member(entry)])[-32:] == bytes.fromhex(member)


@given(st.data())
def test_a_listed_set_is_read_whatever_parts_its_members_have(data):
    family = data.draw(st.sampled_from(Family))
    entries = [
        SetEntry(data.draw(packed_addresses(family)), data.draw(st.integers(0, 255)), data.draw(st.integers(0, 0xFFFF)))
        for _ in range(data.draw(st.integers(0, 5)))
    ]
    members_ = list(map(listed_member, entries))
    if entries and data.draw(st.booleans()):
        # A comment, as somebody who made the set may have asked for.
        odd = data.draw(st.integers(0, len(entries) - 1))
        members_[odd] += attribute(26, b"a comment\0")
    assert list(codec.decode_members(listed(members_), SetType.HASH_IP_PORT)) == entries


@given(st.data())
def test_what_is_read_at_once_is_what_is_read_part_by_part(data):
    family = data.draw(st.sampled_from(Family))
    entry = SetEntry(data.draw(packed_addresses(family)), 6, 80)
    damaged = bytearray(attribute(7 | 0x8000, listed_member(entry)) * 2)
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    at_once = codec._decode_alike(bytes(damaged))
    if at_once is not None:
        # An attribute that means nothing keeps the members from being read at once.
        payload = pack("=BBH", 2, 0, 0) + attribute(8 | 0x8000, bytes(damaged) + attribute(99, b""))
        assert list(codec.decode_members(payload, SetType.HASH_IP_PORT)) == at_once


@pytest.mark.parametrize("kind", SetType)
def test_members_of_each_type_come_back(kind):
    entry = {
        SetType.BITMAP_PORT: SetEntry(port=30080),
        SetType.HASH_IP: SetEntry(VIP),
        SetType.HASH_IP_PORT: SetEntry(VIP, 6, 80, mark=0x2005),
        SetType.HASH_IP_PORT_IP: SetEntry(VIP, 6, 80, VIP),
        SetType.HASH_IP_PORT_NET: SetEntry(VIP, 6, 80, VIP, 31),
    }[kind]
    request = codec.encode_members(Verb.ADD, "SET", [codec.encode_member(entry, kind)] * 2, protocol=7)
    assert list(codec.decode_members(request.payload, kind)) == [entry, entry]


@pytest.mark.parametrize("maximum", [1, 65536, 1 << 20])
def test_the_size_of_a_set_comes_back(maximum):
    request = codec.encode_create(SET, protocol=7, revision=5, hash_size=1024, maximum_members=maximum)
    assert codec.decode_maximum(request.payload) == maximum
    bitmap = SET._replace(type=SetType.BITMAP_PORT)
    made = codec.encode_create(bitmap, protocol=7, revision=3, hash_size=1, maximum_members=maximum)
    assert codec.decode_maximum(made.payload) == 0


def test_a_network_without_a_prefix_length_is_one_address():
    entry = SetEntry(VIP, 6, 80, VIP)
    request = codec.encode_members(Verb.ADD, "SET", [codec.encode_member(entry, SetType.HASH_IP_PORT_NET)], protocol=7)
    assert list(codec.decode_members(request.payload, SetType.HASH_IP_PORT_NET)) == [entry._replace(prefix_length=32)]


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        (SetEntry(), SetType.HASH_IP),
        (SetEntry(b"123"), SetType.HASH_IP),
        (SetEntry(VIP, 6, 65536), SetType.HASH_IP_PORT),
        (SetEntry(VIP, 256, 80), SetType.HASH_IP_PORT),
        (SetEntry(VIP, 6, 80), SetType.HASH_IP_PORT_IP),
        (SetEntry(VIP, 6, 80, VIP, 256), SetType.HASH_IP_PORT_NET),
        (SetEntry(port=-1), SetType.BITMAP_PORT),
    ],
)
def test_what_is_no_member_is_refused(entry, kind):
    with pytest.raises(ValueError, match=f"no member of a {kind.value} set"):
        codec.encode_member(entry, kind)


def test_answers_about_versions_are_read():
    head = pack("=BBH", 2, 0, 0)
    assert codec.decode_protocol(head + attribute(1, b"\x07") + attribute(10, b"\x06")) == (6, 7)
    assert codec.decode_protocol(head + attribute(1, b"\x06")) == (6, 6)
    assert codec.decode_revisions(head + attribute(4, b"\x06") + attribute(10, b"\x00")) == (0, 6)
    assert codec.decode_header(
        head + text_attribute(2, "SET") + text_attribute(3, "hash:ip") + attribute(5, b"\x0a")
    ) == SetHeader("hash:ip", 10)


def test_the_line_of_a_failure_is_read():
    request = codec.encode_members(Verb.ADD, "SET", [], protocol=7)
    assert codec.failed_line(request.payload) == 0
    assert codec.failed_line(request.payload.replace(pack("=HHI", 8, 9, 0), pack("=HHI", 8, 9, 42))) == 42
    assert codec.failed_line(b"") == 0
    assert codec.failed_line(b"garbage" * 3) == 0


@pytest.mark.parametrize(
    ("code", "part"), [(4100, "in use"), (4103, "exists already"), (4352, "full"), (4999, "ipset's error 4999")]
)
def test_errors_of_ipset_have_a_text(code, part):
    assert part in (codec.error_text(code) or "")


def test_an_errno_is_not_ipsets():
    assert codec.error_text(2) is None


@pytest.mark.parametrize(
    "decode",
    [
        codec.decode_protocol,
        codec.decode_revisions,
        codec.decode_header,
        codec.failed_line,
        *(lambda payload, kind=kind: list(codec.decode_members(payload, kind)) for kind in SetType),
    ],
)
@given(data=st.data())
def test_garbage_is_read_or_malformed(decode, data):
    valid = codec.encode_members(
        Verb.ADD, "S", [codec.encode_member(SetEntry(VIP, 6, 80, VIP, 8), SetType.HASH_IP_PORT_NET)] * 2, protocol=7
    ).payload
    damaged = bytearray(data.draw(st.binary(max_size=120) | st.just(valid)))
    for _ in range(data.draw(st.integers(0, 4)) if damaged else 0):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MalformedMessage):
        decode(bytes(damaged))
