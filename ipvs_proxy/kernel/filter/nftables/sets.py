"""The members of the sets of our table.

The invariant: every operation gets its own result, whatever happens to the others. A batch is one transaction, which
takes effect as a whole. The kernel looks at every message of it and says which it refuses, and then carries out none
(``nfnetlink_rcv_batch``): those that were refused are left out and the rest is sent again. A message with many members
is refused without saying for which, so they are then sent one to a message: all results are known after three rounds.

What belongs together stands or falls together: all changes of one member's mark, and of the source ranges of one
address and port.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from errno import EEXIST, EINVAL, ENOENT, EOPNOTSUPP, EPERM, EPROTONOSUPPORT
from typing import Final, NamedTuple

from ipvs_proxy.kernel.filter.nftables import codec
from ipvs_proxy.kernel.filter.nftables.generation import Generation
from ipvs_proxy.kernel.filter.nftables.names import SetDefinition
from ipvs_proxy.kernel.filter.nftables.ranges import Guarded, SourceRanges, outermost
from ipvs_proxy.netlink.errors import UNKNOWN, MissingPiece
from ipvs_proxy.netlink.socket import NETLINK_NETFILTER, MessageCounts, NetlinkSocket
from ipvs_proxy.plan.tables import Role, SetEntry, SetEntryOperation, Verb

#: Operations in one transaction: with the longest members it has 110 KB, well below the send buffer.
OPERATIONS_PER_TRANSACTION: Final = 1024
#: Members in one message: the longest take 100 bytes each, and the attribute with all of them at most 64 KiB.
MEMBERS_PER_MESSAGE: Final = 512


class _Change(NamedTuple):
    """A member to add to a set or to delete from it, as it is sent; and the operations that ask for it, by index.

    Changes with the same ``operations``, which is one object, stand or fall together.
    """

    verb: Verb
    definition: SetDefinition
    member: bytes
    operations: list[int]


class Sets:
    """The sets of our table in the network namespace of the thread that makes this object. One thread may use it.

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
        self._ranges = {role: SourceRanges() for role, one in self._definitions.items() if one.layout.networks}
        self._unread = set(self._ranges)
        self._generation = generation or Generation()
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
        found = self._headers()
        return {
            one.name: one.name in found
            for one in self._definitions.values()
            if found.get(one.name) != codec.header_of(one)
        }

    def read(self) -> dict[Role, set[SetEntry]]:
        """Read the members by role; a set that is missing is left out, as is one of another type.

        Raises:
            OSError: if the kernel refuses.
            MalformedMessage: if a reply is garbage.

        """
        unfit = self.unfit()
        found: dict[Role, set[SetEntry]] = {}
        for role, definition in self._definitions.items():
            if definition.name not in unfit:
                found[role] = self._read_one(definition)
        return found

    def apply(self, operations: Sequence[SetEntryOperation]) -> list[int]:
        """Carry operations out; return for each 0, an errno, or UNKNOWN (-1).

        Adding what is there and deleting what is not are successes. ENOENT: the set is missing, or not one of ours.
        EINVAL: no member of such a set. EEXIST: a source range overlaps one that somebody else put there.
        """
        results = [0] * len(operations)
        for start in range(0, len(operations), OPERATIONS_PER_TRANSACTION):
            chunk = range(start, min(start + OPERATIONS_PER_TRANSACTION, len(operations)))
            self._apply_together(operations, chunk, results)
        return results

    def _apply_together(self, operations: Sequence[SetEntryOperation], chunk: range, results: list[int]) -> None:
        """Carry out the operations with these indices. Of several on one member the last decides."""
        changes: dict[tuple[Role, SetEntry], _Change] = {}
        ranges: dict[tuple[SetDefinition, Guarded], list[int]] = {}
        for index in chunk:
            verb, role, entry = operations[index]
            definition = self._definitions.get(role)
            if definition is None:
                results[index] = ENOENT
                continue
            try:
                member = codec.encode_member(entry, definition)
            except ValueError:
                results[index] = EINVAL
                continue
            if definition.layout.networks:
                ranges.setdefault((definition, (entry.address, entry.protocol, entry.port)), []).append(index)
                continue
            identity = role, entry._replace(mark=0) if entry.mark else entry
            before = changes.get(identity)
            indices = [index] if before is None else [*before.operations, index]
            changes[identity] = _Change(verb, definition, member, indices)
        wanted = {
            key: self._wanted_ranges(*key, [operations[index] for index in indices]) for key, indices in ranges.items()
        }
        of_ranges = [
            change for key, indices in ranges.items() for change in self._change_ranges(*key, wanted[key], indices)
        ]
        self._carry_out([*changes.values(), *of_ranges], results)
        for (definition, guarded), indices in ranges.items():
            if results[indices[0]]:
                self._unread.add(definition.role)
            else:
                self._ranges[definition.role].note(guarded, wanted[definition, guarded])

    def _wanted_ranges(
        self, definition: SetDefinition, guarded: Guarded, operations: Iterable[SetEntryOperation]
    ) -> set[SetEntry]:
        """Return the ranges of an address, protocol and port after some operations."""
        if definition.role in self._unread:
            with suppress(OSError):  # there is no such set: the kernel will say so again
                self._read_one(definition)
        ranges = self._ranges[definition.role].of(guarded)
        for verb, _, entry in operations:
            if verb is Verb.DELETE:
                ranges.discard(entry)
            else:
                ranges.add(entry)
        return ranges

    def _change_ranges(
        self, definition: SetDefinition, guarded: Guarded, wanted: set[SetEntry], indices: list[int]
    ) -> Iterator[_Change]:
        """Return the changes that make the ranges of an address, protocol and port what they should be."""
        before, after = outermost(self._ranges[definition.role].of(guarded)), outermost(wanted)
        for verb, entries in ((Verb.DELETE, before - after), (Verb.ADD, after - before)):
            for entry in entries:
                yield _Change(verb, definition, codec.encode_member(entry, definition), indices)

    def _carry_out(self, changes: list[_Change], results: list[int]) -> None:
        """Send changes until none is left that the kernel refuses."""
        length = MEMBERS_PER_MESSAGE
        while changes:
            messages = _gather(changes, length)
            requests = [
                codec.encode_members(one[0].verb, one[0].definition.name, [change.member for change in one])
                for one in messages
            ]
            outcome = self._socket.transact(requests, begin=codec.BEGIN, end=codec.END)
            for reply in outcome.replies:
                self._generation.advance(codec.decode_generation(reply))
            if not outcome.failures:
                return
            errors = {index: failure.error for index, failure in outcome.failures.items()}
            if UNKNOWN in errors.values():
                self._generation.forget()
                _note(changes, UNKNOWN, results)
                return
            length = 1 if any(len(messages[index]) > 1 for index in errors) else MEMBERS_PER_MESSAGE
            changes = _without_refused(messages, errors, results)

    def _read_one(self, definition: SetDefinition) -> set[SetEntry]:
        payloads = self._socket.dump(codec.encode_list(definition.name))
        members = {entry for payload in payloads for entry in codec.decode_members(payload, definition)}
        if definition.role in self._ranges:
            members = self._ranges[definition.role].reconcile(members)
            self._unread.discard(definition.role)
        return members

    def _headers(self) -> dict[str, codec.SetHeader]:
        try:
            return dict(map(codec.decode_set, self._socket.dump(codec.GET_SETS)))
        except OSError as error:
            if error.errno == ENOENT:  # there is no table
                return {}
            raise


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
    """Return changes by message, at most ``length`` in each: what goes before what comes, so that nothing overlaps."""
    gathered: dict[tuple[bool, str], list[_Change]] = {}
    for change in changes:
        gathered.setdefault((change.verb is Verb.ADD, change.definition.name), []).append(change)
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
        if error == EEXIST and change.definition.layout.marks and not _is_replaced(change, messages):
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
