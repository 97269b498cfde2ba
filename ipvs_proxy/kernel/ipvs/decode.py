"""Answers of IPVS, from bytes: the messages of linux/ip_vs.h over generic netlink.

What is read here equals what ``encode`` was given: flags that only the kernel sets are left out, and what has no
meaning for a virtual server without persistence is 0 or ``None``. So a table that was just written, read again, has no
difference to the plan. Anything that is not such an answer is ``MalformedMessage``, never another error or a guess.

A table can have a hundred thousand real servers. Where the kernel lays attributes out as it has done since Linux 5.3,
one ``Struct.unpack`` gives what names an object, and its settings as one run of bytes. A whole table has few different
ones, so each is read once and remembered: reading takes a third of the time that it takes attribute by attribute. Any
other layout is read that way, with the same result.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from struct import Struct
from typing import Final

from ipvs_proxy.kernel.ipvs.constants import (
    DEST,
    DEST_ACTIVE_CONNS,
    DEST_ADDR,
    DEST_ADDR_FAMILY,
    DEST_FWD_METHOD,
    DEST_INACT_CONNS,
    DEST_L_THRESH,
    DEST_PERSIST_CONNS,
    DEST_PORT,
    DEST_TUN_FLAGS,
    DEST_TUN_PORT,
    DEST_TUN_TYPE,
    DEST_U_THRESH,
    DEST_WEIGHT,
    FORWARDING_MASK,
    INFO_VERSION,
    SERVICE,
    STATS,
    STATS64,
    STATS_RATES,
    STATS_TOTALS,
    SVC_ADDR,
    SVC_AF,
    SVC_FLAGS,
    SVC_FWMARK,
    SVC_NETMASK,
    SVC_PORT,
    SVC_PROTOCOL,
    SVC_SCHED_NAME,
    SVC_TIMEOUT,
    TIMEOUT_TCP,
    TIMEOUT_TCP_FIN,
    TIMEOUT_UDP,
)
from ipvs_proxy.kernel.ipvs.records import Activity, Balanced, Connections, Counters, ForeignVirtualServer, Timeouts
from ipvs_proxy.netlink.generic import GENERIC_HEADER
from ipvs_proxy.netlink.wire import ATTRIBUTE, NESTED, MalformedMessage, attributes, integer, text, walk
from ipvs_proxy.plan.marks import is_ours, mark_key
from ipvs_proxy.plan.tables import (
    ACTIVE,
    DRAINING,
    HASHED,
    PERSISTENT,
    Family,
    Protocol,
    RealServer,
    RealServerKey,
    Settings,
    VirtualServer,
    VirtualServerKey,
    family_of,
)

_AF_INET: Final = 2
_AF_INET6: Final = 10
_IPV6_LENGTH: Final = 16
_LENGTHS: Final = {_AF_INET: 4, _AF_INET6: _IPV6_LENGTH}

#: A virtual server in a dump: the nested attribute, then header and value of family, protocol, address and port.
_LISTED_VIRTUAL_SERVER: Final = Struct("=4x HH IHxx IHxx I16s I2sxx")
#: The same in what differs from one to the next and what does not: all before the address; address; header and value
#: of the port; the length of the scheduler's name, which follows.
_LISTED_HEAD: Final = Struct("=4x HH IHxx IHxx I")
_LISTED: Final = Struct("=28s 16s I2sxx H2x")
_LISTED_NAME: Final = _LISTED.size - 4
#: What follows the header of its scheduler's name, which is of any length: flags, timeout and netmask.
_LISTED_SETTINGS: Final = 12 + 8 + 8
#: What a virtual server ends with since Linux 4.1: the nested attribute, five counters, and five rates.
_LISTED_COUNTERS: Final = Struct("=I IQ IQ IQ IQ IQ 60x")
#: A real server in a dump of a kernel since 5.3: the nested attribute, address and port, the run of bytes that is its
#: settings from forwarding method to lower threshold, its connections, its family.
_LISTED_REAL_SERVER: Final = Struct("=4x HH I16s I2sxx 56s 24x IH")
_SETTINGS_ORDER: Final = (
    *(DEST_FWD_METHOD, DEST_WEIGHT),
    *(DEST_TUN_TYPE, DEST_TUN_PORT, DEST_TUN_FLAGS),
    *(DEST_U_THRESH, DEST_L_THRESH),
)
#: How many different runs of settings are remembered; a table has a handful.
_REMEMBERED: Final = 1024


def _header(kind: int, length: int) -> int:
    return int.from_bytes(ATTRIBUTE.pack(4 + length, kind), sys.byteorder)


_VIRTUAL_SERVER_HEADERS: Final = (
    _header(SVC_AF, 2),
    _header(SVC_PROTOCOL, 2),
    _header(SVC_ADDR, 16),
    _header(SVC_PORT, 2),
)
_PORT_HEADER: Final = _VIRTUAL_SERVER_HEADERS[3]
_REAL_SERVER_HEADERS: Final = (_header(DEST_ADDR, 16), _header(DEST_PORT, 2), _header(DEST_ADDR_FAMILY, 2))
_STATISTICS_HEADER: Final = _header(STATS64, _LISTED_COUNTERS.size - 4)
_COUNTER_HEADERS: Final = tuple(_header(kind, 8) for kind in STATS_TOTALS)

_PROTOCOLS: Final = frozenset(Protocol)


def decode_timeouts(payload: bytes) -> Timeouts:
    """Read the answer to ``encode_get_timeouts``.

    Raises:
        MalformedMessage: if it is not such an answer.

    """
    found = attributes(payload, GENERIC_HEADER.size)
    return Timeouts(*(integer(found, kind) for kind in (TIMEOUT_TCP, TIMEOUT_TCP_FIN, TIMEOUT_UDP)))


def decode_version(payload: bytes) -> str:
    """Read the answer to ``encode_get_version``: ``1.2.1``.

    Raises:
        MalformedMessage: if it is not such an answer.

    """
    version = integer(attributes(payload, GENERIC_HEADER.size), INFO_VERSION)
    return f"{version >> 16 & 0xFF}.{version >> 8 & 0xFF}.{version & 0xFF}"


def decode_virtual_server(payload: bytes) -> VirtualServer | ForeignVirtualServer:
    """Read a virtual server, without real servers, from a reply to GET_SERVICE.

    What has no meaning without PERSISTENT, timeout and netmask, is given as 0 and ``None`` then.

    Raises:
        MalformedMessage: if it is not such a reply.

    """
    listed = decode_listed(payload)
    return _walk_virtual_server(payload) if listed is None else VirtualServer(VirtualServerKey(*listed[0]), *listed[1])


def decode_listed(payload: bytes) -> tuple[tuple[bytes, int, int, int], Settings] | None:
    """Read key and settings of a virtual server as plain tuples, which takes half as long.

    Of one that is not laid out as usual, or has a mark, ``None``: ``decode_virtual_server`` says what it is.
    """
    if len(payload) < _LISTED.size:
        return None
    head, address, port_header, port, length = _LISTED.unpack_from(payload)
    # Most of a table has the same first bytes, and the same settings.
    found = _listed_head(head, len(payload))
    end = _LISTED_NAME + (length + 3 & ~3) + _LISTED_SETTINGS
    if found is None or port_header != _PORT_HEADER or end > found[2]:
        return None
    length, protocol, _ = found
    settings = _listed_settings(payload[_LISTED_NAME:end], length == _IPV6_LENGTH)
    return None if settings is None else ((address[:length], protocol, int.from_bytes(port, "big"), 0), settings)


@lru_cache(_REMEMBERED)
def _listed_head(head: bytes, length: int) -> tuple[int, int, int] | None:
    """Read what comes before a virtual server's address: the length of that, the protocol, and where all ends."""
    size, kind, first, af, second, protocol, third = _LISTED_HEAD.unpack(head)
    if (
        (first, second, third) != _VIRTUAL_SERVER_HEADERS[:3]
        or kind & ~NESTED != SERVICE
        or size + 4 > length
        or protocol not in _PROTOCOLS
        or af not in _LENGTHS
    ):
        return None
    return _LENGTHS[af], protocol, size + 4


