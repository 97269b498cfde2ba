"""The ipsets that the masquerade and filter rules refer to.

The invariant: every operation gets its own result, whatever happens to the others. Many members travel in one message.
The kernel stops at the first member that fails and names it; the members behind it are then sent one to a message, so
that all results are known after at most two rounds, however many members fail.

Sets are made with kube-proxy's parameters. Sets that exist are taken over whatever their parameters are, as long as
type and family fit.

A hash set that is full is given more room before anything else is tried. The kernel cannot enlarge a set, so a larger
one with the same members takes its place. It has at least twice the room, so that the work stays in proportion to what
was added since the last time; and the two are swapped in one step, so that no packet meets an empty set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from errno import EINVAL, ENOENT, EPERM, EPROTONOSUPPORT
from itertools import chain
from typing import Final, NamedTuple

from ipvs_proxy.kernel.filter.ipset import codec
from ipvs_proxy.kernel.filter.ipset.names import SetDefinition, SetType
from ipvs_proxy.netlink.errors import MODULES_PACKAGE, UNKNOWN, MissingPiece, Unusable, describe, is_passing
from ipvs_proxy.netlink.socket import NETLINK_NETFILTER, MessageCounts, NetlinkSocket
from ipvs_proxy.netlink.wire import Acknowledgement, Request
from ipvs_proxy.plan.tables import Role, SetEntry, SetEntryOperation, Verb

#: Members in one message: one of IPv6 takes up to 84 bytes, and a failing message comes back whole.
MEMBERS_PER_MESSAGE: Final = 256

#: The set that a full one's members go to; it exists only meanwhile.
GROWING: Final = "IPVS-PROXY-GROWING"
#: No set gets room for more members: sixteen times what kube-proxy's have. Of hash:ip,port,net they take some 100 MB.
LARGEST: Final = 1 << 20

_EXISTS: Final = 4103  # IPSET_ERR_EXIST, also the answer to creating a set that exists


class _Run(NamedTuple):
    """Members that go in one message: the operations' indices and the encoded members."""

    verb: Verb
    definition: SetDefinition
    indices: list[int]
    members: list[bytes]


