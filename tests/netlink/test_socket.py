"""What a batch's answers mean, with a kernel whose answers are scripted: the real one cannot be made to misbehave."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from errno import EAGAIN, EEXIST, EMFILE, ENOBUFS, ENOENT, ENOMEM
from struct import pack
from typing import ClassVar

import pytest

from ipvs_proxy.netlink.errors import UNKNOWN
from ipvs_proxy.netlink.socket import BATCH_BYTES, DUMP_ATTEMPTS, NETLINK_ROUTE, MessageCounts, NetlinkSocket
from ipvs_proxy.netlink.wire import ACK, DUMP_INTERRUPTED, MalformedMessage, Request, parse

PING = Request(30, b"ping")


def message(kind: int, sequence: int, payload: bytes, *, flags: int = 0) -> bytes:
    return pack("=IHHII", 16 + len(payload), kind, flags, sequence, 0) + payload


def outcome(sequence: int, error: int = 0) -> bytes:
    return message(2, sequence, pack("=i", -error) + bytes(16))


class Scripted(NetlinkSocket):
    """Answers each transmission with the datagrams, or the error, that ``script`` makes of the messages in it."""

    opened: ClassVar[list[Scripted]] = []

    def __init__(self, script: Callable[[list[int]], Iterator[bytes]]) -> None:
        super().__init__(NETLINK_ROUTE)
        self.opened.append(self)
        self.script = script
        self.answers: Iterator[bytes] = iter(())
        self.sent: list[list[tuple[int, int]]] = []
        self.closed = 0

    def close(self) -> None:
        super().close()
        self.closed += 1

    def _transmit(self, data: bytes) -> None:
        messages = [(reply.sequence, reply.flags) for reply in parse(data)]
        self.sent.append(messages)
        self.answers = self.script([sequence for sequence, _ in messages])

    def _receive_datagram(self) -> bytes:
        for answer in self.answers:
            return answer
        raise BlockingIOError(EAGAIN, os.strerror(EAGAIN))


@pytest.fixture(autouse=True)
def closed_at_the_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("ipvs_proxy.netlink.socket.SHORTAGE_PAUSES", (0.0, 0.0))
    yield
    while Scripted.opened:
        Scripted.opened.pop().close()


def all_well(sequences: list[int]) -> Iterator[bytes]:
    yield outcome(sequences[-1])


def test_success_is_one_answer_a_batch():
    socket = Scripted(all_well)
    assert socket.execute([PING] * 600) == [0] * 600
    assert [len(batch) for batch in socket.sent] == [256, 256, 88]
    for batch in socket.sent:
        assert [flags & ACK for _, flags in batch] == [0] * (len(batch) - 1) + [ACK]
    assert socket.traffic.writes == 600
    assert socket.closed == 0


def test_failures_are_attributed_by_sequence():
    def script(sequences):
        yield outcome(sequences[1], EEXIST) + outcome(sequences[3], ENOENT)
        yield outcome(sequences[4])

    assert Scripted(script).execute([PING] * 5) == [0, EEXIST, 0, ENOENT, 0]


def test_the_last_message_can_fail():
    def script(sequences):
        yield outcome(sequences[-1], EEXIST)

    assert Scripted(script).execute([PING] * 3) == [0, 0, EEXIST]


def test_answers_to_other_requests_are_ignored():
    def script(sequences):
        yield outcome(sequences[0] - 1, EEXIST) + outcome(sequences[-1] + 1, EEXIST) + message(30, sequences[0], b"")
        yield outcome(sequences[-1])

    assert Scripted(script).execute([PING] * 2) == [0, 0]


def lost(sequences: list[int]) -> Iterator[bytes]:
    yield outcome(sequences[0], EEXIST)
    raise OSError(ENOBUFS, os.strerror(ENOBUFS))


def silent(sequences: list[int]) -> Iterator[bytes]:
    yield outcome(sequences[0], EEXIST)


def dump_one(sequences: list[int]) -> Iterator[bytes]:
    yield message(30, sequences[0], b"one1") + outcome(sequences[0])


def garbled(sequences: list[int]) -> Iterator[bytes]:
    yield outcome(sequences[0], EEXIST)
    yield b"garbage"


def overrun(sequences: list[int]) -> Iterator[bytes]:
    yield outcome(sequences[0], EEXIST)
    yield message(4, 0, b"")


@pytest.mark.parametrize("trouble", [lost, silent, garbled, overrun])
def test_a_batch_without_its_last_answer_is_unknown_and_the_socket_is_replaced(trouble):
    scripts = iter([trouble, all_well])

    def script(sequences):
        return next(scripts)(sequences)

    socket = Scripted(script)
    results = socket.execute([PING] * 300)
    # What was answered is known; of the rest of the batch nothing is; the next batch goes through a new socket.
    assert results == [EEXIST] + [UNKNOWN] * 255 + [0] * 44
    assert socket.closed == 1


@pytest.mark.parametrize(("trouble", "error"), [(lost, OSError), (silent, OSError), (garbled, MalformedMessage)])
def test_a_question_whose_answer_does_not_come_is_an_error(trouble, error):
    socket = Scripted(lambda sequences: trouble([sequences[0] - 1]))
    with pytest.raises(error):
        socket.ask(PING)
    assert socket.closed == len(socket.sent) == (1 if error is MalformedMessage else 3)


@pytest.mark.parametrize("shortage", [ENOBUFS, EAGAIN, ENOMEM, EMFILE])
def test_a_question_that_a_shortage_kept_from_its_answer_is_asked_again(shortage):
    def lacking(sequences):
        raise OSError(shortage, os.strerror(shortage))
        yield

    scripts = [lacking, lacking, dump_one, lacking, lambda sequences: dump(sequences[0])]

    def script(sequences):
        return scripts.pop(0)(sequences)

    socket = Scripted(script)
    assert socket.ask(PING) == b"one1"
    assert socket.dump(PING) == [b"one1", b"two2"]


def test_a_kernel_that_takes_long_over_a_shortage_is_not_asked_again(monkeypatch):
    monkeypatch.setattr("ipvs_proxy.netlink.socket.SHORTAGE_PATIENCE", -1.0)
    socket = Scripted(lambda sequences: silent([0]))
    with pytest.raises(OSError):
        socket.ask(PING)
    assert len(socket.sent) == 1


def test_batches_fit_the_send_buffer():
    socket = Scripted(all_well)
    large = Request(30, bytes(BATCH_BYTES // 4))
    assert socket.execute([large] * 5 + [PING]) == [0] * 6
    assert [len(batch) for batch in socket.sent] == [3, 3]


def test_no_requests_send_nothing():
    socket = Scripted(all_well)
    assert socket.execute([]) == []
    assert socket.sent == []


def test_sequence_numbers_start_again_before_they_overflow():
    socket = Scripted(all_well)
    socket._sequence = 0xFFFFFFFF - 2
    assert socket.execute([PING] * 2) == [0, 0]
    assert socket.execute([PING] * 2) == [0, 0]
    assert [[sequence for sequence, _ in batch] for batch in socket.sent] == [[0xFFFFFFFE, 0xFFFFFFFF], [1, 2]]


def test_a_refused_question_raises_its_errno_and_keeps_the_socket():
    def script(sequences):
        yield outcome(sequences[0], ENOENT)

    socket = Scripted(script)
    with pytest.raises(OSError, match=os.strerror(ENOENT)) as refusal:
        socket.ask(PING)
    assert refusal.value.errno == ENOENT
    assert socket.closed == 0


def test_a_question_without_an_answer_is_malformed():
    with pytest.raises(MalformedMessage, match="without answering"):
        Scripted(all_well).ask(PING)


def dump(sequence: int, *, interrupted: bool = False) -> Iterator[bytes]:
    flags = DUMP_INTERRUPTED if interrupted else 0
    yield message(30, sequence, b"one1", flags=2) + message(30, sequence, b"two2", flags=2 | flags)
    yield message(3, sequence, pack("=i", 0), flags=2)


def test_a_dump_gives_all_payloads():
    socket = Scripted(lambda sequences: dump(sequences[0]))
    assert socket.dump(PING) == [b"one1", b"two2"]
    assert socket.traffic == MessageCounts(reads=1)


def test_a_dump_that_was_interrupted_is_taken_again():
    interrupted = iter([True, True, False])
    socket = Scripted(lambda sequences: dump(sequences[0], interrupted=next(interrupted)))
    assert socket.dump(PING) == [b"one1", b"two2"]
    assert len(socket.sent) == 3


def test_a_table_that_never_rests_is_an_error():
    socket = Scripted(lambda sequences: dump(sequences[0], interrupted=True))
    with pytest.raises(OSError, match="changed during each of 10 dumps"):
        socket.dump(PING)
    assert len(socket.sent) == DUMP_ATTEMPTS


def test_a_dump_that_ends_with_an_error_raises_it():
    def script(sequences):
        yield message(3, sequences[0], pack("=i", -ENOENT), flags=2)

    with pytest.raises(OSError, match=os.strerror(ENOENT)):
        Scripted(script).dump(PING)


OPENING = (Request(16, b"open"), Request(30, b"echo"))
END = Request(17, b"done")


def transact(script: Callable[[list[int]], Iterator[bytes]], count: int = 3) -> tuple[dict[int, int], list[bytes]]:
    """Return the errors of a transaction by index, and what was answered besides."""
    found = Scripted(script).transact([PING] * count, opening=OPENING, end=END)
    return {index: failure.error for index, failure in found.failures.items()}, found.replies


def test_a_transaction_is_one_datagram_whose_last_request_is_acknowledged():
    def script(sequences):
        yield message(40, sequences[1], b"made")
        yield outcome(sequences[-2])

    socket = Scripted(script)
    assert socket.transact([PING] * 3, opening=OPENING, end=END) == ({}, [b"made"])
    ((*others, last, end),) = socket.sent
    assert (len(others), [flags & ACK for _, flags in (*others, last, end)]) == (4, [0, 0, 0, 0, ACK, 0])
    assert socket.traffic.writes == 3, "what frames it writes nothing"


def test_all_that_is_refused_of_a_transaction_is_known_at_once():
    def script(sequences):
        yield outcome(sequences[2], ENOENT) + outcome(sequences[4], EEXIST)

    assert transact(script) == ({0: ENOENT, 2: EEXIST}, [])


@pytest.mark.parametrize("position", [0, 1])
def test_what_is_wrong_with_a_transaction_as_a_whole_is_wrong_with_each(position):
    def script(sequences):
        yield outcome(sequences[position], ENOMEM)

    assert transact(script) == ({0: ENOMEM, 1: ENOMEM, 2: ENOMEM}, [])


@pytest.mark.parametrize("script", [lost, silent, garbled, overrun], ids=lambda script: script.__name__)
def test_a_transaction_without_an_answer_is_unknown(script):
    def unanswered(sequences):
        yield from script(sequences[2:])

    assert transact(unanswered) == ({0: UNKNOWN, 1: UNKNOWN, 2: UNKNOWN}, [])
