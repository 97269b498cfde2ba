"""IPVS messages: golden bytes, pyroute2 as the oracle where it is right, round trips, and garbage."""

from __future__ import annotations

import contextlib
import sys
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.generic.ipvs import ipvsmsg

from ipvs_proxy.kernel.ipvs import decode, encode
from ipvs_proxy.kernel.ipvs.records import Activity, Balanced, Connections, Counters, ForeignVirtualServer, Timeouts
from ipvs_proxy.netlink.wire import MalformedMessage, Request, attribute, attributes, frame, text_attribute
from ipvs_proxy.plan.marks import CLASS, is_ours, mark_key
from ipvs_proxy.plan.tables import (
    ACTIVE,
    DRAINING,
    HASHED,
    PERSISTENT,
    Family,
    Protocol,
    RealServer,
    RealServerKey,
    RealServerOperation,
    Verb,
    VirtualServer,
    VirtualServerKey,
    VirtualServerOperation,
)

little_endian = pytest.mark.skipif(
    sys.byteorder != "little", reason="the golden bytes are those of little-endian hosts"
)

KEY = VirtualServerKey(bytes((10, 96, 0, 1)), Protocol.TCP, 80)
KEY6 = VirtualServerKey(bytes.fromhex("fd000000000000000000000000000001"), Protocol.UDP, 53)
POD = RealServerKey(bytes((10, 0, 0, 1)), 8080)

#: IPVS_CMD_ATTR_SERVICE {AF 2, PROTOCOL 6, ADDR 10.96.0.1, PORT 80}
GOLDEN_KEY = "3000 01800600 0100 020000000600 0200 060000001400 0300 0a6000010000000000000000000000000600 0400 00500000"
#: IPVS_CMD_ATTR_DEST {ADDR 10.0.0.1, PORT 8080, ADDR_FAMILY 2, ...}
GOLDEN_POD = "1400 0100 0a0000010000000000000000000000000600 0200 1f9000000600 0b00 02000000"

addresses = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
ports = st.integers(0, 0xFFFF)
keys = st.builds(VirtualServerKey, addresses, st.sampled_from(Protocol).map(int), ports, mark=st.just(0)) | st.builds(
    mark_key, st.integers(1, CLASS - 1).map(lambda low: CLASS | low).filter(is_ours), st.sampled_from(Family)
)
u32 = st.integers(0, 0xFFFFFFFF)
real_servers = st.builds(RealServer, st.integers(0, 0x7FFFFFFF), st.integers(0, 7), u32, u32) | st.sampled_from(
    [ACTIVE, DRAINING]
)


@st.composite
def virtual_servers(draw):
    key = draw(keys)
    scheduler = draw(st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=15))
    flags = draw(st.integers(0, 0x3F)) & ~HASHED
    if not flags & PERSISTENT:
        return VirtualServer(key, scheduler, flags)
    whole = len(key.address) * 8
    netmask = draw(st.none() | st.integers(1, whole - 1))
    return VirtualServer(key, scheduler, flags, draw(u32), netmask)