class Sets:
    """Sets of the network namespace of the thread that makes this object. One thread at a time may use it.

    ``hash_size`` and ``maximum_members`` (``maxelem``) are those of hash sets that ``ensure`` creates, and ``largest``
    is how far they grow.

    Raises:
        MissingPiece: if the kernel has no ipset, or does not let us use it.
        Unusable: if this program does not understand the kernel's ipset.
        ValueError: if a name is no set's.

    """

    def __init__(
        self,
        definitions: Iterable[SetDefinition],
        *,
        hash_size: int = 1024,
        maximum_members: int = 65536,
        largest: int = LARGEST,
        traffic: MessageCounts | None = None,
    ) -> None:
        self._definitions = {definition.role: definition for definition in definitions}
        for name in self._names():
            if not 0 < len(name.encode()) <= codec.NAME_LENGTH:
                raise ValueError(f"{name!r} is no set's name: it needs 1 to {codec.NAME_LENGTH} bytes")
        self._hash_size = hash_size
        self._maximum_members = maximum_members
        self._largest = largest
        try:
            self._socket = NetlinkSocket(NETLINK_NETFILTER, traffic=traffic)
        except OSError as error:
            if error.errno == EPROTONOSUPPORT:
                raise MissingPiece("the kernel has no nfnetlink", "load the module nfnetlink") from error
            raise
        self._protocol = self._negotiate()
        #: Of the sets of which all is known: what the kernel's answer was, as a hash.
        self._known: dict[Role, int] = {}

    @property
    def traffic(self) -> MessageCounts:
        """What was sent to the kernel so far."""
        return self._socket.traffic

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def ensure(self) -> list[str]:
        """Create the sets that are missing; return their names.

        Raises:
            Unusable: naming each set that exists with another type or family, each that the kernel has no type for, and
                each that could not be made. All others have been made.

        """
        created: list[str] = []
        problems: list[str] = []
        for definition in self._definitions.values():
            try:
                found = self._header(definition.name)
                if found is None:
                    self._create(definition, self._maximum_members)
                    created.append(definition.name)
                elif not _fits(found, definition):
                    problems.append(
                        f"the set {definition.name} is a {found.type} set of family {found.family}, not "
                        f"{definition.type.value} of {definition.family.label}: "
                        f"delete it (ipset destroy {definition.name})"
                    )
            except OSError as error:
                problems.append(f"the set {definition.name} cannot be made: {error.strerror or error}")
        if problems:
            raise Unusable("; ".join(problems))
        return created

    def missing(self) -> list[str]:
        """Return the names of the sets that do not exist.

        Raises:
            OSError: if the kernel refuses.

        """
        return [name for name in self._names() if self._header(name) is None]

    def present(self) -> list[str]:
        """Return the names of the sets that exist, of any type; also of one that was to replace a full one.

        Raises:
            OSError: if the kernel refuses.

        """
        return [name for name in (*self._names(), GROWING) if self._header(name) is not None]

    def read(self) -> dict[Role, set[SetEntry]]:
        """Read the members by role; a set that is missing is left out, as is one of another type.

        Raises:
            OSError: if the kernel refuses.
            MalformedMessage: if a reply is garbage.

        """
        self._known = {}
        return {role: members for role, members in self.read_changed().items() if members is not None}

    def read_changed(self) -> dict[Role, set[SetEntry] | None]:
        """Read the members of the sets that are not certainly as they were last read; ``None`` if one is missing.

        Certain is a set to which nothing was applied since, and of which the kernel gives the same answer as then.
        Reading the members from such an answer would take twenty times as long as getting it. Raises as ``read`` does;
        then what was certain before is so still.
        """
        found: dict[Role, set[SetEntry] | None] = {}
        known: dict[Role, int] = {}
        for role, definition in self._definitions.items():
            header = self._header(definition.name)
            if header is None or not _fits(header, definition):
                found[role] = None
                continue
            payloads = self._socket.dump(codec.encode_list(definition.name, protocol=self._protocol))
            known[role] = hash(tuple(payloads))
            if known[role] != self._known.get(role):
                found[role] = {
                    entry for payload in payloads for entry in codec.decode_members(payload, definition.type)
                }
        self._known = known
        return found

    def apply(self, operations: Sequence[SetEntryOperation]) -> list[int]:
        """Carry operations out; return for each 0, an errno or ipset's error (``describe_error``), or UNKNOWN (-1).

        Adding what is there and deleting what is not are successes. Operations on the same member keep their order;
        others are gathered by set and verb. ENOENT: the set is missing, or not one of ours. EINVAL: no member of such a
        set.
        """
        results = [0] * len(operations)
        runs: dict[tuple[Role, Verb], _Run] = {}
        verbs: dict[tuple[Role, SetEntry], Verb] = {}
        for index, operation in enumerate(operations):
            verb, role, entry = operation.verb, operation.role, operation.entry
            definition = self._definitions.get(role)
            if definition is None:
                results[index] = ENOENT
                continue
            self._known.pop(role, None)
            try:
                member = codec.encode_member(entry, definition.type)
            except ValueError:
                results[index] = EINVAL
                continue
            if verbs.setdefault((role, entry), verb) is not verb:
                self._carry_out(list(runs.values()), results)
                runs, verbs = {}, {(role, entry): verb}
            run = runs.setdefault((role, verb), _Run(verb, definition, [], []))
            run.indices.append(index)
            run.members.append(member)
        self._carry_out(list(runs.values()), results)
        return results

    def destroy(self, names: Iterable[str]) -> list[int]:
        """Destroy sets; return for each 0 (also if it was missing), an errno or ipset's error, or UNKNOWN (-1)."""
        codes = self._socket.execute([codec.encode_destroy(name, protocol=self._protocol) for name in names])
        return [0 if code == ENOENT else code for code in codes]

    def _carry_out(self, runs: list[_Run], results: list[int]) -> None:
        """Send members, many to a message, then those behind a failing one by themselves; note the failures."""
        behind, full = self._send(_cut(runs, MEMBERS_PER_MESSAGE), results)
        if full:
            grown = self._make_room(full)
            behind += [run for run in full if run.definition.role not in grown]
            again = _cut([run for run in full if run.definition.role in grown], MEMBERS_PER_MESSAGE)
            behind += chain.from_iterable(self._send(again, results))
        self._send(_cut(behind, 1), results)

    def _make_room(self, full: list[_Run]) -> set[Role]:
        """Make sets larger that were found full; return the roles of those that have room now."""
        wanted: Counter[Role] = Counter()
        for run in full:
            wanted[run.definition.role] += len(run.indices)
        grown: set[Role] = set()
        for role, count in wanted.items():
            # What cannot be made larger is reported as full.
            with suppress(OSError, ValueError):
                if self._grow(self._definitions[role], count):
                    grown.add(role)
        return grown

    def _send(self, runs: list[_Run], results: list[int]) -> tuple[list[_Run], list[_Run]]:
        """Send one message for each run; return what the kernel did not look at, and what found its set full.

        The kernel stops at the first member that fails. Runs that found their set full have that member too.
        """
        for run in runs:
            for index in run.indices:
                results[index] = 0
        failures = self._socket.send(list(map(self._request, runs)))
        behind: list[_Run] = []
        full: list[_Run] = []
        for index, outcome in failures.items():
            rest, failed = _note(runs[index], outcome, results)
            if outcome.error == codec.FULL and rest.definition.type is not SetType.BITMAP_PORT:
                full.append(failed)
            elif rest.indices:
                behind.append(rest)
        return behind, full

    def _grow(self, definition: SetDefinition, wanted: int) -> bool:
        """Put a larger set, with room for ``wanted`` more, in the place of a full one; return whether that worked."""
        listed = self._socket.dump(codec.encode_list(definition.name, protocol=self._protocol))
        members = [member for payload in listed for member in codec.decode_members(payload, definition.type)]
        maximum = max(map(codec.decode_maximum, listed), default=0)
        room = max(maximum * 2, 1 << (len(members) + wanted - 1).bit_length())
        room = min(room, self._largest)
        if room <= maximum:
            return False
        larger = definition._replace(name=GROWING)
        self.destroy([GROWING])  # that of an agent that was killed here
        self._create(larger, room)
        encoded = [codec.encode_member(member, definition.type) for member in members]
        runs = _cut([_Run(Verb.ADD, larger, list(range(len(encoded))), encoded)], MEMBERS_PER_MESSAGE)
        failures = self._socket.send(list(map(self._request, runs)))
        swapped = [1]
        if not failures:
            swapped = self._socket.execute([codec.encode_swap(GROWING, definition.name, protocol=self._protocol)])
        self.destroy([GROWING])
        return swapped == [0]

    def _request(self, run: _Run) -> Request:
        return codec.encode_members(run.verb, run.definition.name, run.members, protocol=self._protocol)

    def _names(self) -> list[str]:
        return [definition.name for definition in self._definitions.values()]

    def _header(self, name: str) -> codec.SetHeader | None:
        try:
            return codec.decode_header(self._socket.ask(codec.encode_get_header(name, protocol=self._protocol)))
        except OSError as error:
            if error.errno == ENOENT:
                return None
            raise

    def _create(self, definition: SetDefinition, maximum_members: int) -> None:
        request = codec.encode_create(
            definition,
            protocol=self._protocol,
            revision=self._revision(definition),
            hash_size=self._hash_size,
            maximum_members=maximum_members,
        )
        (code,) = self._socket.execute([request])
        if code and code != _EXISTS:  # somebody else was faster
            raise OSError(code, describe_error(code))

    def _revision(self, definition: SetDefinition) -> int:
        """Choose the revision of the set's type: the one we want, or the next that the kernel has."""
        try:
            reply = self._socket.ask(codec.encode_get_type(definition.type, definition.family, protocol=self._protocol))
        except OSError as error:
            if is_passing(error):
                raise
            module = "ip_set_" + definition.type.value.replace(":", "_").replace(",", "")
            raise OSError(
                error.errno, f"the kernel has no set type {definition.type.value}: load the module {module}"
            ) from error
        lowest, highest = codec.decode_revisions(reply)
        return max(lowest, min(highest, codec.REVISIONS[definition.type]))

    def _negotiate(self) -> int:
        """Choose the protocol version, which makes the kernel load ipset."""
        try:
            reply = self._socket.ask(codec.encode_get_protocol())
        except OSError as error:
            self.close()
            if error.errno in {EINVAL, EPROTONOSUPPORT}:
                raise MissingPiece("the kernel has no ipset", f"load the module ip_set, {MODULES_PACKAGE}") from error
            if error.errno == EPERM:
                raise MissingPiece(
                    "ipsets may not be read or written", "run as root with the capability CAP_NET_ADMIN"
                ) from error
            raise
        lowest, highest = codec.decode_protocol(reply)
        ours = codec.PROTOCOLS
        if lowest > ours[-1] or highest < ours[0]:
            self.close()
            raise Unusable(f"the kernel's ipset speaks protocol {lowest} to {highest}, not {ours[0]} to {ours[-1]}")
        return min(highest, ours[-1])


