"""The iptables programs of this node: which variant to use, how to run them, and what their failures mean.

A kernel has two worlds of rules, nf_tables and legacy, and each program sees only its own. The program that ``PATH``
names is used, unless the node uses the other one: ``variant`` makes that decision.

All calls block, with a deadline. Every failure is one line that says what is wrong and what to do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import which
from typing import Final

from ipvs_proxy.kernel.filter.iptables.saved import parse
from ipvs_proxy.kernel.filter.iptables.variant import Signs, choose_backend, signs_of
from ipvs_proxy.kernel.filter.processes import run_program
from ipvs_proxy.netlink.errors import MODULES_PACKAGE, Busy, MissingPiece, Unusable, is_passing
from ipvs_proxy.plan.tables import Family

#: Seconds that a program waits for the lock of the legacy variant.
LOCK_WAIT: Final = 5

NF_TABLES: Final = "nf_tables"
LEGACY: Final = "legacy"
_SUFFIXES: Final = {NF_TABLES: "-nft", LEGACY: "-legacy"}

#: The legacy tables that the network namespace of this thread has; without the module, the files are not there.
_LEGACY_TABLES: Final = ("ip_tables_names", "ip6_tables_names")
_PROC_NET: Final = Path("/proc/thread-self/net")

_VERSION: Final = re.compile(r"v(\d+)\.(\d+)(?:\.(\d+))?(?:.*\((nf_tables|legacy)\))?")
#: ``iptables-restore`` can wait for the lock, and knows ``--random-fully``, from here on.
_WAITING_RESTORE: Final = (1, 6, 2)
#: The exit status for "try again" (``RESOURCE_PROBLEM`` of iptables' xtables.h).
_RESOURCE_PROBLEM: Final = 4
#: What the programs print when the kernel or they themselves are short of something.
_SHORTAGE: Final = re.compile(
    "[Oo]ut of memory|Cannot allocate memory|Memory allocation problem|Too many open files|No buffer space available"
)


class MissingNfTables(MissingPiece):
    """The kernel has no nf_tables, so there are no rules in that variant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Iptables:
    """One variant of the programs: the suffix of their names, which world they write to, and why they were chosen."""

    suffix: str
    backend: str
    version: tuple[int, int, int]
    reason: str

    @property
    def random_fully(self) -> bool:
        """Whether MASQUERADE has the option ``--random-fully``."""
        return self.version >= _WAITING_RESTORE

    @property
    def version_text(self) -> str:
        """The version as the programs print it."""
        return ".".join(map(str, self.version))

    def save(self, family: Family) -> str:
        """Read the rules of all tables, in one process: asking for each table by itself takes as long each time.

        Raises:
            Unusable: if they cannot be read.

        """
        return _run([f"{self._program(family)}-save"])

    def restore(self, family: Family, text: str) -> None:
        """Carry out the text, one commit for each table in it; leave all chains alone that it does not name.

        Raises:
            Unusable: if something was refused. Tables that were committed before stay so.

        """
        wait = ["-w", str(LOCK_WAIT)] if self.version >= _WAITING_RESTORE else []
        _run([f"{self._program(family)}-restore", *wait, "--noflush", "--counters"], text=text)

    def check_nat(self, family: Family) -> None:
        """Make sure that there is a nat table, with the question that kube-proxy asks.

        Raises:
            Unusable: if there is none.

        """
        _run([self._program(family), "-w", str(LOCK_WAIT), "-S", "POSTROUTING", "-t", "nat"])

    def _program(self, family: Family) -> str:
        return ("iptables" if family is Family.IPV4 else "ip6tables") + self.suffix

    def look(self, *tables: str) -> Signs:
        """Return what is to be seen of this variant, in both families. Nothing is loaded or created for it.

        Without ``tables``, all are read, which takes a while where there are many rules.
        """
        # Asking the legacy variant for one table would create it, so it is asked for all that there are.
        if self.backend == LEGACY and not has_legacy_tables():
            return Signs()
        options = ["-t", *tables] if tables and self.backend == NF_TABLES else []
        seen = Signs()
        for family in Family:
            try:
                seen += signs_of(parse(_run([f"{self._program(family)}-save", *options])))
            except Unusable as error:
                if is_passing(error):
                    raise
        return seen


def choose_variant() -> Iptables:
    """Find the programs to use.

    Raises:
        MissingPiece: if there are none in ``PATH``.
        Unusable: if they do not run.

    """
    default = _identify("", reason="it is the node's default")
    backend = LEGACY if default.backend == NF_TABLES else NF_TABLES
    suffix = _SUFFIXES[backend]
    if not which(f"iptables{suffix}-restore"):
        return default
    here = default.look("mangle")
    other, there = default, Signs()
    if not here.hint:
        try:
            other = _identify(suffix, reason="")
        except Unusable as error:
            if is_passing(error):
                raise
            return default
        there = other.look()
        if there.rules and not there.hint:
            here = default.look()
    chosen, reason = choose_backend(default.backend, here, backend, there)
    return replace(default if chosen == default.backend else other, reason=reason)