@little_endian
@pytest.mark.parametrize(
    ("operation", "golden"),
    [
        (
            VirtualServerOperation(Verb.ADD, VirtualServer(KEY, "rr")),
            "01010000"
            "5400 0180" + GOLDEN_KEY[9:] + "0700 0600 72720000"
            "0c00 0700 00000000 ffffffff"
            "0800 0800 00000000"
            "0800 0900 ffffffff",
        ),
        (
            VirtualServerOperation(Verb.SET, VirtualServer(KEY, "lc", PERSISTENT, 10800, 24)),
            "02010000"
            "5400 0180" + GOLDEN_KEY[9:] + "0700 0600 6c630000"
            "0c00 0700 01000000 ffffffff"
            "0800 0800 302a0000"
            "0800 0900 ffffff00",
        ),
        (
            VirtualServerOperation(Verb.ADD, VirtualServer(KEY6, "wlc")),
            (
                "01010000"
                "5400 0180"
                "0600 0100 0a000000"
                "0600 0200 11000000"
                "1400 0300 fd000000000000000000000000000001"
                "0600 0400 00350000"
                "0800 0600 776c6300"
                "0c00 0700 00000000 ffffffff"
                "0800 0800 00000000"
                "0800 0900 80000000"
            ),
        ),
        (VirtualServerOperation(Verb.DELETE, VirtualServer(KEY, "rr")), "03010000" + GOLDEN_KEY),
        (
            RealServerOperation(Verb.ADD, KEY, POD, ACTIVE),
            "05010000" + GOLDEN_KEY + "4800 0280" + GOLDEN_POD + "0800 0300 00000000"
            "0800 0400 01000000"
            "0800 0500 00000000"
            "0800 0600 00000000",
        ),
        (
            RealServerOperation(Verb.SET, KEY, POD, RealServer(0, 3, 9, 8)),
            "06010000" + GOLDEN_KEY + "4800 0280" + GOLDEN_POD + "0800 0300 03000000"
            "0800 0400 00000000"
            "0800 0500 09000000"
            "0800 0600 08000000",
        ),
        (
            RealServerOperation(Verb.DELETE, KEY, POD, ACTIVE),
            "07010000" + GOLDEN_KEY + "2800 0280" + GOLDEN_POD,
        ),
    ],
)
def test_golden_bytes(operation, golden):
    if isinstance(operation, VirtualServerOperation):
        request = encode.encode_virtual_server(operation, family_id=0x22)
    else:
        request = encode.encode_real_server(operation, family_id=0x22, server=encode.encode_key(KEY))
    assert request.payload.hex() == golden.replace(" ", "")
    assert (request.type, request.flags) == (0x22, 1)


@little_endian
def test_golden_bytes_of_questions():
    assert encode.encode_dump_virtual_servers(family_id=1).payload.hex() == "04010000"
    assert encode.encode_get_virtual_server(KEY, family_id=1).payload.hex() == "04010000" + GOLDEN_KEY.replace(" ", "")
    assert encode.encode_dump_real_servers(KEY, family_id=1).payload.hex() == "08010000" + GOLDEN_KEY.replace(" ", "")
    assert encode.encode_get_version(family_id=1).payload.hex() == "0f010000"
    assert encode.encode_get_timeouts(family_id=1).payload.hex() == "0d010000"
    timeouts = encode.encode_set_timeouts(Timeouts(900, 120, 300), family_id=1)
    assert timeouts.payload.hex() == "0c01000008000400840300000800050078000000080006002c010000"


def oracle(command: int, service: list[tuple[str, object]], dest: list[tuple[str, object]] | None = None) -> bytes:
    """Return the message's payload as pyroute2 encodes it."""
    message = ipvsmsg()
    message["cmd"], message["version"] = command, 1
    message["attrs"] = [("IPVS_CMD_ATTR_SERVICE", {"attrs": service})]
    if dest is not None:
        message["attrs"].append(("IPVS_CMD_ATTR_DEST", {"attrs": dest}))
    message.encode()
    return bytes(message.data[16:])


def contents(payload: bytes) -> tuple[bytes, dict[int, dict[int, bytes]]]:
    """Return header and attributes; IPv4 addresses by 4 bytes, as pyroute2 writes them (the kernel takes both)."""
    found = {kind: attributes(nested) for kind, nested in attributes(payload, 4).items()}
    for nested, address in ((1, 3), (2, 1)):
        if nested in found:
            found[nested][address] = found[nested][address][:4]
    return payload[:4], found


SERVICE = [
    ("IPVS_SVC_ATTR_AF", 2),
    ("IPVS_SVC_ATTR_PROTOCOL", 6),
    ("IPVS_SVC_ATTR_ADDR", "10.96.0.1"),
    ("IPVS_SVC_ATTR_PORT", 80),
]


def test_a_service_is_encoded_as_pyroute2_does():
    request = encode.encode_virtual_server(
        VirtualServerOperation(Verb.ADD, VirtualServer(KEY, "wrr", PERSISTENT, 300, 24)), family_id=1
    )
    expected = oracle(
        1,
        [
            *SERVICE,
            ("IPVS_SVC_ATTR_SCHED_NAME", "wrr"),
            ("IPVS_SVC_ATTR_FLAGS", {"flags": 1, "mask": 0xFFFFFFFF}),
            ("IPVS_SVC_ATTR_TIMEOUT", 300),
            ("IPVS_SVC_ATTR_NETMASK", "255.255.255.0"),
        ],
    )
    assert contents(request.payload) == contents(expected)


