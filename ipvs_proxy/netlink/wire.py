"""Netlink's wire format: messages, attributes and replies, without any I/O.

Everything that goes to or comes from the kernel passes through here, so this module makes two promises. What it frames
is well-formed: one wrong length would make the kernel ignore the rest of a datagram in silence. And whatever it has to
parse, it returns or raises ``MalformedMessage``, never anything else. The layout is that of linux/netlink.h;
integers are in host order unless a protocol says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from struct import Struct
from typing import Final, NamedTuple

# nlmsg_flags
REQUEST: Final = 0x001
ACK: Final = 0x004
ECHO: Final = 0x008
DUMP_INTERRUPTED: Final = 0x010
DUMP: Final = 0x300
EXCLUSIVE: Final = 0x200
CREATE: Final = 0x400

# nlmsg_type of control messages
ERROR: Final = 2
DONE: Final = 3
OVERRUN: Final = 4

#: Flags in an attribute's type: its payload is attributes, its payload is in network order.
NESTED: Final = 0x8000
NETWORK_ORDER: Final = 0x4000
_TYPE_MASK: Final = 0x3FFF

MAXIMUM_ATTRIBUTE: Final = 0xFFFF

#: struct nlmsghdr: length, type, flags, sequence, port.
HEADER: Final = Struct("=IHHII")
#: struct nlattr: length, type.
ATTRIBUTE: Final = Struct("=HH")
_ERROR: Final = Struct("=i")


class MalformedMessage(ValueError):  # noqa: N818  the name says what is wrong
    """Bytes that are not what the protocol says."""


class Request(NamedTuple):
    """A message to send: ``nlmsg_type``, what follows the header (a multiple of 4 bytes), ``nlmsg_flags``."""

    type: int
    payload: bytes
    flags: int = REQUEST


class Data(NamedTuple):
    """A reply or notification of the protocol's own type."""

    type: int
    flags: int
    sequence: int
    payload: bytes


class Acknowledgement(NamedTuple):
    """The answer to one request: an errno, 0 for success, and as much of the request's payload as was sent back."""

    sequence: int
    error: int
    request: bytes = b""


class Done(NamedTuple):
    """The end of a dump; ``error`` is the errno that ended it, 0 if it is complete."""

    flags: int
    sequence: int
    error: int


class Overrun(NamedTuple):
    """The kernel lost messages for this socket."""

    sequence: int


Reply = Data | Acknowledgement | Done | Overrun


def frame(request: Request, *, sequence: int, flags: int = 0) -> bytes:
    """Return the message with its header; ``flags`` are added to the request's own."""
    kind, payload, own_flags = request
    return HEADER.pack(16 + len(payload), kind, own_flags | flags, sequence, 0) + payload


def frame_batch(requests: Sequence[Request], *, sequence: int) -> bytes:
    """Return the messages one behind the other, numbered from ``sequence`` on; the last asks for an acknowledgement."""
    last = sequence + len(requests) - 1
    parts: list[bytes] = []
    # One loop without calls of our functions: a table has 100,000 messages.
    for number, (kind, payload, flags) in enumerate(requests, sequence):
        parts.append(HEADER.pack(16 + len(payload), kind, flags | ACK if number == last else flags, number, 0))
        parts.append(payload)
    return b"".join(parts)


def parse(datagram: bytes) -> Iterator[Reply]:
    """Return the replies in a datagram, in order; NOOPs are left out.

    Raises:
        MalformedMessage: on reaching a message whose lengths are wrong.

    """
    position, end = 0, len(datagram)
    while position < end:
        if end - position < 16:
            raise MalformedMessage(f"{end - position} bytes at the end of a datagram are too few for a header")
        length, kind, flags, sequence, _ = HEADER.unpack_from(datagram, position)
        if not 16 <= length <= end - position:
            raise MalformedMessage(f"a message says it has {length} bytes, the datagram has {end - position} left")
        payload = datagram[position + 16 : position + length]
        if kind > OVERRUN:
            yield Data(kind, flags, sequence, payload)
        elif kind == ERROR:
            yield Acknowledgement(sequence, _error_in(payload), payload[20:])
        elif kind == DONE:
            # Old kernels end a dump without an error code.
            yield Done(flags, sequence, _error_in(payload) if payload else 0)
        elif kind == OVERRUN:
            yield Overrun(sequence)
        position += (length + 3) & ~3


