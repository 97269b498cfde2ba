"""Questions and operations for IPVS, as bytes: the messages of linux/ip_vs.h over generic netlink.

A message to add or set carries every setting: whatever a virtual or real server was before, it is then exactly what the
plan says. A value that does not fit the kernel's types is a ``ValueError`` here and never cut to size. ``decode`` reads
back what is written here, for all values (the tests hold that).

A table can have a hundred thousand real servers, so a message is one ``Struct.pack``, and what real servers have in
common is packed once.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from struct import Struct
from struct import error as StructError  # noqa: N812  an exception, in spite of its name
from typing import Final

from ipvs_proxy.kernel.ipvs.constants import (
    DEL_DEST,
    DEL_SERVICE,
    DEST,
    DEST_ADDR,
    DEST_ADDR_FAMILY,
    DEST_FWD_METHOD,
    DEST_L_THRESH,
    DEST_PORT,
    DEST_U_THRESH,
    DEST_WEIGHT,
    GET_CONFIG,
    GET_DEST,
    GET_INFO,
    GET_SERVICE,
    NEW_DEST,
    NEW_SERVICE,
    SCHEDULER_LENGTH,
    SERVICE,
    SET_CONFIG,
    SET_DEST,
    SET_SERVICE,
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
    VERSION,
)
from ipvs_proxy.kernel.ipvs.records import Timeouts
from ipvs_proxy.netlink.generic import GENERIC_HEADER
from ipvs_proxy.netlink.wire import NESTED, Request, attribute, text_attribute
from ipvs_proxy.plan.tables import (
    RealServer,
    RealServerOperation,
    Verb,
    VirtualServerKey,
    VirtualServerOperation,
    family_of,
)

_VIRTUAL_SERVER_COMMANDS: Final = {Verb.ADD: NEW_SERVICE, Verb.SET: SET_SERVICE, Verb.DELETE: DEL_SERVICE}
_REAL_SERVER_COMMANDS: Final = {Verb.ADD: NEW_DEST, Verb.SET: SET_DEST, Verb.DELETE: DEL_DEST}

#: The nested attribute that names a virtual server: family, protocol, address, port.
_VIRTUAL_SERVER_KEY: Final = Struct("=HH HHHxx HHHxx HH16s HH2sxx")
#: The one that names a virtual server by its firewall mark: family, mark.
_MARK_KEY: Final = Struct("=HH HHHxx HHI")
#: What follows the name of its scheduler: flags and their mask, timeout, netmask.
_VIRTUAL_SERVER_SETTINGS: Final = Struct("=HHII HHI HH4s")
#: The nested attribute that names a real server: address, port, family; and its settings, which follow.
_REAL_SERVER_KEY: Final = Struct("=HH HH16s HH2sxx HHHxx")
_REAL_SERVER_SETTINGS: Final = Struct("=HHI HHI HHI HHI")
#: Where the address begins in a real server's name: behind the headers of the nested attribute and of its own.
_ADDRESS_AT: Final = 8
#: The mask of all flags, and that of a whole IPv4 address.
_ALL: Final = 0xFFFFFFFF
#: How many different settings of real servers stay encoded; a table has a handful.
_REMEMBERED: Final = 1024


def encode_key(key: VirtualServerKey) -> bytes:
    """Return the nested attribute that names a virtual server, by its mark if it has one.

    Raises:
        ValueError: if the address does not have 4 or 16 bytes, or port or mark do not fit 16 and 32 bits.

    """
    address, protocol, port, mark = key
    try:
        if mark:
            return _MARK_KEY.pack(
                *(_MARK_KEY.size, SERVICE | NESTED), *(6, SVC_AF, _af_of(address)), *(8, SVC_FWMARK, mark)
            )
        return _VIRTUAL_SERVER_KEY.pack(
            *(_VIRTUAL_SERVER_KEY.size, SERVICE | NESTED),
            *(6, SVC_AF, _af_of(address)),
            *(6, SVC_PROTOCOL, protocol),
            *(20, SVC_ADDR, address),
            *(6, SVC_PORT, port.to_bytes(2, "big")),
        )
    except (StructError, OverflowError) as error:
        raise ValueError(f"{key!r} is no virtual server") from error


def encode_virtual_server(operation: VirtualServerOperation, *, family_id: int) -> Request:
    """Return the message that adds, sets or deletes a virtual server.

    Raises:
        ValueError: if a value does not fit the kernel's types.

    """
    verb, server = operation.verb, operation.virtual_server
    key = encode_key(server.key)
    header = GENERIC_HEADER.pack(_VIRTUAL_SERVER_COMMANDS[verb], VERSION)
    if verb is Verb.DELETE:
        return Request(family_id, header + key)
    scheduler, flags, timeout, netmask = server.settings
    if not 0 < len(scheduler.encode()) <= SCHEDULER_LENGTH:
        raise ValueError(f"{scheduler!r} is no scheduler's name: it needs 1 to {SCHEDULER_LENGTH} bytes")
    try:
        settings = text_attribute(SVC_SCHED_NAME, scheduler) + _VIRTUAL_SERVER_SETTINGS.pack(
            *(12, SVC_FLAGS, flags, _ALL),
            *(8, SVC_TIMEOUT, timeout),
            *(8, SVC_NETMASK, _encode_netmask(netmask, ipv6=len(server.key.address) == 16)),
        )
    except (StructError, OverflowError) as error:
        raise ValueError(f"{server.key} has settings that the kernel cannot take: {server.settings!r}") from error
    return Request(family_id, header + attribute(SERVICE | NESTED, key[4:] + settings))


def encode_real_server(operation: RealServerOperation, *, family_id: int, server: bytes) -> Request:
    """Return the message that adds, sets or deletes a real server; ``server`` is its virtual server's ``encode_key``.

    Raises:
        ValueError: if a value does not fit the kernel's types.

    """
    address, port = operation.key
    header, before, after = _around_address(operation.verb, len(address), port, operation.real_server)
    return Request(family_id, header + server + before + address + after)


@lru_cache(_REMEMBERED)
def _around_address(verb: Verb, length: int, port: int, real_server: RealServer) -> tuple[bytes, bytes, bytes]:
    """Encode all of a real server's message but its virtual server and its address.

    The real servers of a table share a few ports and settings. As these are remembered, encoding 100,000 takes a third
    of the time.
    """
    try:
        settings = b"" if verb is Verb.DELETE else _REAL_SERVER_SETTINGS.pack(*_numbered(real_server))
        destination = _REAL_SERVER_KEY.pack(
            *(_REAL_SERVER_KEY.size + len(settings), DEST | NESTED),
            *(20, DEST_ADDR, b"", 6, DEST_PORT, port.to_bytes(2, "big"), 6, DEST_ADDR_FAMILY, _af_of(bytes(length))),
        )
    except (StructError, OverflowError) as error:
        raise ValueError(f"port {port} or {real_server!r} has a value that the kernel cannot take") from error
    header = GENERIC_HEADER.pack(_REAL_SERVER_COMMANDS[verb], VERSION)
    return header, destination[:_ADDRESS_AT], destination[_ADDRESS_AT + length :] + settings


def _numbered(settings: RealServer) -> tuple[int, ...]:
    weight, forwarding, upper, lower = settings
    return (8, DEST_FWD_METHOD, forwarding, 8, DEST_WEIGHT, weight, 8, DEST_U_THRESH, upper, 8, DEST_L_THRESH, lower)


def encode_dump_virtual_servers(*, family_id: int) -> Request:
    """Return the request for all virtual servers."""
    return Request(family_id, GENERIC_HEADER.pack(GET_SERVICE, VERSION))


def encode_get_virtual_server(key: VirtualServerKey, *, family_id: int) -> Request:
    """Return the request for one virtual server."""
    return Request(family_id, GENERIC_HEADER.pack(GET_SERVICE, VERSION) + encode_key(key))


def encode_dump_real_servers(key: VirtualServerKey, *, family_id: int) -> Request:
    """Return the request for the real servers of one virtual server."""
    return Request(family_id, GENERIC_HEADER.pack(GET_DEST, VERSION) + encode_key(key))


def encode_set_timeouts(timeouts: Timeouts, *, family_id: int) -> Request:
    """Return the message that sets IPVS's timeouts; one that is 0 stays as it is."""
    kinds = (TIMEOUT_TCP, TIMEOUT_TCP_FIN, TIMEOUT_UDP)
    values = b"".join(
        attribute(kind, value.to_bytes(4, sys.byteorder)) for kind, value in zip(kinds, timeouts, strict=True)
    )
    return Request(family_id, GENERIC_HEADER.pack(SET_CONFIG, VERSION) + values)


def encode_get_timeouts(*, family_id: int) -> Request:
    """Return the request for IPVS's timeouts."""
    return Request(family_id, GENERIC_HEADER.pack(GET_CONFIG, VERSION))


def encode_get_version(*, family_id: int) -> Request:
    """Return the request for IPVS's version."""
    return Request(family_id, GENERIC_HEADER.pack(GET_INFO, VERSION))


def _encode_netmask(prefix_length: int | None, *, ipv6: bool) -> bytes:
    """Return a mask in network order for IPv4 and a prefix length in host order for IPv6, as the kernel wants them."""
    if ipv6:
        return (128 if prefix_length is None else prefix_length).to_bytes(4, sys.byteorder)
    length = 32 if prefix_length is None else prefix_length
    if not 0 <= length <= 32:
        raise OverflowError(f"{length} is no IPv4 prefix length")
    return (_ALL << (32 - length) & _ALL).to_bytes(4, "big")


def _af_of(address: bytes) -> int:
    if len(address) not in {4, 16}:
        raise ValueError(f"{address!r} is no packed address")
    return family_of(address)