def decode_counters(payload: bytes) -> tuple[VirtualServerKey, Counters] | None:
    """Read the counters of a virtual server from a reply to GET_SERVICE; ``None`` if it cannot be ours.

    Raises:
        MalformedMessage: if it is not such a reply.

    """
    start = len(payload) - _LISTED_COUNTERS.size
    if start >= _LISTED_VIRTUAL_SERVER.size:
        size, kind, first, af, second, protocol, third, address, fourth, port = _LISTED_VIRTUAL_SERVER.unpack_from(
            payload
        )
        fields = _LISTED_COUNTERS.unpack_from(payload, start)
        if (
            (first, second, third, fourth) == _VIRTUAL_SERVER_HEADERS
            and fields[0] == _STATISTICS_HEADER
            and fields[1::2] == _COUNTER_HEADERS
            and kind & ~NESTED == SERVICE
            and size + 4 == len(payload)
            and protocol in _PROTOCOLS
        ):
            key = VirtualServerKey(_decode_address(address, af), protocol, int.from_bytes(port, "big"))
            return key, Counters(*fields[2::2])
    return _walk_counters(payload)


def _walk_counters(payload: bytes) -> tuple[VirtualServerKey, Counters] | None:
    found = attributes(_nested(payload, SERVICE))
    key = _virtual_server_key(found)
    if key is None:
        return None
    statistics = found.get(STATS64, found.get(STATS))
    if statistics is None:
        raise MalformedMessage(f"{key} has no statistics")
    counted = attributes(statistics)
    return key, Counters(*(integer(counted, kind) for kind in STATS_TOTALS))