def test_a_destination_is_encoded_as_pyroute2_does():
    request = encode.encode_real_server(
        RealServerOperation(Verb.ADD, KEY, POD, RealServer(7, 0, 5, 4)), family_id=1, server=encode.encode_key(KEY)
    )
    expected = oracle(
        5,
        SERVICE,
        [
            ("IPVS_DEST_ATTR_ADDR", "10.0.0.1"),
            ("IPVS_DEST_ATTR_PORT", 8080),
            ("IPVS_DEST_ATTR_ADDR_FAMILY", 2),
            ("IPVS_DEST_ATTR_FWD_METHOD", 0),
            ("IPVS_DEST_ATTR_WEIGHT", 7),
            ("IPVS_DEST_ATTR_U_THRESH", 5),
            ("IPVS_DEST_ATTR_L_THRESH", 4),
        ],
    )
    assert contents(request.payload) == contents(expected)


def reply(kind: int, body: bytes) -> bytes:
    return pack("=BBxx", 1, 1) + attribute(kind, body)


@given(virtual_servers())
def test_virtual_servers_come_back(server):
    request = encode.encode_virtual_server(VirtualServerOperation(Verb.ADD, server), family_id=1)
    assert decode.decode_virtual_server(request.payload) == server


@given(keys, st.builds(RealServerKey, addresses, ports), real_servers)
def test_real_servers_come_back(virtual, key, server):
    request = encode.encode_real_server(
        RealServerOperation(Verb.ADD, virtual, key, server), family_id=1, server=encode.encode_key(virtual)
    )
    found = decode.decode_real_server(request.payload, virtual_address=virtual.address)
    assert found == (key, server)
    counted = decode.decode_connections(request.payload, virtual_address=virtual.address)
    assert counted == (key, Connections(0, 0, 0))


def dumped(key: RealServerKey, server: RealServer, connections: Connections, *, tunnel: bool = True) -> bytes:
    """Return a reply as the kernel's ip_vs_genl_fill_dest lays it out."""
    parts = [
        (1, key.address.ljust(16, b"\0")),
        (2, key.port.to_bytes(2, "big")),
        (3, pack("=I", server.forwarding | 0x0100)),
        (4, pack("=I", server.weight)),
        *([(13, b"\0"), (14, b"\0\0"), (15, b"\0\0")] if tunnel else []),
        (5, pack("=I", server.upper_threshold)),
        (6, pack("=I", server.lower_threshold)),
        *((kind, pack("=I", count)) for kind, count in zip((7, 8, 9), connections, strict=True)),
        (11, pack("=H", 2 if len(key.address) == 4 else 10)),
        (10, attribute(1, pack("=I", 5))),
    ]
    return reply(2, b"".join(attribute(kind, payload) for kind, payload in parts))


@given(st.builds(RealServerKey, addresses, ports), real_servers, st.builds(Connections, u32, u32, u32))
def test_both_layouts_of_a_dump_say_the_same(key, server, connections):
    for payload in (dumped(key, server, connections, tunnel=tunnel) for tunnel in (True, False)):
        assert decode.decode_real_server(payload, virtual_address=KEY.address) == (key, server)
        assert decode.decode_connections(payload, virtual_address=KEY.address) == (key, connections)


def test_a_dump_of_this_layout_is_not_walked(monkeypatch):
    """The layout above is the kernel's since 5.3, and what makes reading a large table cheap."""
    payload = dumped(POD, ACTIVE, Connections(1, 2, 3))
    server = listed(VirtualServer(KEY, "rr"))
    decode.decode_real_server(payload, virtual_address=KEY.address)
    decode.decode_virtual_server(server)
    monkeypatch.setattr(decode, "attributes", None)
    assert decode.decode_real_server(payload, virtual_address=KEY.address) == (POD, ACTIVE)
    assert decode.decode_virtual_server(server) == VirtualServer(KEY, "rr")


