"""How ``diff`` and ``plan`` print changes."""

from __future__ import annotations

from collections import Counter

from ipvs_proxy.commands.text import several, table
from ipvs_proxy.state.documents import Differences

_SIGNS = {"add": "+", "set": "~", "delete": "-"}


def changes_text(found: Differences) -> str:
    """Return one line for each change, by table and object, and a last line with their number."""
    served = several(found.services, "Service")
    if not found.changes:
        return f"nothing would change: the kernel is as {served} {'wants' if found.services == 1 else 'want'} it\n"
    tables = list(dict.fromkeys(change.table for change in found.changes))
    ordered = sorted(found.changes, key=lambda change: (tables.index(change.table), _place(change.object)))
    rows = [(_SIGNS[change.verb], change.table, change.object) for change in ordered]
    verbs = Counter(change.verb for change in found.changes)
    # A table's first row is its header; this one has none.
    return (
        table(rows[0], rows[1:])
        + f"{verbs['add']:,} to add, {verbs['set']:,} to change, {verbs['delete']:,} to delete, for {served}\n"
    )


def _place(name: str) -> tuple[str, bool, str]:
    """Return the sort key of an object: real servers follow their virtual server."""
    return name.partition(" ")[0], " -> " in name, name
