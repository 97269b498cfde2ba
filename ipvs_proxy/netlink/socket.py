"""A netlink socket that carries many messages per system call and says what became of each.

The kernel answers failures only, so a batch costs one ``sendmsg`` and one ``recv`` however many messages it holds. The
last message of a batch asks for an acknowledgement: the kernel works strictly in order, so when that has come, all
answers have come.

No answer is ever taken for that of another request. Where the acknowledgement does not come (the receive buffer
overflowed, the socket is dead, garbage), the operations of the batch without an answer are UNKNOWN and the socket is
replaced. Where the kernel, or this process, is short of memory, buffers or descriptors, what was not sent and questions
without an answer are tried again for a moment.

All calls block while the kernel works, a millisecond or two for a batch. One thread at a time may use a socket.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from errno import ENOBUFS
from struct import pack
from types import TracebackType
from typing import Final, NamedTuple, Self, TypeVar

from ipvs_proxy.netlink.errors import SHORTAGES, UNKNOWN
from ipvs_proxy.netlink.wire import (
    ACK,
    DUMP,
    DUMP_INTERRUPTED,
    Acknowledgement,
    Data,
    Done,
    MalformedMessage,
    Overrun,
    Request,
    frame,
    frame_batch,
    parse,
    take_data,
)

#: Messages in one batch: enough to make system calls cheap, few enough for the kernel to take a millisecond or two.
BATCH_MESSAGES: Final = 256
#: Bytes in one batch, well below the send buffer.
BATCH_BYTES: Final = 128 * 1024
SEND_BUFFER: Final = 512 * 1024
#: Answers to a batch in which all fail take 230 KiB, or twice the batch's bytes where the kernel sends requests back.
RECEIVE_BUFFER: Final = 4 * 1024 * 1024
#: How much of the receive buffer a queued reply takes at most, however short it is.
REPLY_COST: Final = 1024
#: The longest datagram: the kernel uses up to 32 KiB in dumps, and ipset sends a failing message back.
DATAGRAM: Final = 256 * 1024
#: Seconds to wait for an answer. The kernel answers before ``sendmsg`` returns, so having to wait means that something
#: is wrong.
TIMEOUT: Final = 10
#: Seconds between attempts while the kernel is short of something, and seconds after which there is no further one.
SHORTAGE_PAUSES: Final = (0.01, 0.02, 0.05, 0.1, 0.2)
SHORTAGE_PATIENCE: Final = 1.0
#: How many times a dump is taken while the kernel says that its table changed meanwhile.
DUMP_ATTEMPTS: Final = 10

_SOL_NETLINK: Final = 270
_NETLINK_CAP_ACK: Final = 10
_NETLINK_GET_STRICT_CHK: Final = 12
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33

T = TypeVar("T")

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12
NETLINK_GENERIC: Final = 16


@dataclass(slots=True)
class MessageCounts:
    """What was sent: messages that write, messages that only read, system calls in both directions, bytes."""

    writes: int = 0
    reads: int = 0
    system_calls: int = 0
    bytes_sent: int = 0


class Transaction(NamedTuple):
    """What became of requests that are carried out together or not at all: not at all if there is a failure.

    ``failures`` has the outcomes of those that the kernel refused, or whose fate is unknown, by index; ``replies`` what
    it answered besides to the request that began the transaction.
    """

    failures: dict[int, Acknowledgement]
    replies: list[bytes]


class NetlinkSocket:
    """One socket of one netlink protocol, in the network namespace of the thread that makes it.

    ``strict`` makes the kernel refuse malformed dump requests and, what matters, honour their filters
    (``NETLINK_GET_STRICT_CHK``, Linux 4.20; older kernels ignore it and dump everything).

    Raises:
        OSError: if the kernel does not have the protocol.

    """

    def __init__(self, protocol: int, *, traffic: MessageCounts | None = None, strict: bool = False) -> None:
        self.traffic = MessageCounts() if traffic is None else traffic
        self._protocol = protocol
        self._strict = strict
        self._sequence = 0
        self._buffer = bytearray(DATAGRAM)
        self._socket: socket.socket | None = None
        _patiently(self._open)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; the next use opens a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def execute(self, requests: Sequence[Request]) -> list[int]:
        """Send requests in order; return 0, the errno of its failure, or UNKNOWN for each."""
        failures = self.send(requests)
        if not failures:
            return [0] * len(requests)
        return [failures[index].error if index in failures else 0 for index in range(len(requests))]

    def send(self, requests: Sequence[Request]) -> dict[int, Acknowledgement]:
        """Send requests in order; return the outcomes of those that did not succeed, by index.

        Never raises OSError: what could not be sent is UNKNOWN.
        """
        failures: dict[int, Acknowledgement] = {}
        for start, end in self._batches(requests):
            for index, outcome in self._send_batch(requests[start:end]).items():
                failures[start + index] = outcome
        return failures

    def transact(self, requests: Sequence[Request], *, opening: Sequence[Request], end: Request) -> Transaction:
        """Send requests in one datagram, between those that frame them, to be carried out together or not at all.

        The kernel looks at each, whatever it found wrong with those before (``nfnetlink_rcv_batch``), so all that it
        refuses come back at once; what is wrong with the whole, it says of the first of ``opening``. Never raises
        OSError: what could not be sent is UNKNOWN. The datagram must fit the send buffer.
        """
        begin = self._reserve(len(opening) + len(requests) + 1)
        first = begin + len(opening)
        last = first + len(requests) - 1
        outcome = Transaction({}, [])
        self.traffic.writes += len(requests)
        try:
            opened = b"".join(frame(request, sequence=number) for number, request in enumerate(opening, begin))
            self._transmit(opened + frame_batch(requests, sequence=first) + frame(end, sequence=last + 1))
            while True:
                for reply in _replies(self._receive_datagram()):
                    if not begin <= reply.sequence <= last:
                        continue
                    if isinstance(reply, Data):
                        outcome.replies.append(reply.payload)
                    elif isinstance(reply, Acknowledgement) and reply.sequence < first:
                        return Transaction(dict.fromkeys(range(len(requests)), reply), [])
                    elif isinstance(reply, Acknowledgement):
                        if reply.error:
                            outcome.failures[reply.sequence - first] = reply
                        if reply.sequence == last:
                            return outcome
        except (OSError, MalformedMessage):
            self.close()
            return Transaction(dict.fromkeys(range(len(requests)), Acknowledgement(begin, UNKNOWN)), [])

    def ask(self, request: Request) -> bytes:
        """Ask for one object; return the payload of the reply.

        Raises:
            OSError: with the errno of the kernel's refusal, or that of the socket.
            MalformedMessage: if the reply is garbage, or there is none.

        """

        def query() -> list[bytes]:
            replies: list[bytes] = []
            self._query(request, ACK, replies.append)
            return replies

        replies = _patiently(query)
        if not replies:
            raise MalformedMessage("the kernel confirmed a question without answering it")
        return replies[0]

    def dump(self, request: Request) -> list[bytes]:
        """Read a table; return the payloads of all replies. A dump is taken again if the table changed meanwhile.

        Raises:
            OSError: with the errno of the kernel's refusal or that of the socket, or if the table keeps changing.
            MalformedMessage: if a reply is garbage.

        """

        def dump() -> list[bytes] | None:
            replies: list[bytes] = []
            return replies if self.stream(request, replies.append) else None

        for _ in range(DUMP_ATTEMPTS):
            found = _patiently(dump)
            if found is not None:
                return found
        raise OSError(f"the kernel's table changed during each of {DUMP_ATTEMPTS} dumps")

    def stream(self, request: Request, take: Callable[[bytes], None]) -> bool:
        """Read a table too large to keep: ``take`` gets the payload of each reply as it comes.

        Returns whether the table stayed the same meanwhile.

        Raises:
            OSError: with the errno of the kernel's refusal or that of the socket.
            MalformedMessage: if a reply is garbage, or ``take`` raises it.

        """
        return not self._query(request, DUMP, take)

    def _batches(self, requests: Sequence[Request]) -> Iterator[tuple[int, int]]:
        """Cut requests into (start, end) of batches that fit both buffers; one that is too long goes alone."""
        whole = sum([16 + len(payload) for _, payload, _ in requests])
        if requests and len(requests) <= self._batch_messages and whole <= self._batch_bytes:
            yield 0, len(requests)
            return
        start = size = 0
        for index, request in enumerate(requests):
            length = 16 + len(request.payload)
            if index > start and (index - start >= self._batch_messages or size + length > self._batch_bytes):
                yield start, index
                start, size = index, 0
            size += length
        if start < len(requests):
            yield start, len(requests)

    def _send_batch(self, requests: Sequence[Request]) -> dict[int, Acknowledgement]:
        first = self._reserve(len(requests))
        last = first + len(requests) - 1
        failures: dict[int, Acknowledgement] = {}
        self.traffic.writes += len(requests)
        try:
            self._transmit(frame_batch(requests, sequence=first))
            while True:
                for reply in _replies(self._receive_datagram()):
                    if not isinstance(reply, Acknowledgement) or not first <= reply.sequence <= last:
                        continue
                    if reply.error:
                        failures[reply.sequence - first] = reply
                    if reply.sequence == last:
                        return failures
        except (OSError, MalformedMessage):
            self.close()
            return {
                index: failures.get(index, Acknowledgement(first + index, UNKNOWN)) for index in range(len(requests))
            }

    def _query(self, request: Request, flag: int, take: Callable[[bytes], None]) -> bool:
        """Send one request and hand over the payloads of its replies; return whether the table changed in between."""
        sequence = self._reserve(1)
        self.traffic.reads += 1
        interrupted = False
        end: Acknowledgement | Done | None = None
        try:
            self._transmit(frame(request, sequence=sequence, flags=flag))
            while end is None:
                datagram = self._receive_datagram()
                position, flags = take_data(datagram, sequence, take)
                interrupted |= bool(flags & DUMP_INTERRUPTED)
                for reply in _replies(datagram[position:]):
                    if reply.sequence != sequence:
                        continue
                    if isinstance(reply, Data):
                        take(reply.payload)
                    else:
                        end = reply
                    if not isinstance(reply, Acknowledgement) and reply.flags & DUMP_INTERRUPTED:
                        interrupted = True
        except (OSError, MalformedMessage):
            self.close()
            raise
        if end.error:
            raise OSError(end.error, os.strerror(end.error))
        return interrupted

    def _reserve(self, count: int) -> int:
        """Return the first of ``count`` consecutive sequence numbers. 0 is for notifications."""
        if self._sequence + count > 0xFFFFFFFF:
            self._sequence = 0
        first = self._sequence + 1
        self._sequence += count
        return first

    def _transmit(self, data: bytes) -> None:
        # What could not be sent has had no effect.
        _patiently(lambda: self._open().sendto(data, (0, 0)))
        self.traffic.system_calls += 1
        self.traffic.bytes_sent += len(data)

    def _receive_datagram(self) -> bytes:
        """Return the next datagram that the kernel itself sent."""
        while True:
            length, (port, _) = self._open().recvfrom_into(self._buffer, 0, socket.MSG_TRUNC)
            self.traffic.system_calls += 1
            if length > DATAGRAM:
                raise MalformedMessage(f"a datagram of {length} bytes is longer than any that the kernel sends")
            if port == 0:
                return bytes(memoryview(self._buffer)[:length])

    def _open(self) -> socket.socket:
        if self._socket is not None:
            return self._socket
        opened = open_socket(self._protocol, receive_buffer=RECEIVE_BUFFER)
        try:
            if self._strict:
                _try_option(opened, _SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
            _try_option(opened, _SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            _raise_buffer(opened, socket.SO_SNDBUF, _SO_SNDBUFFORCE, SEND_BUFFER)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, pack("@ll", TIMEOUT, 0))
            send_buffer = opened.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            receive_buffer = opened.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        except OSError:
            opened.close()
            raise
        self._batch_messages = max(1, min(BATCH_MESSAGES, receive_buffer // REPLY_COST))
        self._batch_bytes = max(4096, min(BATCH_BYTES, send_buffer // 2, receive_buffer // 4))
        self._socket = opened
        return opened


def _patiently(call: Callable[[], T]) -> T:
    """Call until it works, a few times, while the kernel is short of memory, buffers or descriptors."""
    until = time.monotonic() + SHORTAGE_PATIENCE
    for pause in SHORTAGE_PAUSES:
        try:
            return call()
        except OSError as error:
            if error.errno not in SHORTAGES or time.monotonic() > until:
                raise
        time.sleep(pause)
    return call()


def _replies(datagram: bytes) -> Iterator[Data | Acknowledgement | Done]:
    for reply in parse(datagram):
        if isinstance(reply, Overrun):
            raise OSError(ENOBUFS, os.strerror(ENOBUFS))
        yield reply


def open_socket(protocol: int, *, receive_buffer: int, groups: int = 0) -> socket.socket:
    """Open and bind a netlink socket; ``groups`` is the mask of the notifications to receive.

    Raises:
        OSError: if the kernel does not have the protocol.

    """
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        _raise_buffer(opened, socket.SO_RCVBUF, _SO_RCVBUFFORCE, receive_buffer)
        opened.bind((0, groups))
    except OSError:
        opened.close()
        raise
    return opened


def _raise_buffer(opened: socket.socket, option: int, forced: int, size: int) -> None:
    """Set a buffer's size, beyond the system's limit where we may (CAP_NET_ADMIN)."""
    if not _try_option(opened, socket.SOL_SOCKET, forced, size):
        opened.setsockopt(socket.SOL_SOCKET, option, size)


def _try_option(opened: socket.socket, level: int, option: int, value: int) -> bool:
    try:
        opened.setsockopt(level, option, value)
    except OSError:
        return False
    return True