def listed(server: VirtualServer, *extra: tuple[int, bytes]) -> bytes:
    """Return a reply as the kernel's ip_vs_genl_fill_service lays it out; ``extra`` comes behind the scheduler's name."""
    parts = [
        (1, pack("=H", 2 if len(server.key.address) == 4 else 10)),
        (2, pack("=H", server.key.protocol)),
        (3, server.key.address.ljust(16, b"\0")),
        (4, server.key.port.to_bytes(2, "big")),
        (6, server.scheduler.encode() + b"\0"),
        *extra,
        (7, pack("=II", server.flags | HASHED, 0xFFFFFFFF)),
        (8, pack("=I", server.timeout)),
        (9, b"\xff\xff\xff\xff" if len(server.key.address) == 4 else pack("=I", 128)),
        (10, attribute(1, pack("=I", 5))),
        (12, attribute(1, pack("=Q", 5))),
    ]
    return reply(1, b"".join(attribute(kind, payload) for kind, payload in parts))


@pytest.mark.parametrize("scheduler", ["rr", "wlc", "lblc", "a" * 15])
@pytest.mark.parametrize("key", [KEY, KEY6])
@pytest.mark.parametrize("persistent", [(0, 0), (PERSISTENT, 10800)])
@pytest.mark.parametrize("extra", [(), ((11, b"sip\0"),)])
def test_a_listed_virtual_server_is_read_whatever_its_layout(scheduler, key, persistent, extra):
    server = VirtualServer(key, scheduler, *persistent)
    assert decode.decode_virtual_server(listed(server, *extra)) == server


COUNTERS = Counters(3, 21, 18, 1 << 33, 1 << 40)
u64 = st.integers(0, (1 << 64) - 1)
counters = st.builds(Counters, u64, u64, u64, u64, u64)
RATES = (7, 8, 9, 10, 11)


def statistics(counted: Counters) -> bytes:
    """Return what ip_vs_genl_fill_stats writes, the only statistics before Linux 4.1: what has 32 bits wraps around."""
    connections, packets_in, packets_out, bytes_in, bytes_out = counted
    low = 0xFFFFFFFF
    return b"".join(
        attribute(kind, payload)
        for kind, payload in [
            (1, pack("=I", connections & low)),
            (2, pack("=I", packets_in & low)),
            (3, pack("=I", packets_out & low)),
            (4, pack("=Q", bytes_in)),
            (5, pack("=Q", bytes_out)),
            *((kind, pack("=I", rate)) for kind, rate in enumerate(RATES, 6)),
        ]
    )


def statistics_64(counted: Counters, *, aligned: bool) -> bytes:
    """Return what ip_vs_genl_fill_stats64 writes; ``aligned`` as kernels do that need 64 bits at multiples of 8 bytes."""
    padding = attribute(11, b"") if aligned else b""
    return b"".join(padding + attribute(kind, pack("=Q", count)) for kind, count in enumerate((*counted, *RATES), 1))


def counted(key: VirtualServerKey, *pieces: tuple[int, bytes], scheduler: str = "rr") -> bytes:
    """Return a reply as the kernel's ip_vs_genl_fill_service lays it out, with these statistics."""
    mark = [(5, pack("=I", key.mark))]
    address = [
        (2, pack("=H", key.protocol)),
        (3, key.address.ljust(16, b"\0")),
        (4, key.port.to_bytes(2, "big")),
    ]
    parts = [
        (1, pack("=H", 2 if len(key.address) == 4 else 10)),
        *(mark if key.mark else address),
        (6, scheduler.encode() + b"\0"),
        (7, pack("=II", HASHED, 0xFFFFFFFF)),
        (8, pack("=I", 0)),
        (9, b"\xff\xff\xff\xff"),
        *pieces,
    ]
    return reply(1, b"".join(attribute(kind, payload) for kind, payload in parts))


@given(keys, counters, st.booleans(), st.sampled_from(["rr", "wlc", "lblc"]))
def test_counters_of_64_bits_are_read_whatever_their_layout(key, expected, aligned, scheduler):
    pieces = [(10, statistics(expected)), (12, statistics_64(expected, aligned=aligned))]
    assert decode.decode_counters(counted(key, *pieces, scheduler=scheduler)) == (key, expected)
    assert decode.decode_counters(counted(key, *reversed(pieces), scheduler=scheduler)) == (key, expected)


