"""Conntrack messages: golden bytes, bytes of a real kernel, pyroute2 as the oracle, round trips, and garbage."""

from __future__ import annotations

import contextlib
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.nfnetlink.nfctsocket import nfct_msg

from ipvs_proxy.kernel.conntrack import codec
from ipvs_proxy.netlink.wire import NESTED, MalformedMessage, attribute, frame
from ipvs_proxy.plan.flows import Flow
from ipvs_proxy.plan.tables import Family
from tests.support.objects import packed

little_endian = pytest.mark.skipif(
    sys.byteorder != "little", reason="the golden bytes are those of little-endian hosts"
)

UDP = 17
FLOW = Flow(
    UDP, packed("10.244.3.3"), 40000, packed("10.96.0.10"), 53,
    packed("10.244.0.1"), 5353, packed("192.0.2.1"), 61000,
)  # fmt: skip
IPV6_FLOW = Flow(
    UDP, packed("fd00::3"), 40000, packed("fd00:96::10"), 53,
    packed("fd00:244::1"), 5353, packed("fd00:2::1"), 61000,
)  # fmt: skip
#: IP { V4_SRC 10.244.3.3, V4_DST 10.96.0.10 }, PROTO { NUM 17, SRC_PORT 40000, DST_PORT 53 }
GOLDEN_TUPLE = "1400 0180 0800 0100 0af40303 0800 0200 0a60000a 1c00 0280 0500 0100 11 000000 0600 0200 9c40 0000 0600 0300 0035 0000"
#: What Linux 6.1 wrote about a datagram from port 42147 to port 45625 of 127.0.0.1, and from 54005 to 51780 of ::1.
WRITTEN_BY_LINUX = {
    "IPv4": (
        "02000000 3400018014000180080001007f000001080002007f0000011c000280050001001100000006000200a4a3000006000300b2390000"
        "3400028014000180080001007f000001080002007f0000011c000280050001001100000006000200b239000006000300a4a30000"
        "0800030000000008 0800080000000000 08000c0041a6e9ce 08000b0000000001 080007000000001d",
        Flow(UDP, packed("127.0.0.1"), 42147, packed("127.0.0.1"), 45625, packed("127.0.0.1"), 45625,
             packed("127.0.0.1"), 42147, 0, bytes.fromhex("41a6e9ce")),
    ),
    "IPv6": (
        "0a000000 4c0001802c0001801400030000000000000000000000000000000001140004000000000000000000000000000000000"
        "11c000280050001001100000006000200d2f5000006000300ca440000"
        "4c0002802c000180140003000000000000000000000000000000000114000400000000000000000000000000000000011c000280"
        "050001001100000006000200ca44000006000300d2f50000"
        "0800030000000008 0800080000000000 08000c00632509a2 08000b0000000001 080007000000001d",
        Flow(UDP, packed("::1"), 54005, packed("::1"), 51780, packed("::1"), 51780, packed("::1"), 54005, 0,
             bytes.fromhex("632509a2")),
    ),
}  # fmt: skip


def encoded_tuple(
    kind: int, *, source: bytes, destination: bytes, proto: list[bytes], zone: bytes | None = None
) -> bytes:
    first, second = (1, 2) if len(source) == 4 else (3, 4)
    ip = attribute(first, source) + attribute(second, destination)
    data = attribute(1 | NESTED, ip) + attribute(2 | NESTED, b"".join(proto))
    if zone is not None:
        data += attribute(3, zone)
    return attribute(kind | NESTED, data)


def ports(flow: Flow, source: int, destination: int) -> list[bytes]:
    return [
        attribute(1, bytes((flow.protocol,))),
        attribute(2, source.to_bytes(2, "big")),
        attribute(3, destination.to_bytes(2, "big")),
    ]


