"""ipset over nfnetlink, as bytes: linux/netfilter/ipset/ip_set.h.

Attributes that carry addresses and ports are in network order and say so; the rest is in host order. Members go many to
a message, each with its line number, by which the kernel names the one that fails.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from struct import Struct
from struct import error as StructError  # noqa: N812  an exception, in spite of its name
from typing import Final, NamedTuple

from ipvs_proxy.kernel.filter.ipset.names import SetDefinition, SetType
from ipvs_proxy.netlink.wire import (
    ATTRIBUTE,
    CREATE,
    EXCLUSIVE,
    NESTED,
    NETWORK_ORDER,
    REQUEST,
    MalformedMessage,
    Request,
    attribute,
    attributes,
    integer,
    text,
    text_attribute,
    walk,
)
from ipvs_proxy.plan.tables import Family, SetEntry, Verb

# nlmsg_type: NFNL_SUBSYS_IPSET and IPSET_CMD_*
_SUBSYSTEM: Final = 6 << 8
_PROTOCOL: Final = _SUBSYSTEM | 1
_CREATE: Final = _SUBSYSTEM | 2
_DESTROY: Final = _SUBSYSTEM | 3
_SWAP: Final = _SUBSYSTEM | 6
_LIST: Final = _SUBSYSTEM | 7
_MEMBER_COMMANDS: Final = {Verb.ADD: _SUBSYSTEM | 9, Verb.DELETE: _SUBSYSTEM | 10}
_HEADER: Final = _SUBSYSTEM | 12
_TYPE: Final = _SUBSYSTEM | 13

# IPSET_ATTR_* of a command
_A_PROTOCOL, _A_SETNAME, _A_TYPENAME, _A_REVISION, _A_FAMILY, _, _A_DATA, _A_ADT, _A_LINE, _A_MINIMUM = range(1, 11)

_A_OTHER_NAME: Final = _A_TYPENAME  # IPSET_ATTR_SETNAME2

# IPSET_ATTR_* of a set or a member
_IP, _PORT, _PORT_TO, _PROTO, _FLAGS, _MEMBER_LINE, _HASHSIZE, _MAXELEM, _IP2, _CIDR2 = 1, 4, 5, 7, 8, 9, 18, 19, 20, 21
_SKBMARK: Final = 27
_WITH_SKBINFO: Final = 0x40  # IPSET_FLAG_WITH_SKBINFO
_IPADDR: Final = {4: 1, 16: 2}

#: struct nfgenmsg: family, version, resource.
_NETFILTER: Final = Struct("=BBH")
_LINE: Final = Struct("=HHI")
_PORT_ATTRIBUTE: Final = Struct("=HH2sxx")
_BYTE_ATTRIBUTE: Final = Struct("=HHBxxx")


def _header(number: int, length: int) -> int:
    return int.from_bytes(ATTRIBUTE.pack(4 + length, number), sys.byteorder)


#: A member of ``hash:ip,port`` as kernels list it, by the length of its address: what nests it, what nests the address,
#: address, port and protocol, each behind its header.
_LISTED: Final = {length: Struct(f"=III{length}sIBBxxIBxxx") for length in _IPADDR}
_LISTED_HEADERS: Final = {
    length: (
        _header(_A_DATA | NESTED, layout.size - 4),
        _header(_IP | NESTED, 4 + length),
        _header(_IPADDR[length], length),
        _header(_PORT | NETWORK_ORDER, 2),
        _header(_PROTO, 1),
    )
    for length, layout in _LISTED.items()
}

#: The newest revision of each type that ipset tools of the last ten years know (up to ``skbinfo``). Newer ones add
#: nothing that is needed here, and a set of one is unreadable for older tools.
REVISIONS: Final = {
    SetType.HASH_IP: 4,
    SetType.HASH_IP_PORT: 5,
    SetType.HASH_IP_PORT_IP: 5,
    SetType.HASH_IP_PORT_NET: 7,
    SetType.BITMAP_PORT: 3,
}

#: Protocol versions that this module speaks.
PROTOCOLS: Final = (6, 7)
NAME_LENGTH: Final = 31

#: ``enum ipset_errno``, and the errors of the hash and bitmap types.
_ERRORS: Final = {
    4097: "ipset cannot make sense of it: a part is missing or of another family",
    4098: "ipset does not know this type of set",
    4099: "there are as many sets as ipset can hold",
    4100: "the set is in use: a rule or another set refers to it",
    4101: "a set of the new name exists already",
    4102: "the sets are of different types",
    4103: "it exists already",
    4104: "the prefix length is not valid",
    4105: "the netmask is not valid",
    4106: "the address is not of the set's family",
    4107: "the set was not made for timeouts",
    4108: "the set is referred to",
    4109: "an IPv4 address is missing or malformed",
    4110: "an IPv6 address is missing or malformed",
    4111: "the set was not made for counters",
    4112: "the set was not made for comments",
    4113: "the mark mask is not valid",
    4114: "the set was not made for skbinfo",
    # IPSET_ERR_HASH_FULL and IPSET_ERR_BITMAP_RANGE have the same number.
    4352: "the set is full and would need a larger maxelem than it may get, or the port is outside the set's range",
    4353: "a member cannot have a zero address, or the range is too large",
    4354: "the protocol is not valid",
    4355: "the protocol is missing",
    4356: "a range of addresses is not possible here",
    4357: "the range of addresses is not valid",
}


#: IPSET_ERR_HASH_FULL: a hash set has as many members as it was made for.
FULL: Final = 4352


class SetHeader(NamedTuple):
    """What a set is, in the kernel's words: name of its type, and its family (0 for ``bitmap:port``)."""

    type: str
    family: int


