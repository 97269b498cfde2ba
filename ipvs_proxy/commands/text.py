"""Tables and numbers for a terminal: columns aligned as kubectl does, short units."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
import yaml

#: A column is never cut to less than this.
_LEAST: Final = 10
_UNITS: Final = ("", "k", "M", "G", "T", "P", "E")


def terminal_width() -> int:
    """Return the width of the terminal in columns; 0 if standard output is none, and so nothing is to be cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Iterable[str] = (),
    spare: Iterable[str] = (),
    optional: Iterable[str] = (),
    indent: int = 0,
    width: int | None = None,
) -> str:
    """Return a table with two spaces between columns; ``right`` names the columns that are aligned to the right.

    Columns in ``optional`` are left out if they are empty.

    If it is wider than the terminal (or than ``width``; 0 for no bound), the columns in ``spare`` are left out one by
    one until it fits. If it still does not fit, the widest column is cut.
    """
    limit = (terminal_width() if width is None else width) or sys.maxsize
    columns = [list(column) for column in zip(header, *rows, strict=True)]
    columns = [column for column in columns if column[0] not in optional or any(column[1:])]
    for name in spare:
        if _total(columns, indent) > limit:
            columns = [column for column in columns if column[0] != name]
    excess = _total(columns, indent) - limit
    if excess > 0:
        widest = max(columns, key=_width)
        room = max(_LEAST, _width(widest) - excess)
        widest[:] = [cell if len(cell) <= room else cell[: room - 1] + "…" for cell in widest]
    to_right = set(right)
    aligned = [
        [cell.rjust(_width(column)) if column[0] in to_right else cell.ljust(_width(column)) for cell in column]
        for column in columns
    ]
    return "".join(" " * indent + "  ".join(line).rstrip() + "\n" for line in zip(*aligned, strict=True))


def _width(column: Iterable[str]) -> int:
    return max(map(len, column))


def _total(columns: Sequence[Sequence[str]], indent: int) -> int:
    return indent + sum(map(_width, columns)) + 2 * (len(columns) - 1)


def wrapped(text: str, *, start: str, width: int | None = None) -> str:
    """Return a sentence after ``start``, wrapped to the terminal (or ``width``) and aligned below its beginning."""
    limit = (terminal_width() if width is None else width) or sys.maxsize
    lines = textwrap.wrap(
        text,
        limit,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_on_hyphens=False,
        break_long_words=False,
    )
    return "\n".join(lines) + "\n"


def count(number: float) -> str:
    """Return a number with at most three digits and a decimal unit: ``999``, ``1.2k``, ``35M``."""
    value, unit = float(number), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    digits = f"{value:.1f}" if unit and value < 9.95 else f"{value:.0f}"
    return digits + _UNITS[unit]


def several(number: int, noun: str, plural: str = "s") -> str:
    """Return a number with its noun: ``1 Service``, ``3 Services``."""
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def age(then: datetime, now: datetime) -> str:
    """Return how long ago something was, as kubectl prints it: ``45s``, ``12m``, ``5h``, ``3d``."""
    return duration((now - then).total_seconds())


def duration(seconds: float) -> str:
    """Return a time span in the largest unit of which it has at least two: ``45s``, ``12m``, ``5h``, ``3d``."""
    seconds = max(0, int(seconds))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def document(value: Any, form: str) -> str:
    """Return a document as text; ``form`` is ``json`` or ``yaml``."""
    plain = msgspec.to_builtins(value)
    if form == "json":
        return json.dumps(plain, indent=2) + "\n"
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
