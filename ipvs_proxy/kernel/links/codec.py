"""Links, addresses and local routes over rtnetlink, as bytes: linux/rtnetlink.h, if_link.h and if_addr.h.

An address is written as kube-proxy writes it, so that a link which kube-proxy filled needs no change. Anything that is
not a link, an address or a route is ``MalformedMessage``, never another error and never a guess.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import Final, NamedTuple

from ipvs_proxy.netlink.wire import (
    CREATE,
    EXCLUSIVE,
    NESTED,
    REQUEST,
    MalformedMessage,
    Request,
    attribute,
    attributes,
    text,
    text_attribute,
    walk,
)
from ipvs_proxy.plan.tables import AddressOperation, Family, Verb, family_of

# nlmsg_type
NEW_LINK: Final = 16
DELETE_LINK: Final = 17
_GET_LINK: Final = 18
NEW_ADDRESS: Final = 20
DELETE_ADDRESS: Final = 21
_GET_ADDRESS: Final = 22
_NEW_ROUTE: Final = 24
_DELETE_ROUTE: Final = 25
_GET_ROUTE: Final = 26

# IFLA_*
_LINK_NAME: Final = 3
_LINK_INFO: Final = 18
_INFO_KIND: Final = 1

# IFA_*
_ADDRESS: Final = 1
_LOCAL: Final = 2

_NO_DUPLICATE_DETECTION: Final = 0x02  # IFA_F_NODAD

# RTA_*
_DESTINATION: Final = 1
_OUTPUT_LINK: Final = 4

#: NLM_F_APPEND: also where another link has a route to the same address.
_APPEND: Final = 0x800
_TABLE_LOCAL: Final = 255
_SCOPE_HOST: Final = 254
_TYPE_LOCAL: Final = 2
#: Who made a route (``rtm_protocol``): a number that linux/rtnetlink.h and iproute2 give to nobody, so that routes of
#: ours are known from those that the kernel makes for addresses.
ROUTE_PROTOCOL: Final = 73

#: struct ifinfomsg: family, type, index, flags, change.
_LINK: Final = Struct("=BxHiII")
#: struct ifaddrmsg: family, prefix length, flags, scope, index.
_ADDRESS_HEADER: Final = Struct("=BBBBI")
#: struct rtmsg: family, lengths of destination and source, TOS, table, protocol, scope, type, flags.
_ROUTE: Final = Struct("=BBBBBBBBI")
_INDEX: Final = Struct("=I")
#: IFNAMSIZ without the final zero.
NAME_LENGTH: Final = 15


class Link(NamedTuple):
    """A network interface: its index, name and kind (``dummy``, ``veth``, ...; empty for hardware)."""

    ifindex: int
    name: str
    kind: str


class Address(NamedTuple):
    """An address of an interface, packed, with its prefix length and the interface's index."""

    ifindex: int
    address: bytes
    prefix_length: int


def encode_get_link(name: str) -> Request:
    """Return the request for one link."""
    return Request(_GET_LINK, _LINK.pack(0, 0, 0, 0, 0) + text_attribute(_LINK_NAME, name))


def encode_new_dummy(name: str) -> Request:
    """Return the message that makes a dummy link, which is down at first."""
    kind = attribute(_LINK_INFO | NESTED, attribute(_INFO_KIND, b"dummy"))
    payload = _LINK.pack(0, 0, 0, 0, 0) + text_attribute(_LINK_NAME, name) + kind
    return Request(NEW_LINK, payload, REQUEST | CREATE | EXCLUSIVE)


def encode_delete_link(ifindex: int) -> Request:
    """Return the message that deletes a link, with all its addresses."""
    return Request(DELETE_LINK, _LINK.pack(0, 0, ifindex, 0, 0))


def encode_dump_links() -> Request:
    """Return the request for all links."""
    return Request(_GET_LINK, _LINK.pack(0, 0, 0, 0, 0))


def encode_dump_addresses(family: Family, *, ifindex: int = 0) -> Request:
    """Return the request for the addresses of one family on one link (0: on all); one link needs a strict socket."""
    return Request(_GET_ADDRESS, _ADDRESS_HEADER.pack(family, 0, 0, 0, ifindex))


def encode_address(operation: AddressOperation, *, ifindex: int) -> Request:
    """Return the message that adds or deletes an address, /32 or /128 with global scope.

    IPv6 addresses are added without duplicate address detection: on a dummy link there is nobody to ask, and it would
    leave them tentative for a moment. In all else they are what kube-proxy adds.

    Raises:
        ValueError: if the address does not have 4 or 16 bytes, or the verb is SET.

    """
    verb, address = operation.verb, operation.address
    if verb is Verb.SET or len(address) not in {4, 16}:
        raise ValueError(f"{operation!r} is no operation on an address")
    family = family_of(address)
    address_flags = 0 if family is Family.IPV4 else _NO_DUPLICATE_DETECTION
    payload = _ADDRESS_HEADER.pack(family, len(address) * 8, address_flags, 0, ifindex) + attribute(_LOCAL, address)
    if verb is Verb.ADD:
        return Request(NEW_ADDRESS, payload, REQUEST | CREATE | EXCLUSIVE)
    return Request(DELETE_ADDRESS, payload)


