"""nf_tables over nfnetlink, as bytes: the members of sets, and the generation of all rules.

linux/netfilter/nf_tables.h. A key of several parts has each of them at a multiple of 4 bytes, and each in network
order. Only marks are in host order, as packets have them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from functools import cache
from struct import Struct
from struct import error as StructError  # noqa: N812  an exception, in spite of its name
from typing import Final, NamedTuple

from ipvs_proxy.kernel.filter.nftables.names import ADDRESS, TABLE, Layout, SetDefinition
from ipvs_proxy.netlink.wire import (
    ATTRIBUTE,
    CREATE,
    ECHO,
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
from ipvs_proxy.plan.tables import Family, SetEntry, Verb

# nlmsg_type: NFNL_MSG_BATCH_*, and NFNL_SUBSYS_NFTABLES with NFT_MSG_*
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_SUBSYSTEM_NUMBER: Final = 10
_SUBSYSTEM: Final = _SUBSYSTEM_NUMBER << 8
_NEW_TABLE, _GET_TABLE, _DELETE_TABLE, _GET_CHAIN, _DELETE_CHAIN, _GET_RULE, _DELETE_RULE = (
    _SUBSYSTEM | number for number in (0, 1, 2, 4, 5, 7, 8)
)
_GET_SET, _GET_ELEMENTS, _GET_GENERATION = (_SUBSYSTEM | number for number in (10, 13, 16))
_MEMBER_COMMANDS: Final = {Verb.ADD: (_SUBSYSTEM | 12, REQUEST | CREATE), Verb.DELETE: (_SUBSYSTEM | 14, REQUEST)}

# NFTA_TABLE_*, NFTA_CHAIN_*, NFTA_RULE_*
_TABLE_NAME, _CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE, _RULE_TABLE = 1, 1, 3, 4, 5, 7, 1
_RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS = 2, 3, 4
# NFTA_EXPR_DATA, NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT, NFTA_VERDICT_CHAIN: where a rule leads to
_WAY_TO_CHAIN: Final = (2, 2, 2, 2)
_EXPRESSION_NAME: Final = 1
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
# NFTA_SET_*, NFTA_SET_ELEM_LIST_*, NFTA_LIST_ELEM, NFTA_SET_ELEM_*, NFTA_DATA_VALUE, NFTA_GEN_ID
_SET_TABLE, _SET_NAME, _SET_KEY_LENGTH, _SET_DATA_LENGTH, _SET_FLAGS, _SET_COUNT = 1, 2, 5, 7, 3, 20
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_ELEMENT: Final = 1
_KEY, _DATA = 1, 2
_VALUE: Final = 1
_GENERATION: Final = 1
_INTERVAL_FLAG, _MAP_FLAG = 0x4, 0x8

#: struct nfgenmsg: family, version, and the subsystem of a batch in network order. NFPROTO_INET is 1.
_INET: Final = b"\x01\x00\x00\x00"
_BATCH: Final = b"\x00\x00" + _SUBSYSTEM_NUMBER.to_bytes(2, "big")
_HEADER_LENGTH: Final = len(_INET)

#: The messages before those of a transaction. The kernel answers the second, which by itself changes nothing, with the
#: generation that the transaction made (``nf_tables_gen_notify``). If there is no table of ours, nothing else succeeds.
OPENING: Final = (
    Request(_BATCH_BEGIN, _BATCH),
    Request(_NEW_TABLE, _INET + text_attribute(_TABLE_NAME, TABLE), REQUEST | ECHO),
)
END: Final = Request(_BATCH_END, _BATCH)
#: Asks for the generation of all rules of the network namespace.
GET_GENERATION: Final = Request(_GET_GENERATION, _INET)
#: Asks for the sets of our table.
GET_SETS: Final = Request(_GET_SET, _INET + text_attribute(_SET_TABLE, TABLE))
#: Asks for the chains of all tables of all families.
GET_CHAINS: Final = Request(_GET_CHAIN, bytes(_HEADER_LENGTH))
#: Deletes all rules of our table.
DELETE_RULES: Final = Request(_DELETE_RULE, _INET + text_attribute(_RULE_TABLE, TABLE))


class SetHeader(NamedTuple):
    """What a set is: the bytes of a key and of what it maps to, and whether its keys are intervals."""

    key_length: int
    data_length: int
    has_intervals: bool = False


class Chain(NamedTuple):
    """A chain of any table.

    ``family`` is the kernel's number (NFPROTO_*). ``hook`` is that of a base chain (``enum nf_inet_hooks`` for the
    families of IP), with its ``type``, its ``priority`` and whether its policy is to drop; others have ``None``.
    """

    family: int
    table: str
    name: str
    type: str
    hook: int | None
    priority: int
    drops: bool


class Rule(NamedTuple):
    """A rule of any table.

    ``target`` is the chain that it leads to, empty if it leads to none; ``content`` is all of it as the kernel has it,
    comments included.
    """

    table: str
    chain: str
    handle: bytes
    target: str
    content: bytes


#: The parts of a key; one that stands alone is not padded.
_PARTS: Final = {"inet_proto": "B3x", "inet_service": "H2x"}


@cache
def _shape(layout: Layout, family: Family) -> Struct:
    """Return how a key looks."""
    if layout.parts == ("inet_service",):
        return Struct(">H")
    return Struct(">" + "".join(_PARTS.get(part, f"{_address_length(family)}s") for part in layout.parts))


def _address_length(family: Family) -> int:
    return 4 if family is Family.IPV4 else 16


def header_of(definition: SetDefinition) -> SetHeader:
    """Return what the set of a role has to be."""
    layout = definition.layout
    return SetHeader(_shape(layout, definition.role.family).size, 4 * layout.marks)


def decode_set(payload: bytes) -> tuple[str, SetHeader, int | None]:
    """Read from a reply to ``GET_SETS`` the name of a set, what it is, and how many members it has, if the kernel says.

    Raises:
        MalformedMessage: if it is no such reply.

    """
    found = attributes(payload, _HEADER_LENGTH)
    numbers = [
        int.from_bytes(found.get(kind, b"")[:4], "big") for kind in (_SET_KEY_LENGTH, _SET_DATA_LENGTH, _SET_FLAGS)
    ]
    key_length, data_length, flags = numbers
    is_map = bool(flags & _MAP_FLAG)
    header = SetHeader(key_length, data_length if is_map else 0, bool(flags & _INTERVAL_FLAG))
    count = found.get(_SET_COUNT)
    return text(found.get(_SET_NAME, b"")), header, None if count is None else int.from_bytes(count, "big")


def decode_generation(payload: bytes) -> int:
    """Read the generation from a reply to ``GET_GENERATION`` or to ``BEGIN``.

    Raises:
        MalformedMessage: if it is no such reply.

    """
    number = attributes(payload, _HEADER_LENGTH).get(_GENERATION)
    if number is None or len(number) != 4:
        raise MalformedMessage(f"{number!r} is no generation")
    return int.from_bytes(number, "big")


def encode_get_table(family: int, name: str) -> Request:
    """Ask for a table."""
    return Request(_GET_TABLE, _family_head(family) + text_attribute(_TABLE_NAME, name))


def encode_delete_table(family: int, name: str) -> Request:
    """Return the message that deletes a table with all that is in it."""
    return Request(_DELETE_TABLE, _family_head(family) + text_attribute(_TABLE_NAME, name))


def decode_chain(payload: bytes) -> Chain:
    """Read a chain from a reply to ``GET_CHAINS``.

    Raises:
        MalformedMessage: if it is no such reply.

    """
    found = attributes(payload, _HEADER_LENGTH)
    hook = attributes(found.get(_CHAIN_HOOK, b""))
    is_base = _HOOK_NUMBER in hook
    return Chain(
        payload[0],
        text(found.get(_CHAIN_TABLE, b"")),
        text(found.get(_CHAIN_NAME, b"")),
        text(found.get(_CHAIN_TYPE, b"")),
        int.from_bytes(hook[_HOOK_NUMBER], "big") if is_base else None,
        int.from_bytes(hook.get(_HOOK_PRIORITY, b""), "big", signed=True),
        drops=is_base and not any(found.get(_CHAIN_POLICY, b"\1")),
    )


def encode_delete_chain(name: str) -> Request:
    """Return the message that deletes a chain of our table, which must have no rules."""
    return Request(_DELETE_CHAIN, _INET + text_attribute(_CHAIN_TABLE, TABLE) + text_attribute(_CHAIN_NAME, name))


def encode_get_rules(family: int) -> Request:
    """Ask for the rules of all tables of a family."""
    return Request(_GET_RULE, _family_head(family))


def decode_rule(payload: bytes) -> Rule:
    """Read a rule from a reply to ``encode_get_rules``.

    Raises:
        MalformedMessage: if it is no such reply.

    """
    found = attributes(payload, _HEADER_LENGTH)
    expressions = found.get(_RULE_EXPRESSIONS, b"")
    targets = (_target_of(expressions[start:end]) for _, start, end in walk(expressions))
    return Rule(
        text(found.get(_RULE_TABLE, b"")),
        text(found.get(_RULE_CHAIN, b"")),
        found.get(_RULE_HANDLE, b""),
        next(filter(None, targets), ""),
        payload,
    )


def _target_of(expression: bytes) -> str:
    """Return the chain that an expression leads to; empty if it does something else."""
    if text(attributes(expression).get(_EXPRESSION_NAME, b"")) != "immediate":
        return ""
    for kind in _WAY_TO_CHAIN:
        expression = attributes(expression).get(kind, b"")
    return text(expression)


def encode_delete_rules(family: int, table: str, chain: str, handle: bytes | None = None) -> Request:
    """Return the message that deletes one rule of a chain, or all if ``handle`` is ``None``."""
    which = b"" if handle is None else attribute(_RULE_HANDLE, handle)
    head = _family_head(family) + text_attribute(_RULE_TABLE, table) + text_attribute(_RULE_CHAIN, chain)
    return Request(_DELETE_RULE, head + which)


def encode_delete_chain_of(family: int, table: str, chain: str) -> Request:
    """Return the message that deletes a chain of any table, which must have no rules."""
    head = _family_head(family) + text_attribute(_CHAIN_TABLE, table) + text_attribute(_CHAIN_NAME, chain)
    return Request(_DELETE_CHAIN, head)


def encode_list(name: str) -> Request:
    """Ask for the members of a set."""
    return Request(_GET_ELEMENTS, _list_head(name))


def encode_members(verb: Verb, name: str, members: Iterable[bytes]) -> Request:
    """Return the message that adds or deletes members (``encode_member``) of one set.

    Adding what is there succeeds, unless it maps to something else; deleting what is not fails.

    Raises:
        ValueError: if they are too many for one message, which can have 64 KiB of them.

    """
    command, flags = _MEMBER_COMMANDS[verb]
    return Request(command, _list_head(name) + attribute(_LIST_ELEMENTS | NESTED, b"".join(members)), flags)


def encode_member(entry: SetEntry, definition: SetDefinition) -> bytes:
    """Return the element of a member.

    Raises:
        ValueError: if an address is not of the set's family, or a number is outside its type.

    """
    layout, shape = definition.layout, _shape(definition.layout, definition.role.family)
    length = _address_length(definition.role.family)
    try:
        if layout.networks:
            data = _value(_KEY, shape.pack(*entry[:3], _first(entry)))
        elif layout.parts[0] is not ADDRESS:
            data = _value(_KEY, shape.pack(entry.port))
        else:
            data = _value(_KEY, shape.pack(*entry[: len(layout.parts)]))
        if layout.marks:
            data += _value(_DATA, entry.mark.to_bytes(4, sys.byteorder))
    except (StructError, OverflowError) as error:
        raise ValueError(f"{entry!r} is no member of {definition.name}") from error
    # A struct would cut what is too long.
    if any(
        part is ADDRESS and len(entry[position]) != length  # type: ignore[arg-type]
        for position, part in enumerate(layout.parts)
    ):
        raise ValueError(f"{entry!r} is no member of {definition.name}")
    return ATTRIBUTE.pack(4 + len(data), _ELEMENT | NESTED) + data


def decode_members(payload: bytes, definition: SetDefinition, length: int | None = None) -> Iterator[SetEntry]:
    """Return the members in one reply to ``encode_list``, as the plan writes them; ``length`` is that of a prefix.

    Raises:
        MalformedMessage: if it is no such reply.

    """
    shape = _shape(definition.layout, definition.role.family)
    for number, start, end in walk(payload, _HEADER_LENGTH):
        if number == _LIST_ELEMENTS:
            for inner, first, last in walk(payload, start, end):
                if inner == _ELEMENT:
                    entry = _decode_member(payload, first, last, definition.layout, shape)
                    yield entry if length is None else entry._replace(prefix_length=length)


def _decode_member(payload: bytes, start: int, end: int, layout: Layout, shape: Struct) -> SetEntry:
    found = {kind: (first, last) for kind, first, last in walk(payload, start, end)}
    key = _value_in(payload, found, _KEY)
    if len(key) < shape.size:
        raise MalformedMessage(f"{key!r} is no key of {shape.size} bytes")
    parts = shape.unpack_from(key)
    if layout.parts[0] is not ADDRESS:
        return SetEntry(port=parts[0])
    if layout.marks:
        return SetEntry(*parts)._replace(mark=int.from_bytes(_value_in(payload, found, _DATA)[:4], sys.byteorder))
    return SetEntry(*parts)


def prefix_length(entry: SetEntry) -> int:
    """Return the length of the prefix of a member's source."""
    return len(entry.source) * 8 if entry.prefix_length is None else entry.prefix_length


def _first(entry: SetEntry) -> bytes:
    """Return the first address of a member's source.

    Raises:
        OverflowError: if the prefix is longer than the address.

    """
    length = len(entry.source)
    free = length * 8 - prefix_length(entry)
    if not 0 <= free <= length * 8:
        raise OverflowError(f"{entry.prefix_length} is no prefix length of {length} bytes")
    return (int.from_bytes(entry.source, "big") >> free << free).to_bytes(length, "big")


def _family_head(family: int) -> bytes:
    return bytes((family, 0, 0, 0))


def _list_head(name: str) -> bytes:
    return _INET + text_attribute(_LIST_TABLE, TABLE) + text_attribute(_LIST_SET, name)


def _value(kind: int, value: bytes) -> bytes:
    inner = attribute(_VALUE, value)
    return ATTRIBUTE.pack(4 + len(inner), kind | NESTED) + inner


def _value_in(payload: bytes, found: dict[int, tuple[int, int]], kind: int) -> bytes:
    for number, start, end in walk(payload, *found.get(kind, (0, 0))):
        if number == _VALUE:
            return payload[start:end]
    raise MalformedMessage(f"a member has no attribute {kind}")
