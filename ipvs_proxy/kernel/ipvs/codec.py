"""IPVS over generic netlink, as bytes: the commands and attributes of linux/ip_vs.h.

A table can have a hundred thousand real servers, so one request is one ``Struct.pack``. In a dump, as long as the
kernel lays attributes out as kernels since 5.3 do, one ``Struct.unpack`` gives what tells an object from others, and
its settings as one run of bytes: few differ in a whole table, so each is read once and found again (reading a table
takes a third of the time that it took field by field). Any other layout is walked attribute by attribute: slower, with
the same result.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from struct import Struct
from struct import error as StructError  # noqa: N812  an exception, in spite of its name
from typing import Final, NamedTuple

from ipvs_proxy.netlink.wire import (
    ATTRIBUTE,
    NESTED,
    MalformedMessage,
    Request,
    attribute,
    attributes,
    integer,
    text,
    text_attribute,
    walk,
)
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
    RealServerOperation,
    Verb,
    VirtualServer,
    VirtualServerKey,
    VirtualServerOperation,
    family_of,
)

_VERSION: Final = 1

# enum: IPVS_CMD_*
_SERVICE_COMMANDS: Final = {Verb.ADD: 1, Verb.SET: 2, Verb.DELETE: 3}
_DESTINATION_COMMANDS: Final = {Verb.ADD: 5, Verb.SET: 6, Verb.DELETE: 7}
_GET_SERVICE: Final = 4
_GET_DESTINATION: Final = 8
_SET_CONFIG: Final = 12
_GET_CONFIG: Final = 13
_GET_INFO: Final = 15

# enum: IPVS_CMD_ATTR_*
_SERVICE: Final = 1
_DESTINATION: Final = 2

# enum: IPVS_SVC_ATTR_*
_AF, _PROTOCOL, _ADDRESS, _PORT, _FWMARK, _SCHEDULER, _FLAGS, _TIMEOUT, _NETMASK = range(1, 10)

_STATISTICS: Final = 10  # before Linux 4.1 the only ones, with connections and packets in 32 bits
_STATISTICS_64: Final = 12

# enum: IPVS_STATS_ATTR_*; 11 is padding where a kernel aligns to 8 bytes
_COUNTERS: Final = range(1, 6)  # connections, packets in and out, bytes in and out
_RATES: Final = range(6, 11)  # the same, each second

# enum: IPVS_DEST_ATTR_*; 10 and 12 are statistics, as of a virtual server
_D_ADDRESS, _D_PORT, _D_FORWARDING, _D_WEIGHT, _D_UPPER, _D_LOWER, _D_ACTIVE, _D_INACTIVE, _D_PERSISTENT = range(1, 10)
_D_FAMILY: Final = 11
_D_TUNNEL_TYPE, _D_TUNNEL_PORT, _D_TUNNEL_FLAGS = 13, 14, 15

_FORWARDING_MASK: Final = 0x7  # IP_VS_CONN_F_FWD_MASK
_SCHEDULER_LENGTH: Final = 15  # IP_VS_SCHEDNAME_MAXLEN without the final zero

_AF_INET: Final = 2
_AF_INET6: Final = 10
_ALL: Final = 0xFFFFFFFF

#: struct genlmsghdr: command, version, reserved.
_GENERIC: Final = Struct("=BBxx")
#: The nested attribute that names a virtual server: family, protocol, address, port.
_KEY: Final = Struct("=HH HHHxx HHHxx HH16s HH2sxx")
_MARK_KEY: Final = Struct("=HH HHHxx HHI")
#: What it takes besides to add or set a virtual server: flags and their mask, timeout, netmask.
_SETTINGS: Final = Struct("=HHII HHI HH4s")
#: The nested attribute that names a real server, and the one that describes it.
_DESTINATION_KEY: Final = Struct("=HH HH16s HH2sxx HHHxx")
_DESTINATION_SETTINGS: Final = Struct("=HHI HHI HHI HHI")
#: Where the address begins in the first of the two: behind the headers of the nested attribute and of its own.
_D_ADDRESS_AT: Final = 8
#: A virtual server in a dump: the nested attribute, then header and value of family, protocol, address and port.
_LISTED_SERVICE: Final = Struct("=4x HH IHxx IHxx I16s I2sxx")
#: What follows the header of its scheduler's name, which is of any length: flags, timeout and netmask.
_LISTED_SETTINGS: Final = 12 + 8 + 8
#: What a virtual server ends with since Linux 4.1: the nested attribute, five counters, and five rates.
_LISTED_COUNTERS: Final = Struct("=I IQ IQ IQ IQ IQ 60x")
#: A real server in a dump of a kernel since 5.3: the nested attribute, address and port, the run of bytes that is its
#: settings from forwarding method to lower threshold, its connections, its family.
_LISTED_DESTINATION: Final = Struct("=4x HH I16s I2sxx 56s 24x IH")
_SETTINGS_ORDER: Final = (
    *(_D_FORWARDING, _D_WEIGHT),
    *(_D_TUNNEL_TYPE, _D_TUNNEL_PORT, _D_TUNNEL_FLAGS),
    *(_D_UPPER, _D_LOWER),
)
#: So many different runs of settings are kept; a table has a handful.
_SETTINGS_KEPT: Final = 1024


def _header(kind: int, length: int) -> int:
    return int.from_bytes(ATTRIBUTE.pack(4 + length, kind), sys.byteorder)


_SERVICE_HEADERS: Final = (_header(_AF, 2), _header(_PROTOCOL, 2), _header(_ADDRESS, 16), _header(_PORT, 2))
_DESTINATION_HEADERS: Final = (_header(_D_ADDRESS, 16), _header(_D_PORT, 2), _header(_D_FAMILY, 2))
_STATISTICS_HEADER: Final = _header(_STATISTICS_64, _LISTED_COUNTERS.size - 4)
_COUNTER_HEADERS: Final = tuple(_header(kind, 8) for kind in _COUNTERS)

_PROTOCOLS: Final = frozenset(Protocol)


class Connections(NamedTuple):
    """What a real server is busy with: established connections, others, persistence templates."""

    active: int
    inactive: int
    persistent: int


class Counters(NamedTuple):
    """What a virtual server has balanced since it was added; the kernel brings it up to date every two seconds."""

    connections: int
    packets_in: int
    packets_out: int
    bytes_in: int
    bytes_out: int


class Traffic(NamedTuple):
    """What a virtual or real server has balanced so far, and how much each second (the kernel's estimate)."""

    total: Counters
    per_second: Counters


class Activity(NamedTuple):
    """What a real server is set to, and what it does."""

    settings: RealServer
    connections: Connections
    traffic: Traffic


class ForeignVirtualServer(NamedTuple):
    """A virtual server that cannot be ours: of a mark that is not ours, or of a protocol that Services do not have."""

    family: int
    fwmark: int
    protocol: int
    address: bytes
    port: int
    scheduler: str


class Timeouts(NamedTuple):
    """How long IPVS keeps connections without packets, in seconds."""

    tcp: int
    tcp_fin: int
    udp: int


def encode_key(key: VirtualServerKey) -> bytes:
    """Return the nested attribute that names a virtual server, by its mark if it has one.

    Raises:
        ValueError: if the address has not 4 or 16 bytes, the port not 16 bits or the mark not 32.

    """
    address, protocol, port, mark = key
    try:
        if mark:
            return _MARK_KEY.pack(*(_MARK_KEY.size, _SERVICE | NESTED), *(6, _AF, _af_of(address)), *(8, _FWMARK, mark))
        return _KEY.pack(
            *(_KEY.size, _SERVICE | NESTED),
            *(6, _AF, _af_of(address)),
            *(6, _PROTOCOL, protocol),
            *(20, _ADDRESS, address),
            *(6, _PORT, port.to_bytes(2, "big")),
        )
    except (StructError, OverflowError) as error:
        raise ValueError(f"{key!r} is no virtual server") from error


def encode_virtual_server(operation: VirtualServerOperation, *, family_id: int) -> Request:
    """Return the message that adds, sets or deletes a virtual server.

    Raises:
        ValueError: if a setting is outside what the kernel's types hold.

    """
    verb, server = operation
    key = encode_key(server.key)
    header = _GENERIC.pack(_SERVICE_COMMANDS[verb], _VERSION)
    if verb is Verb.DELETE:
        return Request(family_id, header + key)
    scheduler, flags, timeout, netmask = server.settings
    if not 0 < len(scheduler.encode()) <= _SCHEDULER_LENGTH:
        raise ValueError(f"{scheduler!r} is no scheduler's name: it needs 1 to {_SCHEDULER_LENGTH} bytes")
    try:
        settings = text_attribute(_SCHEDULER, scheduler) + _SETTINGS.pack(
            *(12, _FLAGS, flags, _ALL),
            *(8, _TIMEOUT, timeout),
            *(8, _NETMASK, _encode_netmask(netmask, ipv6=len(server.key.address) == 16)),
        )
    except (StructError, OverflowError) as error:
        raise ValueError(f"{server.key} has settings that the kernel cannot take: {server.settings!r}") from error
    return Request(family_id, header + attribute(_SERVICE | NESTED, key[4:] + settings))


def encode_real_server(operation: RealServerOperation, *, family_id: int, server: bytes) -> Request:
    """Return the message that adds, sets or deletes a real server; ``server`` is its virtual server's ``encode_key``.

    Raises:
        ValueError: if a setting is outside what the kernel's types hold.

    """
    verb, _, (address, port), real_server = operation
    header, before, after = _around_address(verb, len(address), port, real_server)
    return Request(family_id, header + server + before + address + after)


@lru_cache(_SETTINGS_KEPT)
def _around_address(verb: Verb, length: int, port: int, real_server: RealServer) -> tuple[bytes, bytes, bytes]:
    """Encode all of a real server's message but its virtual server and its address.

    The real servers of a table share a few ports and settings: remembered, encoding 100,000 takes a third of the time.
    """
    try:
        settings = b"" if verb is Verb.DELETE else _DESTINATION_SETTINGS.pack(*_numbered(real_server))
        destination = _DESTINATION_KEY.pack(
            *(_DESTINATION_KEY.size + len(settings), _DESTINATION | NESTED),
            *(20, _D_ADDRESS, b"", 6, _D_PORT, port.to_bytes(2, "big"), 6, _D_FAMILY, _af_of(bytes(length))),
        )
    except (StructError, OverflowError) as error:
        raise ValueError(f"port {port} or {real_server!r} has a value that the kernel cannot take") from error
    header = _GENERIC.pack(_DESTINATION_COMMANDS[verb], _VERSION)
    return header, destination[:_D_ADDRESS_AT], destination[_D_ADDRESS_AT + length :] + settings


def _numbered(settings: RealServer) -> tuple[int, ...]:
    weight, forwarding, upper, lower = settings
    return (8, _D_FORWARDING, forwarding, 8, _D_WEIGHT, weight, 8, _D_UPPER, upper, 8, _D_LOWER, lower)


def encode_dump_virtual_servers(*, family_id: int) -> Request:
    """Return the request for all virtual servers."""
    return Request(family_id, _GENERIC.pack(_GET_SERVICE, _VERSION))


def encode_get_virtual_server(key: VirtualServerKey, *, family_id: int) -> Request:
    """Return the request for one virtual server."""
    return Request(family_id, _GENERIC.pack(_GET_SERVICE, _VERSION) + encode_key(key))


def encode_dump_real_servers(key: VirtualServerKey, *, family_id: int) -> Request:
    """Return the request for the real servers of one virtual server."""
    return Request(family_id, _GENERIC.pack(_GET_DESTINATION, _VERSION) + encode_key(key))


def encode_set_timeouts(timeouts: Timeouts, *, family_id: int) -> Request:
    """Return the message that sets IPVS's timeouts; the kernel leaves one that is 0 as it is."""
    values = b"".join(attribute(4 + index, value.to_bytes(4, sys.byteorder)) for index, value in enumerate(timeouts))
    return Request(family_id, _GENERIC.pack(_SET_CONFIG, _VERSION) + values)


def encode_get_timeouts(*, family_id: int) -> Request:
    """Return the request for IPVS's timeouts."""
    return Request(family_id, _GENERIC.pack(_GET_CONFIG, _VERSION))


def encode_get_version(*, family_id: int) -> Request:
    """Return the request for IPVS's version."""
    return Request(family_id, _GENERIC.pack(_GET_INFO, _VERSION))


def decode_timeouts(payload: bytes) -> Timeouts:
    """Read the answer to ``encode_get_timeouts``.

    Raises:
        MalformedMessage: if it is no such answer.

    """
    found = attributes(payload, 4)
    return Timeouts(integer(found, 4), integer(found, 5), integer(found, 6))


def decode_version(payload: bytes) -> str:
    """Read the answer to ``encode_get_version``: ``1.2.1``.

    Raises:
        MalformedMessage: if it is no such answer.

    """
    version = integer(attributes(payload, 4), 1)
    return f"{version >> 16 & 0xFF}.{version >> 8 & 0xFF}.{version & 0xFF}"


def decode_virtual_server(payload: bytes) -> VirtualServer | ForeignVirtualServer:
    """Read a virtual server, without real servers, from a reply to GET_SERVICE.

    What has no meaning without PERSISTENT, timeout and netmask, is given as 0 and ``None`` then.

    Raises:
        MalformedMessage: if it is no such reply.

    """
    start = _LISTED_SERVICE.size
    if len(payload) > start + 4:
        size, kind, *fields = _LISTED_SERVICE.unpack_from(payload)
        af, protocol, address, port = fields[1::2]
        end = start + (int.from_bytes(payload[start : start + 2], sys.byteorder) + 3 & ~3) + _LISTED_SETTINGS
        if (
            tuple(fields[::2]) == _SERVICE_HEADERS
            and kind & ~NESTED == _SERVICE
            and end <= size + 4 <= len(payload)
            and protocol in _PROTOCOLS
            and (settings := _listed_settings(payload[start:end], ipv6=af == _AF_INET6)) is not None
        ):
            key = VirtualServerKey(_decode_address(address, af), protocol, int.from_bytes(port, "big"))
            return VirtualServer(key, *settings)
    return _walk_virtual_server(payload)


def decode_counters(payload: bytes) -> tuple[VirtualServerKey, Counters] | None:
    """Read the counters of a virtual server from a reply to GET_SERVICE; ``None`` if it cannot be ours.

    Raises:
        MalformedMessage: if it is no such reply.

    """
    start = len(payload) - _LISTED_COUNTERS.size
    if start >= _LISTED_SERVICE.size:
        size, kind, first, af, second, protocol, third, address, fourth, port = _LISTED_SERVICE.unpack_from(payload)
        fields = _LISTED_COUNTERS.unpack_from(payload, start)
        if (
            (first, second, third, fourth) == _SERVICE_HEADERS
            and fields[0] == _STATISTICS_HEADER
            and fields[1::2] == _COUNTER_HEADERS
            and kind & ~NESTED == _SERVICE
            and size + 4 == len(payload)
            and protocol in _PROTOCOLS
        ):
            key = VirtualServerKey(_decode_address(address, af), protocol, int.from_bytes(port, "big"))
            return key, Counters(*fields[2::2])
    return _walk_counters(payload)


def _walk_counters(payload: bytes) -> tuple[VirtualServerKey, Counters] | None:
    found = attributes(_nested(payload, _SERVICE))
    key = _virtual_server_key(found)
    if key is None:
        return None
    statistics = found.get(_STATISTICS_64, found.get(_STATISTICS))
    if statistics is None:
        raise MalformedMessage(f"{key} has no statistics")
    counted = attributes(statistics)
    return key, Counters(*(integer(counted, kind) for kind in _COUNTERS))


@lru_cache(_SETTINGS_KEPT)
def _listed_settings(run: bytes, *, ipv6: bool) -> tuple[str, int, int, int | None] | None:
    """Read the settings of a virtual server from a run of bytes; ``None`` if it is something else."""
    found = {kind: run[first:last] for kind, first, last in walk(run)}
    return _settings(found, ipv6=ipv6) if tuple(found) == (_SCHEDULER, _FLAGS, _TIMEOUT, _NETMASK) else None


def _settings(found: dict[int, bytes], *, ipv6: bool) -> tuple[str, int, int, int | None]:
    # struct ip_vs_flags: flags, mask
    flags = integer({_FLAGS: found.get(_FLAGS, b"")[:4]}, _FLAGS) & ~HASHED
    persistent = bool(flags & PERSISTENT)
    return (
        text(found.get(_SCHEDULER, b"")),
        flags,
        integer(found, _TIMEOUT, 0) if persistent else 0,
        _decode_netmask(found.get(_NETMASK, b""), ipv6=ipv6) if persistent else None,
    )


def _walk_virtual_server(payload: bytes) -> VirtualServer | ForeignVirtualServer:
    found = attributes(_nested(payload, _SERVICE))
    af = integer(found, _AF)
    key = _virtual_server_key(found)
    if key is not None:
        return VirtualServer(key, *_settings(found, ipv6=af == _AF_INET6))
    fwmark, protocol = integer(found, _FWMARK, 0), integer(found, _PROTOCOL, 0)
    address, port = _address_and_port(found, af)
    return ForeignVirtualServer(af, fwmark, protocol, address, port, text(found.get(_SCHEDULER, b"")))


def _virtual_server_key(found: dict[int, bytes]) -> VirtualServerKey | None:
    """Return what names a virtual server, ``None`` if it cannot be ours."""
    af, fwmark, protocol = integer(found, _AF), integer(found, _FWMARK, 0), integer(found, _PROTOCOL, 0)
    if is_ours(fwmark) and af in {_AF_INET, _AF_INET6}:
        return mark_key(fwmark, Family(af))
    if fwmark or protocol not in _PROTOCOLS:
        return None
    address, port = _address_and_port(found, af)
    return VirtualServerKey(address, protocol, port)


def _address_and_port(found: dict[int, bytes], af: int) -> tuple[bytes, int]:
    return _decode_address(found.get(_ADDRESS, bytes(16)), af), _decode_port(found.get(_PORT, b"\0\0"))


def decode_real_server(payload: bytes, *, virtual_address: bytes) -> tuple[RealServerKey, RealServer]:
    """Read a real server from a reply to GET_DEST; before Linux 3.18 its family is its virtual server's.

    Raises:
        MalformedMessage: if it is no such reply.

    """
    if len(payload) >= _LISTED_DESTINATION.size:
        size, kind, first, address, second, port, run, third, af = _LISTED_DESTINATION.unpack_from(payload)
        if (
            (first, second, third) == _DESTINATION_HEADERS
            and kind & ~NESTED == _DESTINATION
            and _LISTED_DESTINATION.size <= size + 4 <= len(payload)
            and (settings := _listed_real_server(run)) is not None
        ):
            return RealServerKey(_decode_address(address, af), int.from_bytes(port, "big")), settings
    found = attributes(_nested(payload, _DESTINATION))
    return _real_server_key(found, virtual_address), _real_server(found)


def decode_connections(payload: bytes, *, virtual_address: bytes) -> tuple[RealServerKey, Connections]:
    """Read the connections of a real server from a reply to GET_DEST.

    Raises:
        MalformedMessage: if it is no such reply.

    """
    found = attributes(_nested(payload, _DESTINATION))
    counts = (integer(found, kind, 0) for kind in (_D_ACTIVE, _D_INACTIVE, _D_PERSISTENT))
    return _real_server_key(found, virtual_address), Connections(*counts)


def decode_traffic(payload: bytes) -> Traffic:
    """Read the counters and rates of a virtual server from a reply to GET_SERVICE.

    Raises:
        MalformedMessage: if it is no such reply.

    """
    return _traffic(attributes(_nested(payload, _SERVICE)))


def decode_activity(payload: bytes, *, virtual_address: bytes) -> tuple[RealServerKey, Activity]:
    """Read what a real server is set to and what it does from a reply to GET_DEST.

    Raises:
        MalformedMessage: if it is no such reply.

    """
    found = attributes(_nested(payload, _DESTINATION))
    counts = (integer(found, kind, 0) for kind in (_D_ACTIVE, _D_INACTIVE, _D_PERSISTENT))
    activity = Activity(_real_server(found), Connections(*counts), _traffic(found))
    return _real_server_key(found, virtual_address), activity


def _traffic(found: dict[int, bytes]) -> Traffic:
    counted = attributes(found.get(_STATISTICS_64, found.get(_STATISTICS, b"")))
    total, per_second = (Counters(*(integer(counted, kind, 0) for kind in kinds)) for kinds in (_COUNTERS, _RATES))
    return Traffic(total, per_second)


@lru_cache(_SETTINGS_KEPT)
def _listed_real_server(run: bytes) -> RealServer | None:
    """Read the settings of a real server from a run of bytes; ``None`` if it is something else."""
    found = {kind: run[first:last] for kind, first, last in walk(run)}
    return _real_server(found) if tuple(found) == _SETTINGS_ORDER else None


def _real_server_key(found: dict[int, bytes], virtual_address: bytes) -> RealServerKey:
    af = integer(found, _D_FAMILY, _af_of(virtual_address))
    return RealServerKey(_decode_address(found.get(_D_ADDRESS, b""), af), _decode_port(found.get(_D_PORT, b"")))


def _real_server(found: dict[int, bytes]) -> RealServer:
    """Return the settings, the two usual ones as the shared values: they are most of a table."""
    settings = RealServer(
        integer(found, _D_WEIGHT),
        integer(found, _D_FORWARDING) & _FORWARDING_MASK,
        integer(found, _D_UPPER, 0),
        integer(found, _D_LOWER, 0),
    )
    return {ACTIVE: ACTIVE, DRAINING: DRAINING}.get(settings, settings)


def _nested(payload: bytes, kind: int) -> bytes:
    nested = attributes(payload, 4).get(kind)
    if nested is None:
        raise MalformedMessage(f"attribute {kind} is missing")
    return nested


def _af_of(address: bytes) -> int:
    if len(address) not in {4, 16}:
        raise ValueError(f"{address!r} is no packed address")
    return family_of(address)


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


def _encode_netmask(prefix_length: int | None, *, ipv6: bool) -> bytes:
    """Return a mask in network order for IPv4 and a prefix length in host order for IPv6, as the kernel wants them."""
    if ipv6:
        return (128 if prefix_length is None else prefix_length).to_bytes(4, sys.byteorder)
    length = 32 if prefix_length is None else prefix_length
    if not 0 <= length <= 32:
        raise OverflowError(f"{length} is no IPv4 prefix length")
    return (_ALL << (32 - length) & _ALL).to_bytes(4, "big")


def _decode_netmask(field: bytes, *, ipv6: bool) -> int | None:
    if len(field) != 4:
        raise MalformedMessage(f"{field!r} is no netmask")
    length = int.from_bytes(field, sys.byteorder) if ipv6 else int.from_bytes(field, "big").bit_count()
    return None if length == (128 if ipv6 else 32) else length


# The generic-netlink controller: its own family number, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME.
_CONTROLLER: Final = 0x10
_GET_FAMILY: Final = 3
_FAMILY_ID: Final = 1
_FAMILY_NAME: Final = 2


def encode_get_family() -> Request:
    """Return the request for the number under which the kernel registered IPVS.

    It is one message, and asking for it through pyroute2 would cost the agent 0.3 s of imports at its start.
    """
    return Request(_CONTROLLER, _GENERIC.pack(_GET_FAMILY, 1) + text_attribute(_FAMILY_NAME, "IPVS"))


def decode_family(payload: bytes) -> int:
    """Read the answer to ``encode_get_family``.

    Raises:
        MalformedMessage: if it is no such answer.

    """
    return integer(attributes(payload, 4), _FAMILY_ID)