@lru_cache(_REMEMBERED)
def _listed_settings(run: bytes, ipv6: bool) -> Settings | None:
    """Read the settings of a virtual server from a run of bytes; ``None`` if it is something else."""
    found = {kind: run[first:last] for kind, first, last in walk(run)}
    return (
        _settings(found, ipv6=ipv6) if tuple(found) == (SVC_SCHED_NAME, SVC_FLAGS, SVC_TIMEOUT, SVC_NETMASK) else None
    )


def _settings(found: dict[int, bytes], *, ipv6: bool) -> Settings:
    # struct ip_vs_flags: flags, mask
    flags = integer({SVC_FLAGS: found.get(SVC_FLAGS, b"")[:4]}, SVC_FLAGS) & ~HASHED
    persistent = bool(flags & PERSISTENT)
    return (
        text(found.get(SVC_SCHED_NAME, b"")),
        flags,
        integer(found, SVC_TIMEOUT, 0) if persistent else 0,
        _decode_netmask(found.get(SVC_NETMASK, b""), ipv6=ipv6) if persistent else None,
    )


def _walk_virtual_server(payload: bytes) -> VirtualServer | ForeignVirtualServer:
    found = attributes(_nested(payload, SERVICE))
    af = integer(found, SVC_AF)
    key = _virtual_server_key(found)
    if key is not None:
        return VirtualServer(key, *_settings(found, ipv6=af == _AF_INET6))
    fwmark, protocol = integer(found, SVC_FWMARK, 0), integer(found, SVC_PROTOCOL, 0)
    address, port = _address_and_port(found, af)
    return ForeignVirtualServer(af, fwmark, protocol, address, port, text(found.get(SVC_SCHED_NAME, b"")))


def _virtual_server_key(found: dict[int, bytes]) -> VirtualServerKey | None:
    """Return what names a virtual server, ``None`` if it cannot be ours."""
    af, fwmark, protocol = integer(found, SVC_AF), integer(found, SVC_FWMARK, 0), integer(found, SVC_PROTOCOL, 0)
    if is_ours(fwmark) and af in {_AF_INET, _AF_INET6}:
        return mark_key(fwmark, Family(af))
    if fwmark or protocol not in _PROTOCOLS:
        return None
    address, port = _address_and_port(found, af)
    return VirtualServerKey(address, protocol, port)


def _address_and_port(found: dict[int, bytes], af: int) -> tuple[bytes, int]:
    return _decode_address(found.get(SVC_ADDR, bytes(16)), af), _decode_port(found.get(SVC_PORT, b"\0\0"))


def decode_real_server(payload: bytes, *, virtual_address: bytes) -> tuple[RealServerKey, RealServer]:
    """Read a real server from a reply to GET_DEST; before Linux 3.18 its family is its virtual server's.

    Raises:
        MalformedMessage: if it is not such a reply.

    """
    if len(payload) >= _LISTED_REAL_SERVER.size:
        size, kind, first, address, second, port, run, third, af = _LISTED_REAL_SERVER.unpack_from(payload)
        if (
            (first, second, third) == _REAL_SERVER_HEADERS
            and kind & ~NESTED == DEST
            and _LISTED_REAL_SERVER.size <= size + 4 <= len(payload)
            and (settings := _listed_real_server(run)) is not None
        ):
            return RealServerKey(_decode_address(address, af), int.from_bytes(port, "big")), settings
    found = attributes(_nested(payload, DEST))
    return _real_server_key(found, virtual_address), _real_server(found)


