"""How ``diff`` and ``plan`` print changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Final

from ipvs_proxy.commands.text import several, table
from ipvs_proxy.state.documents import Differences

_SIGNS: Final = {"add": "+", "set": "~", "delete": "-"}
#: More sets to make, or more chains and jumps of one family that are missing, are one line with their number: where
#: nothing of ours is there yet, these are over a hundred, and what somebody looks for is below them.
_LISTED: Final = 10


def changes_text(found: Differences) -> str:
    """Return a line for each change, by table and object, and a last line with their number.

    Sets and packet rules that are missing as a whole are one line.
    """
    served = several(found.services, "Service")
    if not found.changes:
        return f"nothing would change: the kernel is as {served} {'wants' if found.services == 1 else 'want'} it\n"
    tables = list(dict.fromkeys(change.table for change in found.changes))
    ordered = sorted(
        found.changes, key=lambda change: (tables.index(change.table), _place(change.table, change.object))
    )
    rows = _condensed([(_SIGNS[change.verb], change.table, change.object) for change in ordered])
    verbs = Counter(change.verb for change in found.changes)
    # A table's first row is its header; this one has none.
    return (
        table(rows[0], rows[1:])
        + f"{verbs['add']:,} to add, {verbs['set']:,} to change, {verbs['delete']:,} to delete, for {served}\n"
    )


def _place(table: str, name: str) -> tuple[bool, str, bool, str]:
    """Return the sort key of an object: real servers follow their virtual server, members come after all sets."""
    return table == "sets" and " " in name, name.partition(" ")[0], " -> " in name, name


def _condensed(rows: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    condensed: list[tuple[str, str, str]] = []
    for kind, grouped in groupby(rows, _frame_of):
        group = list(grouped)
        if kind and len(group) > _LISTED:
            sign, name, _ = group[0]
            group = [(sign, name, f"{kind.format(len(group))} (-o json names them)")]
        condensed += group
    return condensed


def _frame_of(row: tuple[str, str, str]) -> str:
    """Return how to count a change with its neighbours, if it is of what is the same whatever Services there are."""
    sign, name, item = row
    if name == "sets" and sign == "+" and " " not in item:
        return "{} sets"
    if name == "rules" and item.endswith(" is missing"):
        return f"{item.partition(' ')[0]}: {{}} chains and jumps that are missing"
    return ""
