"""The seam to the packet filter: all that the rest of the program knows of it.

A packet filter keeps the members of each role (``plan.roles``) in sets, and has the rules that masquerade, drop, refuse
and mark by those sets. The rules are the same whatever Services there are: they follow the settings alone, are written
once, and from then on only read, so that an audit that finds nothing wrong writes nothing. Sets exist from the start,
before any rule that refers to one; an empty set matches nothing.

There are two, ``ipset_iptables`` and ``nftables_filter``. Only what opens one (``agent.open_kernel``, and ``node``,
which looks for all that any of them may have left) knows which; everybody else has a ``PacketFilter``. Names of sets
and findings about rules are texts for people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple, Protocol

from ipvs_proxy.plan.masquerading import Masquerading
from ipvs_proxy.plan.tables import Family, Role, SetEntry, SetEntryOperation

#: The values of the setting ``packetFilter``.
AUTO: Final = "auto"
IPTABLES: Final = "iptables"
NFTABLES: Final = "nftables"

#: What the kernel calls the set of a role.
NameOfRole = Callable[[Role], str]


class PacketFilter(Protocol):
    """The sets and rules of some families in one network namespace.

    All calls block. They raise ``Unusable`` if rules cannot be read or written or sets not be made, ``OSError`` if the
    kernel refuses to be read, and ``MalformedMessage`` if its answer is garbage. One thread at a time may use it, but
    for ``repair``, which may run beside the rest.
    """

    #: Whether the rules put marks together bit by bit, from the members of ``plan.roles.MARK_BITS``.
    spells_marks: bool

    def ensure(self) -> list[str]:
        """Make sure that all sets exist; return the names of those that were missing."""

    def missing(self) -> list[str]:
        """Return the names of the sets that ``ensure`` would make."""

    def read(self) -> dict[Role, set[SetEntry]]:
        """Read the members by role; a role whose set is missing, or is something else, is left out."""

    def read_changed(self) -> dict[Role, set[SetEntry] | None]:
        """Read the members of the roles that are not certainly as they were last read, but for what was applied since.

        ``None``: the set is missing, or is something else.
        """

    def apply(self, operations: Sequence[SetEntryOperation]) -> list[int]:
        """Carry operations out in their order; return for each 0, or a code that ``describe`` knows.

        Adding what is there and deleting what is not are successes.
        """

    def describe(self, code: int) -> str:
        """Say what a code of ``apply`` means."""

    def name_of(self, role: Role) -> str:
        """Return what the kernel calls the set of a role."""

    @property
    def settings(self) -> Mapping[Family, Masquerading]:
        """What the rules of each family follow."""

    def follow(self, settings: Mapping[Family, Masquerading]) -> bool:
        """Have the rules follow other settings; return whether they must be written again, by ``repair``."""

    def look(self) -> None:
        """Read the rules ahead of ``write`` and ``find_other_modes``, which for a second take them as they were."""

    def write(self) -> list[str]:
        """Bring the rules to what they should be, as ``look`` found them; say what was wrong, a line for each.

        What came of it is left to the next ``repair`` to look at.
        """

    def drift(self) -> list[str]:
        """Say what is wrong with the rules, a line for each (``IPv4 nat: chain KUBE-SERVICES is missing``)."""

    def repair(self) -> list[str]:
        """Read the rules, write what should be there if anything is not, and look at it; say what was wrong."""

    def find_other_modes(self) -> list[str]:
        """Say what kube-proxy left behind in its other modes, or an agent with another packet filter.

        There is a line for each kind. It serves until our rules do.
        """

    def remove_other_modes(self) -> list[str]:
        """Take away what ``find_other_modes`` finds; say what it was."""

    def read_predecessor(self) -> dict[Role, set[SetEntry]]:
        """Read by role the members that an agent with another packet filter, or kube-proxy's IPVS mode, has left."""

    def writes(self) -> int:
        """Return how many messages and rule sets have been written."""

    def close(self) -> None:
        """Close the sockets."""


class Cleaning(NamedTuple):
    """What was removed (or with a dry run would be), a line for each kind; and what could not be, with the reason."""

    removed: list[str]
    problems: list[str]

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """Note why something could not be removed, and go on."""
        try:
            yield
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            self.problems.append(f"{what}: {reason}")


def counted(number: int, one: str, many: str = "") -> str:
    """Write a number of things: ``1 set``, ``2 sets``."""
    return f"{number} {one if number == 1 else many or one + 's'}"


class Traces(Protocol):
    """What a packet filter, of ours or of kube-proxy, has left on the node, wherever it may be: to be removed."""

    def read(self) -> dict[Role, set[SetEntry]]:
        """Read the members by role; none if the kernel has no such sets."""

    def remove(self, cleaning: Cleaning, *, kube_proxy: bool, with_sets: bool, dry_run: bool) -> None:
        """Remove the rules, then if ``with_sets`` the sets that they refer to; note what went, and what would not.

        ``kube_proxy``: also what only kube-proxy's other modes have. With ``dry_run`` only note what would go.
        """

    def close(self) -> None:
        """Close the sockets."""
