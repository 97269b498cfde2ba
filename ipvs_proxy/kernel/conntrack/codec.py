"""Connection tracking over nfnetlink, as bytes: linux/netfilter/nfnetlink_conntrack.h.

A delete always names a flow's addresses, ports and protocol: a message without them would delete the whole table, so
what cannot name them is a ``ValueError``. Anything that is not a flow is ``MalformedMessage``.

A table may hold a million flows. The kernel writes nearly all of them in one layout, which is read with one
``Struct.unpack``; any other is read attribute by attribute, with the same result. Addresses, ports, zones and
identities are in network order.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final, NamedTuple

from ipvs_proxy.netlink.wire import ATTRIBUTE, NESTED, MalformedMessage, Request, attribute, attributes
from ipvs_proxy.plan.flows import Flow
from ipvs_proxy.plan.tables import Family, family_of

# nlmsg_type: NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_*
_SUBSYSTEM: Final = 1 << 8
_GET: Final = _SUBSYSTEM | 1
_DELETE: Final = _SUBSYSTEM | 2

# CTA_*
_TUPLE_ORIGINAL, _TUPLE_REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
# CTA_TUPLE_*
_TUPLE_IP, _TUPLE_PROTO, _TUPLE_ZONE = 1, 2, 3
# CTA_IP_V4_* and CTA_IP_V6_*: source and destination, by the length of an address
_ADDRESSES: Final = {4: (1, 2), 16: (3, 4)}
# CTA_PROTO_*
_PROTO_NUMBER, _PROTO_SOURCE_PORT, _PROTO_DESTINATION_PORT = 1, 2, 3

_FILTER_ORIGINAL_FLAGS: Final = 1
#: CTA_FILTER_F_CTA_PROTO_NUM of the kernel's net/netfilter/nf_internals.h, the same in libnetfilter_conntrack.
_BY_PROTOCOL: Final = Struct("=I").pack(1 << 3)

#: struct nfgenmsg: family, version, resource.
_NETFILTER: Final = Struct("=BBH")


def encode_dump(family: Family, protocol: int, *, filtered: bool = True) -> Request:
    """Return the request for the flows of a family and, if ``filtered``, of one IP protocol.

    Kernels before 5.8 refuse the filter (then ask without) or ignore it (then the answer has other protocols too).
    """
    payload = _NETFILTER.pack(family, 0, 0)
    if filtered:
        number = attribute(_PROTO_NUMBER, bytes((protocol,)))
        payload += attribute(_TUPLE_ORIGINAL | NESTED, attribute(_TUPLE_PROTO | NESTED, number))
        payload += attribute(_FILTER | NESTED, attribute(_FILTER_ORIGINAL_FLAGS, _BY_PROTOCOL))
    return Request(_GET, payload)


def encode_delete(flow: Flow) -> Request:
    """Return the message that deletes a flow; with an ``id``, only that one and none that took its place (ENOENT then).

    Raises:
        ValueError: if an address does not have 4 or 16 bytes, the two are of different families, or a number does not
            fit its type.

    """
    try:
        source_kind, destination_kind = _ADDRESSES[len(flow.source)]
        if len(flow.source) != len(flow.destination):
            raise ValueError(f"{flow!r} has addresses of two families")
        ip = attribute(source_kind, flow.source) + attribute(destination_kind, flow.destination)
        proto = (
            attribute(_PROTO_NUMBER, bytes((flow.protocol,)))
            + attribute(_PROTO_SOURCE_PORT, flow.source_port.to_bytes(2, "big"))
            + attribute(_PROTO_DESTINATION_PORT, flow.destination_port.to_bytes(2, "big"))
        )
        zone = attribute(_ZONE, flow.zone.to_bytes(2, "big")) if flow.zone else b""
    except (KeyError, OverflowError) as error:
        raise ValueError(f"{flow!r} is no flow") from error
    return Request(
        _DELETE,
        _NETFILTER.pack(family_of(flow.source), 0, 0)
        + attribute(
            _TUPLE_ORIGINAL | NESTED, attribute(_TUPLE_IP | NESTED, ip) + attribute(_TUPLE_PROTO | NESTED, proto)
        )
        + zone
        + (attribute(_ID, flow.id) if flow.id else b""),
    )


def decode_flow(payload: bytes, keep: Callable[[Flow], bool] | None = None) -> Flow | None:
    """Read a flow; ``None`` if its protocol has no ports, or ``keep`` returns false.

    ``keep`` is called before zone and identity are read, which takes longer than all the rest.

    Raises:
        MalformedMessage: if it is not a flow.

    """
    flow, rest = _tuples(payload)
    if flow is None or (keep is not None and not keep(flow)):
        return None
    found = attributes(payload, rest)
    zone = found.get(_ZONE)
    if zone is not None:
        flow = flow._replace(zone=_number(zone))
    return flow._replace(id=found.get(_ID, b""))


def _tuples(payload: bytes) -> tuple[Flow | None, int]:
    """Return the flow without its identity, and the position behind which that is."""
    layout = _LAYOUTS.get(payload[:1])
    if layout is not None and len(payload) >= layout.values.size:
        a1, source, a2, destination, a3, protocol, a4, source_port, a5, destination_port, b1, *reply = (
            layout.values.unpack_from(payload)
        )
        reply_source, b2, reply_destination, b3, _, b4, reply_source_port, b5, reply_destination_port = reply
        if (a1, a2, a3, a4, a5, b1, b2, b3, b4, b5) == layout.headings:
            first = (protocol, source, source_port, destination, destination_port)
            second = (reply_source, reply_source_port, reply_destination, reply_destination_port)
            return Flow(*first, *second), layout.values.size
    return _tuples_one_by_one(payload), _NETFILTER.size


def _tuples_one_by_one(payload: bytes) -> Flow | None:
    if len(payload) < _NETFILTER.size:
        raise MalformedMessage(f"{len(payload)} bytes are too few for a flow")
    found = attributes(payload, _NETFILTER.size)
    try:
        original, reply = attributes(found[_TUPLE_ORIGINAL]), attributes(found[_TUPLE_REPLY])
        source, destination = _addresses(original[_TUPLE_IP])
        reply_source, reply_destination = _addresses(reply[_TUPLE_IP])
        proto, reply_proto = attributes(original[_TUPLE_PROTO]), attributes(reply[_TUPLE_PROTO])
        number = proto[_PROTO_NUMBER]
    except KeyError as error:
        raise MalformedMessage(f"a flow lacks the attribute {error}") from error
    if len(number) != 1:
        raise MalformedMessage(f"{number!r} is no protocol")
    ports = [
        found.get(kind) for found in (proto, reply_proto) for kind in (_PROTO_SOURCE_PORT, _PROTO_DESTINATION_PORT)
    ]
    if None in ports:
        return None
    source_port, destination_port, reply_source_port, reply_destination_port = (_number(port or b"") for port in ports)
    return Flow(
        number[0],
        source,
        source_port,
        destination,
        destination_port,
        reply_source,
        reply_source_port,
        reply_destination,
        reply_destination_port,
        zone=_number(original.get(_TUPLE_ZONE, b"\0\0")),
    )


def _addresses(field: bytes) -> tuple[bytes, bytes]:
    found = attributes(field)
    for length, (source, destination) in _ADDRESSES.items():
        if len(found.get(source, b"")) == len(found.get(destination, b"")) == length:
            return found[source], found[destination]
    raise MalformedMessage(f"{field!r} is no pair of addresses")


def _number(payload: bytes) -> int:
    if len(payload) != 2:
        raise MalformedMessage(f"{payload!r} is no 16-bit number")
    return int.from_bytes(payload, "big")


class _Layout(NamedTuple):
    """Both tuples as the kernel writes them: how to unpack the values, and what must be between them."""

    values: Struct
    headings: tuple[bytes, ...]


def _layout(length: int) -> _Layout:
    """Return the layout for addresses of a length. Padding is zero and part of the heading behind it."""
    source, destination = _ADDRESSES[length]
    ip, proto = 4 + 2 * (4 + length), 4 + 3 * 8
    address = 4 + length
    tail = (
        ATTRIBUTE.pack(address, destination),
        ATTRIBUTE.pack(proto, _TUPLE_PROTO | NESTED) + ATTRIBUTE.pack(5, _PROTO_NUMBER),
        bytes(3) + ATTRIBUTE.pack(6, _PROTO_SOURCE_PORT),
        bytes(2) + ATTRIBUTE.pack(6, _PROTO_DESTINATION_PORT),
    )
    headings: list[bytes] = []
    for kind in (_TUPLE_ORIGINAL, _TUPLE_REPLY):
        nests = ATTRIBUTE.pack(4 + ip + proto, kind | NESTED) + ATTRIBUTE.pack(ip, _TUPLE_IP | NESTED)
        headings += [nests + ATTRIBUTE.pack(address, source), *tail]
    one = f"12s{length}s4s{length}s8sB7sH6sH2x"
    return _Layout(Struct(f">4x{one}{one}"), tuple(headings))


#: By the first byte of a message, which is the family.
_LAYOUTS: Final = {bytes((Family.IPV4,)): _layout(4), bytes((Family.IPV6,)): _layout(16)}