def error_text(code: int) -> str | None:
    """Say what one of ipset's own error codes (from 4096) means; ``None`` if it is not one of them."""
    if code < 4096:
        return None
    return _ERRORS.get(code, f"ipset's error {code}")


def encode_get_protocol() -> Request:
    """Ask for the protocol versions that the kernel speaks."""
    return Request(_PROTOCOL, _head(PROTOCOLS[0]))


def decode_protocol(payload: bytes) -> tuple[int, int]:
    """Read the lowest and the highest protocol version that the kernel speaks.

    Raises:
        MalformedMessage: if it is no answer to ``encode_get_protocol``.

    """
    found = attributes(payload, _NETFILTER.size)
    highest = integer(found, _A_PROTOCOL)
    return integer(found, _A_MINIMUM, highest), highest


def encode_get_type(kind: SetType, family: Family, *, protocol: int) -> Request:
    """Ask for the revisions of a set type that the kernel has."""
    head = _head(protocol, family=family)
    return Request(_TYPE, head + text_attribute(_A_TYPENAME, kind.value) + _BYTE_ATTRIBUTE.pack(5, _A_FAMILY, family))


def decode_revisions(payload: bytes) -> tuple[int, int]:
    """Read the lowest and the highest revision of a set type.

    Raises:
        MalformedMessage: if it is no answer to ``encode_get_type``.

    """
    found = attributes(payload, _NETFILTER.size)
    highest = integer(found, _A_REVISION)
    return integer(found, _A_MINIMUM, highest), highest


def encode_get_header(name: str, *, protocol: int) -> Request:
    """Ask what a set is."""
    return Request(_HEADER, _head(protocol, name=name))


def decode_header(payload: bytes) -> SetHeader:
    """Read what a set is.

    Raises:
        MalformedMessage: if it is no answer to ``encode_get_header``.

    """
    found = attributes(payload, _NETFILTER.size)
    return SetHeader(text(found.get(_A_TYPENAME, b"")), integer(found, _A_FAMILY, 0))