@given(keys, counters)
def test_counters_of_an_old_kernel_have_32_bits_where_bytes_have_64(key, expected):
    *small, bytes_in, bytes_out = expected
    found = decode.decode_counters(counted(key, (10, statistics(expected))))
    assert found == (key, Counters(*(count & 0xFFFFFFFF for count in small), bytes_in, bytes_out))


def test_counters_of_the_usual_layout_are_not_walked(monkeypatch):
    payload = counted(KEY, (10, statistics(COUNTERS)), (12, statistics_64(COUNTERS, aligned=False)))
    monkeypatch.setattr(decode, "attributes", None)
    assert decode.decode_counters(payload) == (KEY, COUNTERS)


@pytest.mark.parametrize("aligned", [False, True])
def test_counters_are_those_that_pyroute2_reads(aligned):
    payload = counted(KEY, (10, statistics(COUNTERS)), (12, statistics_64(COUNTERS, aligned=aligned)))
    message = ipvsmsg(frame(Request(0x22, payload), sequence=1))
    message.decode()
    service = message.get_attr("IPVS_CMD_ATTR_SERVICE")
    expected = service.get_attr("IPVS_SVC_ATTR_STATS64")
    names = ("CONNS", "INPKTS", "OUTPKTS", "INBYTES", "OUTBYTES")
    assert decode.decode_counters(payload) == (
        VirtualServerKey(KEY.address, service.get_attr("IPVS_SVC_ATTR_PROTOCOL"), KEY.port),
        Counters(*(expected.get_attr(f"IPVS_STATS_ATTR_{name}") for name in names)),
    )


@pytest.mark.parametrize("key", [mark_key(0, Family.IPV4)._replace(mark=42), KEY._replace(protocol=1)])
def test_counters_of_what_cannot_be_ours_are_left_out(key):
    assert decode.decode_counters(counted(key, (12, statistics_64(COUNTERS, aligned=False)))) is None


def test_a_virtual_server_without_counters_is_malformed():
    with pytest.raises(MalformedMessage, match="statistics"):
        decode.decode_counters(counted(KEY))


def test_the_usual_settings_are_shared_values():
    for usual in (ACTIVE, DRAINING):
        found = decode.decode_real_server(dumped(POD, usual, Connections(1, 2, 3)), virtual_address=KEY.address)
        assert found[1] is usual


def test_a_kernel_without_the_family_attribute_means_the_virtual_servers():
    body = b"".join(
        attribute(kind, payload)
        for kind, payload in [
            (1, POD.address + bytes(12)),
            (2, b"\x1f\x90"),
            (3, pack("=I", 0)),
            (4, pack("=I", 1)),
        ]
    )
    assert decode.decode_real_server(reply(2, body), virtual_address=KEY.address) == (POD, ACTIVE)


def test_what_has_no_meaning_without_persistence_is_left_out():
    body = encode.encode_virtual_server(
        VirtualServerOperation(Verb.ADD, VirtualServer(KEY, "rr", HASHED, 360, 24)), family_id=1
    ).payload
    assert decode.decode_virtual_server(body) == VirtualServer(KEY, "rr")


def test_a_firewall_mark_is_foreign():
    body = attribute(1, pack("=H", 2)) + attribute(5, pack("=I", 42)) + text_attribute(6, "wlc")
    assert decode.decode_virtual_server(reply(1, body)) == ForeignVirtualServer(2, 42, 0, bytes(4), 0, "wlc")


def test_timeouts_and_version_are_read():
    body = b"".join(attribute(kind, pack("=I", value)) for kind, value in ((4, 900), (5, 120), (6, 300)))
    assert decode.decode_timeouts(bytes(4) + body) == Timeouts(900, 120, 300)
    assert decode.decode_version(bytes(4) + attribute(1, pack("=I", 0x010201))) == "1.2.1"


