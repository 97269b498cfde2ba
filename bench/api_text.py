"""Figures and tables as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def size(amount: float) -> str:
    """Format a number of bytes with three digits."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if amount >= factor * 0.9995:
            value = amount / factor
            return f"{value:,.{max(0, 3 - len(str(int(value))))}f} {unit}"
    return f"{amount:.0f} B"


def rate(amount: float) -> str:
    """Format bytes a second."""
    return f"{size(amount)}/s"


def bits(amount: float) -> str:
    """Format bytes a second as bits on the wire."""
    return f"{size(amount * 8)[:-1]}bit/s"


def percent(part: float) -> str:
    """Format a part of one."""
    return f"{part * 100:.0f} %"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are figures."""
    lines = [head, ("---", *("---:" for _ in head[1:])), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