def encode_create(
    definition: SetDefinition, *, protocol: int, revision: int, hash_size: int, maximum_members: int
) -> Request:
    """Return the message that creates a set; it fails if one of that name exists, whatever it is."""
    role, name, kind, _, marks = definition
    if kind is SetType.BITMAP_PORT:
        family_number = 0
        data = _port_attribute(_PORT, 0) + _port_attribute(_PORT_TO, 0xFFFF)
    else:
        family_number = int(role.family)
        data = b"".join(
            ATTRIBUTE.pack(8, number | NETWORK_ORDER) + value.to_bytes(4, "big")
            for number, value in (
                (_HASHSIZE, hash_size),
                (_MAXELEM, maximum_members),
                *(((_FLAGS, _WITH_SKBINFO),) * marks),
            )
        )
    payload = (
        _head(protocol, name=name, family=family_number)
        + text_attribute(_A_TYPENAME, kind.value)
        + _BYTE_ATTRIBUTE.pack(5, _A_REVISION, revision)
        + _BYTE_ATTRIBUTE.pack(5, _A_FAMILY, family_number)
        + attribute(_A_DATA | NESTED, data)
    )
    return Request(_CREATE, payload, REQUEST | CREATE | EXCLUSIVE)


def encode_destroy(name: str, *, protocol: int) -> Request:
    """Return the message that destroys a set."""
    return Request(_DESTROY, _head(protocol, name=name))


def encode_swap(one: str, other: str, *, protocol: int) -> Request:
    """Return the message that lets two sets of one type change places: rules go on with the other's members at once."""
    return Request(_SWAP, _head(protocol, name=one) + text_attribute(_A_OTHER_NAME, other))


def encode_list(name: str, *, protocol: int) -> Request:
    """Ask for a set with its members."""
    return Request(_LIST, _head(protocol, name=name))


def encode_members(verb: Verb, name: str, members: Iterable[bytes], *, protocol: int) -> Request:
    """Return the message that adds or deletes members (``encode_member``), which get the line numbers 1, 2, 3, ...

    Adding what is there and deleting what is not are successes.
    """
    lines = b"".join(
        ATTRIBUTE.pack(12 + len(member), _A_DATA | NESTED) + member + _LINE.pack(8, _MEMBER_LINE, line)
        for line, member in enumerate(members, 1)
    )
    payload = _head(protocol, name=name) + _LINE.pack(8, _A_LINE, 0) + attribute(_A_ADT | NESTED, lines)
    return Request(_MEMBER_COMMANDS[verb], payload)


def encode_member(entry: SetEntry, kind: SetType) -> bytes:
    """Return the attributes of a member, those that its set's type has.

    Raises:
        ValueError: if an address has not 4 or 16 bytes, or a number is outside its type.

    """
    try:
        if kind is SetType.BITMAP_PORT:
            return _port_attribute(_PORT, entry.port)
        data = _address_attribute(_IP, entry.address)
        if kind is SetType.HASH_IP:
            return data
        data += _port_attribute(_PORT, entry.port) + _BYTE_ATTRIBUTE.pack(5, _PROTO, entry.protocol)
        if kind is SetType.HASH_IP_PORT:
            return data + _mark_attribute(entry.mark) if entry.mark else data
        data += _address_attribute(_IP2, entry.source)
        if kind is SetType.HASH_IP_PORT_NET and entry.prefix_length is not None:
            data += _BYTE_ATTRIBUTE.pack(5, _CIDR2, entry.prefix_length)
    except (StructError, OverflowError, KeyError) as error:
        raise ValueError(f"{entry!r} is no member of a {kind.value} set") from error
    return data


def failed_line(echo: bytes) -> int:
    """Read from a request that the kernel sent back the line of the member that failed; 0 if it names none."""
    try:
        return integer(attributes(echo, _NETFILTER.size), _A_LINE, 0)
    except MalformedMessage:
        return 0


