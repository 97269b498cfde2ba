"""The members of the sets of our table.

The invariant: every operation gets its own result, whatever happens to the others. A batch is one transaction, which
takes effect as a whole. The kernel looks at every message of it and says which it refuses, and then carries out none
(``nfnetlink_rcv_batch``): those that were refused are left out and the rest is sent again. A message with many members
is refused without saying for which, so they are then sent one to a message: all results are known after three rounds.

A set that is read while the kernel makes room in it may seem to lack members (``nft_rhash_walk``). So it is read again
until it has as many as the kernel counts, or, where the kernel does not count, until nothing new is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from errno import EEXIST, EINVAL, ENOENT, EOPNOTSUPP, EPERM, EPROTONOSUPPORT
from typing import Final, NamedTuple

from ipvs_proxy.kernel.filter.nftables import codec
from ipvs_proxy.kernel.filter.nftables.generation import Generation
from ipvs_proxy.kernel.filter.nftables.names import SetDefinition, length_in, set_name
from ipvs_proxy.netlink.errors import UNKNOWN, MissingPiece
from ipvs_proxy.netlink.socket import NETLINK_NETFILTER, MessageCounts, NetlinkSocket
from ipvs_proxy.netlink.wire import MalformedMessage
from ipvs_proxy.plan.tables import Role, SetEntry, SetEntryOperation, Verb

#: Operations in one transaction: with the longest members it has 60 KB, well below the send buffer.
OPERATIONS_PER_TRANSACTION: Final = 1024
#: Members in one message: the longest take 52 bytes each, and the attribute with all of them at most 64 KiB.
MEMBERS_PER_MESSAGE: Final = 512
#: How many times a set is read that seems to lack members.
READ_ATTEMPTS: Final = 10

#: Makes the sets for more lengths of prefixes, by role. Raises OSError if they cannot be made.
MakeLengths = Callable[[Mapping[Role, set[int]]], None]


class _Change(NamedTuple):
    """A member to add to a set or to delete from it, as it is sent; and the operations that ask for it, by index.

    Changes with the same ``operations``, which is one object, stand or fall together.
    """

    verb: Verb
    name: str
    is_map: bool
    member: bytes
    operations: list[int]


class Sets:
    """The sets of our table in the network namespace of the thread that makes this object. One thread may use it.

    ``lengths`` are those of the prefixes that there are sets for, as far as is known, and may be read by any thread;
    ``make`` makes others.

    Raises:
        MissingPiece: if the kernel has no nf_tables, or does not let us use it.

    """

    def __init__(
        self,
        definitions: Iterable[SetDefinition],
        *,
        generation: Generation | None = None,
        traffic: MessageCounts | None = None,
    ) -> None:
        self._definitions = {definition.role: definition for definition in definitions}
        self.lengths: dict[Role, set[int]] = {
            role: set() for role, one in self._definitions.items() if one.layout.networks
        }
        self.make: MakeLengths | None = None
        self._generation = generation or Generation()
        self._read = Generation()
        self._socket = open_netfilter(traffic)

    @property
    def traffic(self) -> MessageCounts:
        """What was sent to the kernel so far."""
        return self._socket.traffic

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def unfit(self) -> dict[str, bool]:
        """Return the names of the sets that are missing (false) or are something else (true).

        Raises:
            OSError: if the kernel refuses.
            MalformedMessage: if a reply is garbage.

        """
        found = self._find()
        return {
            name: name in found
            for name, definition, _ in self._named()
            if name not in found or found[name][0] != codec.header_of(definition)
        }

    def read(self) -> dict[Role, set[SetEntry]]:
        """Read the members by role; a set that is missing is left out, as is one of another type.

        Raises:
            OSError: if the kernel refuses.
            MalformedMessage: if a reply is garbage.

        """
        number = self._number()
        headers = self._find()
        found: dict[Role, set[SetEntry]] = {role: set() for role in self.lengths if headers}
        for name, definition, length in self._named():
            header, count = headers.get(name, (None, None))
            if header == codec.header_of(definition):
                found.setdefault(definition.role, set()).update(self._read_one(name, definition, length, count))
        if len(found) == len(self._definitions) and self._number() == number:
            self._read.verified(number)
        return found

    def read_changed(self) -> dict[Role, set[SetEntry] | None]:
        """Read all members, ``None`` for a missing set; nothing if ``is_unchanged``. Raises as ``read`` does."""
        return {} if self.is_unchanged() else {**dict.fromkeys(self._definitions), **self.read()}

    def is_unchanged(self) -> bool:
        """Return whether nobody but us has changed any rule or member on the node since all members were read.

        Raises:
            OSError: if the kernel refuses.

        """
        return self._read.is_verified(self._number())

    def apply(self, operations: Sequence[SetEntryOperation]) -> list[int]:
        """Carry operations out; return for each 0, an errno, or UNKNOWN (-1).

        Adding what is there and deleting what is not are successes. ENOENT: the set is missing, or not one of ours.
        EINVAL: no member of such a set.
        """
        results = [0] * len(operations)
        self._make_lengths(operations)
        for start in range(0, len(operations), OPERATIONS_PER_TRANSACTION):
            chunk = range(start, min(start + OPERATIONS_PER_TRANSACTION, len(operations)))
            self._carry_out(self._changes(operations, chunk, results), results)
        return results

    def _changes(self, operations: Sequence[SetEntryOperation], chunk: range, results: list[int]) -> list[_Change]:
        """Return what the operations with these indices ask for. Of several on one member the last decides."""
        changes: dict[tuple[Role, SetEntry], _Change] = {}
        for index in chunk:
            operation = operations[index]
            role, entry = operation.role, operation.entry
            definition = self._definitions.get(role)
            if definition is None:
                results[index] = ENOENT
                continue
            try:
                member = codec.encode_member(entry, definition)
            except ValueError:
                results[index] = EINVAL
                continue
            layout = definition.layout
            name = definition.name if not layout.networks else set_name(definition, codec.prefix_length(entry))
            identity = role, entry._replace(mark=0) if entry.mark else entry
            before = changes.get(identity)
            indices = [index] if before is None else [*before.operations, index]
            changes[identity] = _Change(operation.verb, name, layout.marks, member, indices)
        return list(changes.values())

    def _carry_out(self, changes: list[_Change], results: list[int]) -> None:
        """Send changes until none is left that the kernel refuses."""
        length = MEMBERS_PER_MESSAGE
        while changes:
            messages = _gather(changes, length)
            requests = [
                codec.encode_members(one[0].verb, one[0].name, [change.member for change in one]) for one in messages
            ]
            outcome = self._socket.transact(requests, opening=codec.OPENING, end=codec.END)
            self._note_generations(outcome.replies)
            if not outcome.failures:
                return
            errors = {index: failure.error for index, failure in outcome.failures.items()}
            if UNKNOWN in errors.values():
                self._generation.forget()
                self._read.forget()
                _note(changes, UNKNOWN, results)
                return
            length = 1 if any(len(messages[index]) > 1 for index in errors) else MEMBERS_PER_MESSAGE
            changes = _without_refused(messages, errors, results)

    def _note_generations(self, replies: Iterable[bytes]) -> None:
        """Note which generations our transactions made; after an answer that is none, nothing is known."""
        for generation in (self._generation, self._read):
            for reply in replies:
                try:
                    generation.advance(codec.decode_generation(reply))
                except MalformedMessage:
                    generation.forget()

    def _make_lengths(self, operations: Iterable[SetEntryOperation]) -> None:
        """Make the sets for lengths of prefixes that are new; what fails here, the kernel refuses afterwards."""
        wanted: dict[Role, set[int]] = {}
        for operation in operations:
            role, entry = operation.role, operation.entry
            if role in self.lengths and operation.verb is Verb.ADD:
                length = codec.prefix_length(entry)
                if length not in self.lengths[role] and 0 <= length <= len(entry.source) * 8:
                    wanted.setdefault(role, set()).add(length)
        if wanted and self.make is not None:
            with suppress(OSError):
                self.make(wanted)

    def _named(self) -> list[tuple[str, SetDefinition, int | None]]:
        """Return all sets that there should be: the name, whose it is, and for which length of a prefix."""
        return [
            (set_name(definition, length), definition, length)
            for role, definition in self._definitions.items()
            for length in (sorted(self.lengths[role]) if role in self.lengths else (None,))
        ]

    def _number(self) -> int:
        return codec.decode_generation(self._socket.ask(codec.GET_GENERATION))

    def _find(self) -> dict[str, tuple[codec.SetHeader, int | None]]:
        """Return what sets there are by name, with the number of members; take note of lengths of prefixes."""
        try:
            listed = map(codec.decode_set, self._socket.dump(codec.GET_SETS))
        except OSError as error:
            if error.errno == ENOENT:  # there is no table
                return {}
            raise
        found = {name: (header, count) for name, header, count in listed}
        for role, known in self.lengths.items():
            lengths = (length_in(name, self._definitions[role]) for name in found)
            # Not in place: another thread may be reading it.
            self.lengths[role] = known | {length for length in lengths if length is not None}
        return found

    def _read_one(self, name: str, definition: SetDefinition, length: int | None, count: int | None) -> set[SetEntry]:
        found: set[SetEntry] = set()
        for _ in range(READ_ATTEMPTS):
            payloads = self._socket.dump(codec.encode_list(name))
            members = {entry for payload in payloads for entry in codec.decode_members(payload, definition, length)}
            if len(members) == count or (count is None and members <= found) or len(payloads) <= 1:
                return members | found
            found |= members
        return found


def open_netfilter(traffic: MessageCounts | None = None) -> NetlinkSocket:
    """Open a socket to nf_tables.

    Raises:
        MissingPiece: if the kernel has no nf_tables, or does not let us use it.

    """
    try:
        opened = NetlinkSocket(NETLINK_NETFILTER, traffic=traffic)
    except OSError as error:
        if error.errno == EPROTONOSUPPORT:
            raise MissingPiece("the kernel has no nfnetlink", "load the module nfnetlink") from error
        raise
    try:
        opened.ask(codec.GET_GENERATION)
    except OSError as error:
        opened.close()
        if error.errno in {EINVAL, EOPNOTSUPP, EPROTONOSUPPORT}:
            raise MissingPiece("the kernel has no nf_tables", "load the module nf_tables") from error
        if error.errno == EPERM:
            raise MissingPiece(
                "nf_tables may not be read or written", "run as root with the capability CAP_NET_ADMIN"
            ) from error
        raise
    return opened


def _gather(changes: Iterable[_Change], length: int) -> list[list[_Change]]:
    """Return changes by message, at most ``length`` in each: what goes is before what comes in its place."""
    gathered: dict[tuple[bool, str], list[_Change]] = {}
    for change in changes:
        gathered.setdefault((change.verb is Verb.ADD, change.name), []).append(change)
    return [
        alike[start : start + length]
        for _, alike in sorted(gathered.items(), key=lambda item: item[0][0])
        for start in range(0, len(alike), length)
    ]


def _without_refused(
    messages: Sequence[Sequence[_Change]], errors: Mapping[int, int], results: list[int]
) -> list[_Change]:
    """Return what is to be sent again, and note what became of the rest.

    A message of several members says nothing of each. Deleting what is not there has succeeded. A key that is mapped to
    something else is deleted before it is added, in the same transaction.
    """
    kept = [change for index, one in enumerate(messages) for change in one if index not in errors or len(one) > 1]
    for index, error in errors.items():
        change, *more = messages[index]
        if more or (change.verb is Verb.DELETE and error == ENOENT):
            continue
        if error == EEXIST and change.is_map and not _is_replaced(change, messages):
            kept += [change._replace(verb=Verb.DELETE), change]
            continue
        _note([change], error, results)
        kept = [one for one in kept if one.operations is not change.operations]
    return kept


def _is_replaced(change: _Change, messages: Iterable[Iterable[_Change]]) -> bool:
    return any(other.verb is Verb.DELETE and other.operations is change.operations for one in messages for other in one)


def _note(changes: Iterable[_Change], error: int, results: list[int]) -> None:
    for change in changes:
        for index in change.operations:
            results[index] = error