def decode_connections(payload: bytes, *, virtual_address: bytes) -> tuple[RealServerKey, Connections]:
    """Read the connections of a real server from a reply to GET_DEST.

    Raises:
        MalformedMessage: if it is not such a reply.

    """
    found = attributes(_nested(payload, DEST))
    counts = (integer(found, kind, 0) for kind in (DEST_ACTIVE_CONNS, DEST_INACT_CONNS, DEST_PERSIST_CONNS))
    return _real_server_key(found, virtual_address), Connections(*counts)


def decode_balanced(payload: bytes) -> Balanced:
    """Read the counters and rates of a virtual server from a reply to GET_SERVICE.

    Raises:
        MalformedMessage: if it is not such a reply.

    """
    return _balanced(attributes(_nested(payload, SERVICE)))


def decode_activity(payload: bytes, *, virtual_address: bytes) -> tuple[RealServerKey, Activity]:
    """Read what a real server is set to and what it does from a reply to GET_DEST.

    Raises:
        MalformedMessage: if it is not such a reply.

    """
    found = attributes(_nested(payload, DEST))
    counts = (integer(found, kind, 0) for kind in (DEST_ACTIVE_CONNS, DEST_INACT_CONNS, DEST_PERSIST_CONNS))
    activity = Activity(_real_server(found), Connections(*counts), _balanced(found))
    return _real_server_key(found, virtual_address), activity


def _balanced(found: dict[int, bytes]) -> Balanced:
    counted = attributes(found.get(STATS64, found.get(STATS, b"")))
    total, per_second = (
        Counters(*(integer(counted, kind, 0) for kind in kinds)) for kinds in (STATS_TOTALS, STATS_RATES)
    )
    return Balanced(total, per_second)


@lru_cache(_REMEMBERED)
def _listed_real_server(run: bytes) -> RealServer | None:
    """Read the settings of a real server from a run of bytes; ``None`` if it is something else."""
    found = {kind: run[first:last] for kind, first, last in walk(run)}
    return _real_server(found) if tuple(found) == _SETTINGS_ORDER else None


def _real_server_key(found: dict[int, bytes], virtual_address: bytes) -> RealServerKey:
    af = integer(found, DEST_ADDR_FAMILY, family_of(virtual_address))
    return RealServerKey(_decode_address(found.get(DEST_ADDR, b""), af), _decode_port(found.get(DEST_PORT, b"")))


def _real_server(found: dict[int, bytes]) -> RealServer:
    """Return the settings, the two usual ones as the shared values: they are most of a table."""
    settings = RealServer(
        integer(found, DEST_WEIGHT),
        integer(found, DEST_FWD_METHOD) & FORWARDING_MASK,
        integer(found, DEST_U_THRESH, 0),
        integer(found, DEST_L_THRESH, 0),
    )
    return {ACTIVE: ACTIVE, DRAINING: DRAINING}.get(settings, settings)


def _nested(payload: bytes, kind: int) -> bytes:
    nested = attributes(payload, GENERIC_HEADER.size).get(kind)
    if nested is None:
        raise MalformedMessage(f"attribute {kind} is missing")
    return nested


def _decode_address(field: bytes, af: int) -> bytes:
    """Cut union nf_inet_addr, 16 bytes, to the length of its family."""
    if len(field) == 16:
        if af == _AF_INET:
            return field[:4]
        if af == _AF_INET6:
            return field
    raise MalformedMessage(f"{field!r} is no address of family {af}")


def _decode_port(field: bytes) -> int:
    if len(field) != 2:
        raise MalformedMessage(f"{field!r} is no port")
    return int.from_bytes(field, "big")


def _decode_netmask(field: bytes, *, ipv6: bool) -> int | None:
    if len(field) != 4:
        raise MalformedMessage(f"{field!r} is no netmask")
    length = int.from_bytes(field, sys.byteorder) if ipv6 else int.from_bytes(field, "big").bit_count()
    return None if length == (128 if ipv6 else 32) else length