def decode_maximum(payload: bytes) -> int:
    """Read from a reply to ``encode_list`` for how many members a hash set was made; 0 if it does not say.

    Raises:
        MalformedMessage: if it is no such reply.

    """
    found = attributes(payload, _NETFILTER.size)
    return int.from_bytes(attributes(found.get(_A_DATA, b"")).get(_MAXELEM, b""), "big")


def decode_members(payload: bytes, kind: SetType) -> Iterator[SetEntry]:
    """Return the members in one reply to ``encode_list``, as the plan writes them.

    Raises:
        MalformedMessage: if it is no such reply.

    """
    for number, start, end in walk(payload, _NETFILTER.size):
        if number == _A_ADT:
            alike = _decode_alike(payload[start:end]) if kind is SetType.HASH_IP_PORT else None
            if alike is not None:
                yield from alike
                continue
            for inner, first, last in walk(payload, start, end):
                if inner == _A_DATA:
                    yield _decode_member({key: payload[a:b] for key, a, b in walk(payload, first, last)}, kind)


def _decode_alike(members: bytes) -> list[SetEntry] | None:
    """Return the members of ``hash:ip,port`` if each is as kernels list it; ``None`` if one has other parts.

    A large set is nearly always so, and read in a third of the time that it takes attribute by attribute.
    """
    for length, layout in _LISTED.items():
        if not len(members) % layout.size:
            entries: list[SetEntry] = []
            for one, two, three, address, four, high, low, five, protocol in layout.iter_unpack(members):
                if (one, two, three, four, five) != _LISTED_HEADERS[length]:
                    break
                entries.append(SetEntry(address, protocol, high << 8 | low))
            else:
                return entries
    return None


def _decode_member(found: dict[int, bytes], kind: SetType) -> SetEntry:
    port = found.get(_PORT, b"\0\0")
    if len(port) != 2:
        raise MalformedMessage(f"{port!r} is no port")
    number = int.from_bytes(port, "big")
    if kind is SetType.BITMAP_PORT:
        return SetEntry(port=number)
    address = _decode_address(found.get(_IP))
    if kind is SetType.HASH_IP:
        return SetEntry(address)
    protocol = integer(found, _PROTO, 0)
    if kind is SetType.HASH_IP_PORT:
        mark = int.from_bytes(found.get(_SKBMARK, b"")[:4], "big")
        return SetEntry(address, protocol, number, mark=mark)
    source = _decode_address(found.get(_IP2))
    if kind is SetType.HASH_IP_PORT_IP:
        return SetEntry(address, protocol, number, source)
    return SetEntry(address, protocol, number, source, integer(found, _CIDR2, len(source) * 8))


def _decode_address(field: bytes | None) -> bytes:
    if field is not None:
        for number, start, end in walk(field):
            if _IPADDR.get(end - start) == number:
                return field[start:end]
    raise MalformedMessage(f"{field!r} is no address")


def _head(protocol: int, *, name: str | None = None, family: int = Family.IPV4) -> bytes:
    head = _NETFILTER.pack(family, 0, 0) + _BYTE_ATTRIBUTE.pack(5, _A_PROTOCOL, protocol)
    return head if name is None else head + text_attribute(_A_SETNAME, name)


def _port_attribute(number: int, port: int) -> bytes:
    return _PORT_ATTRIBUTE.pack(6, number | NETWORK_ORDER, port.to_bytes(2, "big"))


def _mark_attribute(mark: int) -> bytes:
    """Return the mark with a mask that leaves nothing of the mark that a packet had: IPVS compares whole marks."""
    return ATTRIBUTE.pack(12, _SKBMARK | NETWORK_ORDER) + (mark << 32 | 0xFFFF_FFFF).to_bytes(8, "big")


def _address_attribute(number: int, address: bytes) -> bytes:
    inner = attribute(_IPADDR[len(address)] | NETWORK_ORDER, address)
    return ATTRIBUTE.pack(4 + len(inner), number | NESTED) + inner
