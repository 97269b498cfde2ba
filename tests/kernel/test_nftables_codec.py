"""The bytes of nf_tables: what ``nft --debug=mnl`` (1.0.6) sends for the same members."""

from __future__ import annotations

import sys
from socket import AF_INET, AF_INET6, inet_pton

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvs_proxy.kernel.filter.nftables import codec
from ipvs_proxy.kernel.filter.nftables.names import SetDefinition, definitions
from ipvs_proxy.netlink.wire import MalformedMessage
from ipvs_proxy.plan import roles
from ipvs_proxy.plan.roles import Roles
from ipvs_proxy.plan.tables import Family, Protocol, SetEntry, Verb

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the examples are of a little-endian machine")

TABLE = "0f000100697076732d70726f78790000"


def definition(role: Roles, family: Family = Family.IPV4) -> SetDefinition:
    return next(one for one in definitions() if one.role is role[family])


def packed(text: str) -> bytes:
    return inet_pton(AF_INET6 if ":" in text else AF_INET, text)


DNS = SetEntry(packed("10.96.0.2"), Protocol.UDP, 53)
WEB = SetEntry(packed("10.96.0.1"), Protocol.TCP, 80)


def test_members_are_what_nft_sends() -> None:
    cluster_ip = definition(roles.CLUSTER_IP)
    request = codec.encode_members(
        Verb.ADD, cluster_ip.name, [codec.encode_member(entry, cluster_ip) for entry in (WEB, DNS)]
    )
    assert request.type == 2572
    assert request.payload.hex() == (
        "01000000" + TABLE + "0f000200636c75737465722d69700000"
        "34000380"
        "18000180" "14000180" "10000100" "0a600001" "06000000" "00500000"
        "18000180" "14000180" "10000100" "0a600002" "11000000" "00350000"
    )  # fmt: skip
    assert codec.encode_members(Verb.DELETE, cluster_ip.name, []).type == 2574


def test_a_mark_is_in_host_order() -> None:
    internal = definition(roles.INTERNAL, Family.IPV6)
    member = codec.encode_member(SetEntry(packed("fd00::1"), Protocol.SCTP, 9, mark=0x2007), internal)
    assert member.hex() == (
        "30000180" "20000180" "1c000100" "fd000000000000000000000000000001" "84000000" "00090000"
        "0c000280" "08000100" "07200000"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("role", "entry", "key"),
    [
        (roles.NODE_PORT_TCP, SetEntry(port=30080), "06000100" "7580" "0000"),
        (roles.IPVS_IPS, SetEntry(packed("10.96.0.1")), "08000100" "0a600001"),
        (
            roles.LOOP_BACK,
            SetEntry(packed("10.244.1.1"), Protocol.TCP, 8080, packed("10.244.1.1")),
            "14000100" "0af40101" "06000000" "1f900000" "0af40101",
        ),
        (
            roles.LOAD_BALANCER_SOURCE_CIDR,
            SetEntry(packed("203.0.113.1"), Protocol.TCP, 443, packed("10.1.2.3"), 8),
            "14000100" "cb007101" "06000000" "01bb0000" "0a000000",
        ),
    ],
    ids=["a port", "an address", "an endpoint and its client", "a range, by its first address"],
)  # fmt: skip
def test_each_kind_of_key(role: Roles, entry: SetEntry, key: str) -> None:
    assert codec.encode_member(entry, definition(role)).hex().endswith(key)


@pytest.mark.parametrize(
    ("role", "entry"),
    [
        (roles.CLUSTER_IP, SetEntry(packed("fd00::1"), Protocol.TCP, 80)),
        (roles.CLUSTER_IP, SetEntry(packed("10.96.0.1"), Protocol.TCP, 65536)),
        (roles.CLUSTER_IP, SetEntry(packed("10.96.0.1"), 256, 80)),
        (roles.LOOP_BACK, SetEntry(packed("10.96.0.1"), Protocol.TCP, 80, packed("fd00::1"))),
        (roles.LOAD_BALANCER_SOURCE_CIDR, SetEntry(packed("10.96.0.1"), Protocol.TCP, 80, packed("10.0.0.0"), 33)),
        (roles.INTERNAL, SetEntry(packed("10.96.0.1"), Protocol.TCP, 80, mark=1 << 32)),
        (roles.NODE_PORT_TCP, SetEntry(port=-1)),
    ],
)
def test_what_is_no_member_is_refused(role: Roles, entry: SetEntry) -> None:
    with pytest.raises(ValueError, match="is no member of"):
        codec.encode_member(entry, definition(role))


addresses = {Family.IPV4: st.binary(min_size=4, max_size=4), Family.IPV6: st.binary(min_size=16, max_size=16)}


@st.composite
def members(draw: st.DrawFn) -> tuple[SetDefinition, SetEntry]:
    """Draw a set and a member of it."""
    one = draw(st.sampled_from(definitions()))
    address, port = addresses[one.role.family], st.integers(0, 65535)
    layout = one.layout
    if layout.parts == ("inet_service",):
        return one, SetEntry(port=draw(port))
    if len(layout.parts) == 1:
        return one, SetEntry(draw(address))
    entry = SetEntry(draw(address), draw(st.integers(0, 255)), draw(port))
    if layout.marks:
        return one, entry._replace(mark=draw(st.integers(0, 0xFFFF_FFFF)))
    return one, entry if len(layout.parts) == 3 else entry._replace(source=draw(address))


@given(st.lists(members(), min_size=1, max_size=3))
def test_what_is_sent_is_what_is_read(drawn: list[tuple[SetDefinition, SetEntry]]) -> None:
    one = drawn[0][0]
    entries = [entry for other, entry in drawn if other is one]
    request = codec.encode_members(Verb.ADD, one.name, [codec.encode_member(entry, one) for entry in entries])
    length = 32 if one.role.family is Family.IPV4 else 128
    assert list(codec.decode_members(request.payload, one, length if one.layout.networks else None)) == [
        entry._replace(prefix_length=length) if one.layout.networks else entry for entry in entries
    ]


@given(st.sampled_from(definitions()), st.binary(max_size=80))
def test_garbage_is_named_as_such(one: SetDefinition, payload: bytes) -> None:
    for decode in (lambda: list(codec.decode_members(payload, one)), lambda: codec.decode_set(payload)):
        try:
            decode()
        except MalformedMessage:
            continue


def test_a_generation_has_32_bits() -> None:
    assert codec.decode_generation(bytes.fromhex("00000000" "08000100" "0000002a")) == 42  # fmt: skip
    with pytest.raises(MalformedMessage, match="is no generation"):
        codec.decode_generation(bytes(4))