def entry(flow: Flow, *, turned: bool = False, zone_in_tuple: bool = False, status: bytes = bytes(4)) -> bytes:
    """Return a flow as a kernel may write it; ``turned``: with its attributes in another order than Linux has."""
    zone = flow.zone.to_bytes(2, "big") if flow.zone else None
    original = ports(flow, flow.source_port, flow.destination_port)
    reply = ports(flow, flow.reply_source_port, flow.reply_destination_port)
    parts = [
        encoded_tuple(
            1,
            source=flow.source,
            destination=flow.destination,
            proto=original[::-1] if turned else original,
            zone=zone if zone_in_tuple else None,
        ),
        encoded_tuple(2, source=flow.reply_source, destination=flow.reply_destination, proto=reply),
    ]
    if zone is not None and not zone_in_tuple:
        parts.append(attribute(18, zone))
    parts.append(attribute(3, status))
    if flow.id:
        parts.append(attribute(12, flow.id))
    family = Family.IPV4 if len(flow.source) == 4 else Family.IPV6
    return bytes((family, 0, 0, 0)) + b"".join(parts[::-1] if turned else parts)


@st.composite
def flows(draw):
    length = draw(st.sampled_from((4, 16)))
    address, port = st.binary(min_size=length, max_size=length), st.integers(0, 0xFFFF)
    first, second, third, fourth = (draw(address) for _ in range(4))
    one, two, three, four = (draw(port) for _ in range(4))
    protocol, zone, identity = draw(st.integers(0, 255)), draw(port), draw(st.sampled_from((b"", b"\1\2\3\4")))
    return Flow(protocol, first, one, second, two, third, three, fourth, four, zone, identity)


@little_endian
@pytest.mark.parametrize(
    ("request_", "kind", "golden"),
    [
        (
            codec.encode_dump(Family.IPV4, UDP),
            0x101,
            "02 00 0000 1000 0180 0c00 0280 0500 0100 11 000000 0c00 1980 0800 0100 08000000",
        ),
        (codec.encode_dump(Family.IPV6, UDP, filtered=False), 0x101, "0a 00 0000"),
        (codec.encode_delete(FLOW), 0x102, "02 00 0000 3400 0180" + GOLDEN_TUPLE),
        (
            codec.encode_delete(FLOW._replace(zone=258, id=b"\xab\xcd\xef\x01")),
            0x102,
            "02 00 0000 3400 0180" + GOLDEN_TUPLE + "0600 1200 0102 0000 0800 0c00 abcdef01",
        ),
        (
            codec.encode_delete(IPV6_FLOW),
            0x102,
            "0a 00 0000 4c00 0180 2c00 0180 1400 0300 fd00000000000000 0000000000000003"
            "1400 0400 fd00009600000000 0000000000000010 1c00 0280 0500 0100 11 000000 0600 0200 9c40 0000 0600 0300 0035 0000",
        ),
    ],
)
def test_golden_bytes(request_, kind, golden):
    assert request_.payload.hex() == golden.replace(" ", "")
    assert (request_.type, request_.flags) == (kind, 0x1)


@little_endian
@pytest.mark.parametrize(("written", "flow"), WRITTEN_BY_LINUX.values(), ids=WRITTEN_BY_LINUX)
def test_what_linux_wrote_is_read(written, flow):
    assert codec.decode_flow(bytes.fromhex(written)) == flow


@given(flows(), st.booleans(), st.booleans())
def test_any_order_of_attributes_gives_the_same_flow(flow, turned, zone_in_tuple):
    assert codec.decode_flow(entry(flow, turned=turned, zone_in_tuple=zone_in_tuple)) == flow


@pytest.mark.parametrize("flow", [FLOW, IPV6_FLOW], ids=["IPv4", "IPv6"])
def test_the_kernels_own_layout_is_read_at_a_stroke(flow, monkeypatch):
    monkeypatch.setattr(codec, "_tuples_one_by_one", lambda payload: pytest.fail("read attribute by attribute"))
    assert codec.decode_flow(entry(flow)) == flow