def has_legacy_tables() -> bool:
    """Return whether there is a table: running the legacy programs is a reason for the kernel to load their modules."""
    for name in _LEGACY_TABLES:
        try:
            if (_PROC_NET / name).read_text(encoding="ascii").strip():
                return True
        except FileNotFoundError:
            continue
        except OSError:
            return True
    return False


def installed_variants() -> list[Iptables]:
    """Find all variants that this node has programs of, the default first.

    Raises:
        MissingPiece: if there are none in ``PATH``.
        Unusable: if they do not run.

    """
    default = _identify("", reason="it is the node's default")
    suffix = _SUFFIXES[LEGACY if default.backend == NF_TABLES else NF_TABLES]
    if not which(f"iptables{suffix}-restore"):
        return [default]
    return [default, _identify(suffix, reason="it is the node's other variant")]


def _identify(suffix: str, *, reason: str) -> Iptables:
    program = f"iptables{suffix}"
    printed = _run([program, "--version"])
    found = _VERSION.search(printed)
    if found is None:
        raise Unusable(f"{program} --version printed {printed.strip()!r}, which is no version: is it iptables?")
    major, minor, patch, backend = found.groups()
    # Before 1.8 there was only one world, and no name for it.
    return Iptables(
        suffix=suffix,
        backend=backend or LEGACY,
        version=(int(major), int(minor), int(patch or 0)),
        reason=reason,
    )


def _run(command: list[str], *, text: str | None = None) -> str:
    """Run a program; return what it printed.

    Raises:
        MissingPiece: if the program, a module or a capability is missing.
        Unusable: if it failed otherwise.

    """
    program = command[0]
    finished = run_program(
        command,
        text=text,
        package="install the package iptables (Debian, Ubuntu, Alpine) or iptables-nft (RHEL, Fedora)",
        if_slow="look for a program that holds the rules (fuser /run/xtables.lock) or for very many rules "
        "(iptables-save | wc -l)",
    )
    if finished.returncode:
        raise explain(program, status=finished.returncode, printed=finished.stderr, text=text or "")
    return finished.stdout


def explain(program: str, *, status: int, printed: str, text: str) -> Unusable:
    """Return the error for a program that ended with a status other than 0.

    ``printed`` is its error output, ``text`` what it was to restore. The messages are those of iptables 1.6 to 1.8.
    """
    if "must be root" in printed or "Permission denied" in printed:
        return MissingPiece(f"{program} may not read or write rules", "run as root with the capability CAP_NET_ADMIN")
    if "Could not fetch rule set generation id" in printed or "Failed to initialize nft" in printed:
        return MissingNfTables(
            "the kernel has no nf_tables", "load the module nf_tables, or make iptables-legacy the node's default"
        )
    if status == _RESOURCE_PROBLEM and "xtables lock" in printed:
        return Busy(
            f"{program} waited {LOCK_WAIT} s for the xtables lock",
            "another program is writing rules (fuser /run/xtables.lock names it)",
        )
    if _SHORTAGE.search(printed):
        return Busy(f"{program} failed with status {status}: {_summary(printed, text)}")
    extension = re.search(r"Extension (\S+) revision \d+ not supported", printed)
    if extension:
        return MissingPiece(
            f"the kernel lacks the iptables extension {extension[1]}",
            f"load its module (modprobe xt_{extension[1]}), {MODULES_PACKAGE}",
        )
    library = re.search(r"Couldn't load (?:match|target) `([^']+)'", printed)
    if library:
        return MissingPiece(f"{program} lacks the extension {library[1]}", "install all of the package iptables")
    if "xt_set is not loaded" in printed or "socket to ipset" in printed:
        return MissingPiece(
            "the kernel has no ipset", f"load the modules ip_set and xt_set (modprobe xt_set), {MODULES_PACKAGE}"
        )
    missing_set = re.search(r"Set (\S+) doesn't exist", printed)
    if missing_set:
        return Unusable(f"{program}: the set {missing_set[1]} does not exist, create the sets before the rules")
    return Unusable(f"{program} failed with status {status}: {_summary(printed, text)}")


def _summary(printed: str, text: str) -> str:
    """Put an error output on one line, with the line of the input that it complains about."""
    said = [line.strip() for line in printed.split("\n") if line.strip() and not line.startswith(("Try `", "#"))]
    summary = " ".join(said) or "it printed no reason"
    number = re.search(r"line:? (\d+)", summary)
    lines = text.split("\n")
    if number and 0 < int(number[1]) <= len(lines):
        summary += f" ({lines[int(number[1]) - 1]})"
    return summary
