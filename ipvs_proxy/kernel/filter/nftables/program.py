"""The program ``nft``: how to run it, and what its failures mean.

Rules go through it and not through our own codec: its text is what operators read, and it knows what the kernel wants
of each rule. It runs only where a table has to be read or written as a whole: at a start, and when somebody else has
changed any rule of the node. libnftables, of which it is made, would save the start of a process each time; but its
memory would be ours for ever, and its crashes, too (docs/nftables.md has numbers).

All calls block, with a deadline. Every failure is one line that says what is wrong and what to do.
"""

from __future__ import annotations

import re
from typing import Final

from ipvs_proxy.kernel.filter.processes import run_program
from ipvs_proxy.netlink.errors import Busy, MissingPiece, Unusable

#: What the rules need of the kernel beside nf_tables itself.
MODULES: Final = ("nft_chain_nat", "nft_ct", "nft_fib_inet", "nft_masq", "nft_nat", "nft_reject_inet")
_NAME: Final = "nft"
_SHORTAGE: Final = re.compile(
    "[Oo]ut of memory|Cannot allocate memory|Too many open files|No buffer space available|Resource temporarily"
)


def read_tables() -> str:
    """Return all tables of the family inet as nft lists them, without the members of sets.

    Asked for one table, nft 1.0.6 reads all members of its sets before it leaves them out: seconds for 100,000.

    Raises:
        Unusable: if they cannot be read.

    """
    return _run(["--terse", "list", "ruleset", "inet"])


def carry_out(text: str) -> None:
    """Carry out commands as one transaction.

    Raises:
        Unusable: if something was refused; then nothing has changed.

    """
    _run(["--file", "-"], text=text)


def _run(arguments: list[str], *, text: str | None = None) -> str:
    finished = run_program([_NAME, *arguments], text=text, package="install the package nftables")
    if finished.returncode:
        raise explain(finished.returncode, finished.stderr)
    return finished.stdout


def explain(status: int, printed: str) -> Unusable:
    """Return the error for an nft that ended with a status other than 0, from what it printed about it."""
    said = " ".join(line.strip() for line in printed.splitlines() if line.strip(" ^~\t"))
    summary = f"nft failed with status {status}: {said or 'it printed no reason'}"
    if _SHORTAGE.search(printed):
        return Busy(summary)
    if "Operation not permitted" in printed or "must be root" in printed:
        return MissingPiece("nft may not read or write rules", "run as root with the capability CAP_NET_ADMIN")
    if "Protocol not supported" in printed or "cache initialization failed: Invalid argument" in printed:
        return MissingPiece("the kernel has no nf_tables", "load the module nf_tables")
    if "Could not process rule: No such file or directory" in printed:
        return MissingPiece(summary, f"if the kernel lacks one, load the modules {', '.join(MODULES)}")
    return Unusable(summary)