def encode_route(operation: AddressOperation, *, ifindex: int) -> Request:
    """Return the message that adds or deletes a local route to an IPv4 address, as an address of the link would have.

    Raises:
        ValueError: if the address does not have 4 bytes, or the verb is SET.

    """
    verb, address = operation.verb, operation.address
    if verb is Verb.SET or len(address) != 4:
        raise ValueError(f"{operation!r} is no operation on a route")
    header = _ROUTE.pack(Family.IPV4, 32, 0, 0, _TABLE_LOCAL, ROUTE_PROTOCOL, _SCOPE_HOST, _TYPE_LOCAL, 0)
    payload = header + attribute(_DESTINATION, address) + attribute(_OUTPUT_LINK, _INDEX.pack(ifindex))
    if verb is Verb.ADD:
        return Request(_NEW_ROUTE, payload, REQUEST | CREATE | _APPEND)
    return Request(_DELETE_ROUTE, payload)


def encode_dump_routes(ifindex: int) -> Request:
    """Return the request for the local IPv4 routes of ours to a link; one that is not strict gets all routes."""
    header = _ROUTE.pack(Family.IPV4, 0, 0, 0, _TABLE_LOCAL, ROUTE_PROTOCOL, 0, _TYPE_LOCAL, 0)
    return Request(_GET_ROUTE, header + attribute(_OUTPUT_LINK, _INDEX.pack(ifindex)))


def decode_route(payload: bytes, *, ifindex: int) -> bytes | None:
    """Read the address from a reply, if that is a local route of ours to a link.

    Raises:
        MalformedMessage: if it is no route.

    """
    if len(payload) < _ROUTE.size:
        raise MalformedMessage(f"{len(payload)} bytes are too few for a route")
    family, length, _, _, table, protocol, _, kind, _ = _ROUTE.unpack_from(payload)
    if (family, length, table, protocol, kind) != (Family.IPV4, 32, _TABLE_LOCAL, ROUTE_PROTOCOL, _TYPE_LOCAL):
        return None
    found = attributes(payload, _ROUTE.size)
    address = found.get(_DESTINATION, b"")
    if len(address) != 4:
        raise MalformedMessage(f"{address!r} is no IPv4 address")
    return address if found.get(_OUTPUT_LINK) == _INDEX.pack(ifindex) else None


def decode_routes(payloads: Iterable[bytes], *, ifindex: int) -> set[bytes]:
    """Read the addresses of local routes of ours to a link from a dump.

    The routes of a dump differ in nothing but the address, nearly always: what is around it is looked at once. That
    takes 10 ms for 50,000 instead of 260.

    Raises:
        MalformedMessage: if one is no route.

    """
    found: set[bytes] = set()
    head, tail, start, end = b"", b"", 0, 0
    for payload in payloads:
        if head and payload[:start] == head and payload[end:] == tail:
            found.add(payload[start:end])
        elif (address := decode_route(payload, ifindex=ifindex)) is not None:
            found.add(address)
            start, end = next((first, last) for kind, first, last in walk(payload, _ROUTE.size) if kind == _DESTINATION)
            head, tail = payload[:start], payload[end:]
    return found


def decode_link(payload: bytes) -> Link:
    """Read a link from a reply.

    Raises:
        MalformedMessage: if it is not one.

    """
    if len(payload) < _LINK.size:
        raise MalformedMessage(f"{len(payload)} bytes are too few for a link")
    ifindex = int(_LINK.unpack_from(payload)[2])
    found = attributes(payload, _LINK.size)
    kind = attributes(found.get(_LINK_INFO, b"")).get(_INFO_KIND, b"")
    return Link(ifindex, text(found.get(_LINK_NAME, b"")), text(kind))


def decode_address(payload: bytes) -> Address:
    """Read an address from a reply.

    Raises:
        MalformedMessage: if it is not one.

    """
    if len(payload) < _ADDRESS_HEADER.size:
        raise MalformedMessage(f"{len(payload)} bytes are too few for an address")
    family, prefix_length, _, _, ifindex = _ADDRESS_HEADER.unpack_from(payload)
    address = b""
    for kind, first, last in walk(payload, _ADDRESS_HEADER.size):
        if kind == _LOCAL:  # on a point-to-point link the other attribute is the peer's
            address = payload[first:last]
            break
        if kind == _ADDRESS:
            address = payload[first:last]
    if len(address) != {Family.IPV4: 4, Family.IPV6: 16}.get(family):
        raise MalformedMessage(f"{address!r} is no address of family {family}")
    return Address(ifindex, address, prefix_length)