@pytest.mark.parametrize(
    "server",
    [
        VirtualServer(KEY, ""),
        VirtualServer(KEY, "a" * 16),
        VirtualServer(KEY._replace(address=b"123"), "rr"),
        VirtualServer(KEY._replace(port=65536), "rr"),
        VirtualServer(KEY._replace(port=-1), "rr"),
        VirtualServer(KEY._replace(protocol=-1), "rr"),
        VirtualServer(KEY, "rr", flags=-1),
        VirtualServer(KEY, "rr", timeout=1 << 32),
        VirtualServer(KEY, "rr", netmask=33),
        VirtualServer(KEY, "rr", netmask=-1),
        VirtualServer(KEY6, "rr", netmask=-1),
    ],
)
def test_a_virtual_server_that_the_types_cannot_hold_is_refused(server):
    with pytest.raises(ValueError):
        encode.encode_virtual_server(VirtualServerOperation(Verb.ADD, server), family_id=1)


@pytest.mark.parametrize(
    ("key", "server"),
    [
        (POD._replace(address=b""), ACTIVE),
        (POD._replace(port=65536), ACTIVE),
        (POD, RealServer(-1)),
        (POD, RealServer(1, 0, 1 << 32, 0)),
    ],
)
def test_a_real_server_that_the_types_cannot_hold_is_refused(key, server):
    operation = RealServerOperation(Verb.ADD, KEY, key, server)
    with pytest.raises(ValueError):
        encode.encode_real_server(operation, family_id=1, server=encode.encode_key(KEY))


DECODERS = [
    decode.decode_virtual_server,
    decode.decode_counters,
    decode.decode_balanced,
    lambda payload: decode.decode_real_server(payload, virtual_address=KEY.address),
    lambda payload: decode.decode_activity(payload, virtual_address=KEY.address),
    decode.decode_timeouts,
    decode.decode_version,
]
VALID = [
    encode.encode_virtual_server(VirtualServerOperation(Verb.ADD, VirtualServer(KEY, "rr")), family_id=1).payload,
    dumped(POD, ACTIVE, Connections(1, 2, 3)),
    dumped(POD, ACTIVE, Connections(1, 2, 3), tunnel=False),
    counted(KEY, (10, statistics(COUNTERS)), (12, statistics_64(COUNTERS, aligned=False))),
]


@pytest.mark.parametrize("decode", DECODERS)
@given(payload=st.binary(max_size=200))
def test_garbage_is_read_or_malformed(decode, payload):
    with contextlib.suppress(MalformedMessage):
        decode(payload)


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("valid", VALID)
@given(data=st.data())
def test_damaged_replies_are_read_or_malformed(decode, valid, data):
    damaged = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(valid) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(damaged[: data.draw(st.integers(0, len(valid)))]))
        decode(bytes(damaged))
    except MalformedMessage:
        pass


def test_an_encoded_request_is_framed_without_padding():
    request = encode.encode_virtual_server(VirtualServerOperation(Verb.ADD, VirtualServer(KEY, "a")), family_id=1)
    assert len(frame(request, sequence=1)) % 4 == 0


@pytest.mark.parametrize("pieces", [[(12, True)], [(12, False)], [(10, None)]], ids=["aligned", "packed", "before 4.1"])
def test_traffic_has_counters_and_rates_by_the_second(pieces):
    ((kind, aligned),) = pieces
    total = Counters(3, 21, 18, 1 << 33, 1 << 40)
    payload = statistics(total) if aligned is None else statistics_64(total, aligned=aligned)
    assert decode.decode_balanced(counted(KEY, (kind, payload))) == Balanced(total, Counters(*RATES))


def test_activity_of_a_real_server_is_its_settings_connections_and_traffic():
    parts = [
        (1, POD.address.ljust(16, b"\0")),
        (2, POD.port.to_bytes(2, "big")),
        (3, pack("=I", 0)),
        (4, pack("=I", 1)),
        (7, pack("=I", 4)),
        (8, pack("=I", 5)),
        (9, pack("=I", 6)),
        (10, statistics(COUNTERS)),
        (12, statistics_64(COUNTERS, aligned=False)),
        (11, pack("=H", 2)),
    ]
    payload = reply(2, b"".join(attribute(kind, part) for kind, part in parts))
    expected = Activity(ACTIVE, Connections(4, 5, 6), Balanced(COUNTERS, Counters(*RATES)))
    assert decode.decode_activity(payload, virtual_address=KEY.address) == (POD, expected)