def describe_error(code: int) -> str:
    """Say what a result means: an errno, one of ipset's errors (from 4096), or UNKNOWN."""
    return codec.error_text(code) or describe(code)


def _cut(runs: Iterable[_Run], length: int) -> list[_Run]:
    return [
        _Run(run.verb, run.definition, run.indices[start : start + length], run.members[start : start + length])
        for run in runs
        for start in range(0, len(run.indices), length)
    ]


def _note(run: _Run, outcome: Acknowledgement, results: list[int]) -> tuple[_Run, _Run]:
    """Note the failure of one member; return those behind it, and those with it. Or of all, if no member is named."""
    line = 0 if outcome.error == UNKNOWN else codec.failed_line(outcome.request)
    if not 1 <= line <= len(run.indices):
        for index in run.indices:
            results[index] = outcome.error
        return run._replace(indices=[], members=[]), run
    results[run.indices[line - 1]] = outcome.error
    return (
        run._replace(indices=run.indices[line:], members=run.members[line:]),
        run._replace(indices=run.indices[line - 1 :], members=run.members[line - 1 :]),
    )


def _fits(found: codec.SetHeader, definition: SetDefinition) -> bool:
    family = 0 if definition.type is SetType.BITMAP_PORT else definition.family
    return found == (definition.type.value, family)