def take_data(datagram: bytes, sequence: int, take: Callable[[bytes], None]) -> tuple[int, int]:
    """Hand over the payloads of the data messages that a datagram begins with, as long as they answer ``sequence``.

    Return the position behind them, from where ``parse`` goes on, and all their flags. A dump is nearly all such
    messages, and this takes a third of the time that ``parse`` takes.
    """
    position, end, seen = 0, len(datagram), 0
    while end - position >= 16:
        length, kind, flags, number, _ = HEADER.unpack_from(datagram, position)
        if kind <= OVERRUN or number != sequence or not 16 <= length <= end - position:
            break
        take(datagram[position + 16 : position + length])
        seen |= flags
        position += (length + 3) & ~3
    return position, seen


def _error_in(payload: bytes) -> int:
    if len(payload) < 4:
        raise MalformedMessage(f"{len(payload)} bytes are too few for an error code")
    (negative,) = _ERROR.unpack_from(payload)
    # A dump may end with a length instead of zero.
    return max(0, -int(negative))


def attribute(kind: int, payload: bytes) -> bytes:
    """Return an attribute with its header, padded to 4 bytes.

    Raises:
        ValueError: if the payload is longer than an attribute can be.

    """
    length = 4 + len(payload)
    if length > MAXIMUM_ATTRIBUTE:
        raise ValueError(f"{len(payload)} bytes are too many for one netlink attribute")
    return ATTRIBUTE.pack(length, kind) + payload + bytes(-length & 3)


def text_attribute(kind: int, text: str) -> bytes:
    """Return an attribute whose payload is a string that ends with a zero byte."""
    return attribute(kind, text.encode() + b"\0")


def walk(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, int]]:
    """Return (type without its flags, first byte of the payload, byte behind the payload) of each attribute.

    Raises:
        MalformedMessage: on reaching an attribute whose length is wrong.

    """
    limit = len(data) if end is None else end
    position = start
    while limit - position >= 4:
        length, kind = ATTRIBUTE.unpack_from(data, position)
        if not 4 <= length <= limit - position:
            raise MalformedMessage(f"an attribute says it has {length} bytes, {limit - position} are left")
        yield kind & _TYPE_MASK, position + 4, position + length
        position += (length + 3) & ~3


def attributes(data: bytes, start: int = 0) -> dict[int, bytes]:
    """Return the payloads of the attributes from ``start`` on by type; of a repeated one, the last.

    Raises:
        MalformedMessage: if a length is wrong.

    """
    return {kind: data[first:last] for kind, first, last in walk(data, start)}


def integer(found: dict[int, bytes], kind: int, default: int | None = None) -> int:
    """Return an unsigned integer attribute in host order, whatever its width.

    Raises:
        MalformedMessage: if it is absent without a default, or of no integer's length.

    """
    payload = found.get(kind)
    if payload is None:
        if default is None:
            raise MalformedMessage(f"attribute {kind} is missing")
        return default
    layout = _INTEGERS.get(len(payload))
    if layout is None:
        raise MalformedMessage(f"attribute {kind} has {len(payload)} bytes, which is no integer")
    return int(layout.unpack(payload)[0])


_INTEGERS: Final = {1: Struct("=B"), 2: Struct("=H"), 4: Struct("=I"), 8: Struct("=Q")}


def text(payload: bytes) -> str:
    """Return a string that may end with zero bytes.

    Raises:
        MalformedMessage: if it is not text.

    """
    try:
        return payload.rstrip(b"\0").decode()
    except UnicodeDecodeError as error:
        raise MalformedMessage(f"{payload!r} is not text") from error