@given(flows())
def test_pyroute2_reads_the_same_from_a_delete(flow):
    message = nfct_msg(frame(codec.encode_delete(flow), sequence=1))
    message.decode()
    assert message["nfgen_family"] == (2 if len(flow.source) == 4 else 10)
    original = message.get_attr("CTA_TUPLE_ORIG")
    ip, proto = original.get_attr("CTA_TUPLE_IP"), original.get_attr("CTA_TUPLE_PROTO")
    version = "V4" if len(flow.source) == 4 else "V6"
    assert packed(ip.get_attr(f"CTA_IP_{version}_SRC")) == flow.source
    assert packed(ip.get_attr(f"CTA_IP_{version}_DST")) == flow.destination
    assert proto.get_attr("CTA_PROTO_NUM") == flow.protocol
    assert proto.get_attr("CTA_PROTO_SRC_PORT") == flow.source_port
    assert proto.get_attr("CTA_PROTO_DST_PORT") == flow.destination_port
    assert message.get_attr("CTA_ID") == (int.from_bytes(flow.id, "big") if flow.id else None)


@pytest.mark.parametrize(
    "flow",
    [
        FLOW._replace(source=b""),
        FLOW._replace(destination=b""),
        FLOW._replace(destination=bytes(16)),
        FLOW._replace(source=bytes(5), destination=bytes(5)),
        FLOW._replace(protocol=256),
        FLOW._replace(source_port=-1),
        FLOW._replace(destination_port=65536),
        FLOW._replace(zone=65536),
    ],
)
def test_what_is_no_flow_is_never_deleted(flow):
    with pytest.raises(ValueError, match=r"flow|addresses|range\(0, 256\)"):
        codec.encode_delete(flow)


def test_what_is_not_kept_is_not_read_to_its_end():
    asked = []
    torn = entry(FLOW) + b"\2\0\0\0"
    assert codec.decode_flow(torn, lambda flow: bool(asked.append(flow))) is None
    assert asked == [FLOW]
    with pytest.raises(MalformedMessage):
        codec.decode_flow(torn, lambda flow: True)


def test_flow_without_ports_is_none():
    echo = [attribute(1, b"\1"), attribute(4, b"\0\1"), attribute(5, b"\x08"), attribute(6, b"\0")]
    tuples = [encoded_tuple(kind, source=FLOW.source, destination=FLOW.destination, proto=echo) for kind in (1, 2)]
    assert codec.decode_flow(b"\2\0\0\0" + b"".join(tuples)) is None


ORIGINAL = encoded_tuple(1, source=FLOW.source, destination=FLOW.destination, proto=ports(FLOW, 1, 2))


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (b"", "too few"),
        (b"\2\0\0", "too few"),
        (b"\2\0\0\0", "lacks the attribute 1"),
        (b"\2\0\0\0" + ORIGINAL, "lacks the attribute 2"),
        (b"\2\0\0\0" + attribute(1, b"") + attribute(2, b""), "lacks the attribute"),
        (b"\2\0\0\0" + ORIGINAL + encoded_tuple(2, source=b"123", destination=b"123", proto=[]), "pair of addresses"),
        (
            b"\2\0\0\0"
            + ORIGINAL
            + encoded_tuple(
                2, source=FLOW.source, destination=FLOW.source, proto=[attribute(2, b"1"), attribute(3, b"1")]
            ),
            "16-bit number",
        ),
        (
            b"\2\0\0\0"
            + encoded_tuple(1, source=FLOW.source, destination=FLOW.source, proto=[attribute(1, b"")])
            + ORIGINAL,
            "lacks the attribute 2",
        ),
        (entry(FLOW) + attribute(18, b"123"), "16-bit number"),
        (entry(FLOW)[:-2], "bytes, 6 are left"),
    ],
)
def test_garbage_is_named(payload, complaint):
    with pytest.raises(MalformedMessage, match=complaint):
        codec.decode_flow(payload)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_malformed(data):
    with contextlib.suppress(MalformedMessage):
        codec.decode_flow(data)


@given(flows(), st.data())
def test_any_damage_is_read_or_malformed(flow, data):
    payload = bytearray(entry(flow, turned=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MalformedMessage):
        codec.decode_flow(bytes(payload[: data.draw(st.integers(0, len(payload)))]))
