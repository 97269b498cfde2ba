"""How tables and numbers are written on a terminal: aligned columns as kubectl's, units that stay short."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
import yaml

_UNITS: Final = ("", "k", "M", "G", "T", "P", "E")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = (), indent: int = 0) -> str:
    """Write a table with two spaces between columns; ``right`` names the columns that are aligned to the right."""
    lines = [tuple(header), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    to_right = [name in set(right) for name in header]
    return "".join(
        " " * indent
        + "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, to_right, strict=True)
        ).rstrip()
        + "\n"
        for line in lines
    )


def count(number: float) -> str:
    """Write a number with three digits at most and a unit of 1,000: ``999``, ``1.2k``, ``35M``."""
    value, unit = float(number), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    digits = f"{value:.1f}" if unit and value < 9.95 else f"{value:.0f}"
    return digits + _UNITS[unit]


def several(number: int, noun: str, plural: str = "s") -> str:
    """Write a number with its noun: ``1 Service``, ``3 Services``."""
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def age(then: datetime, now: datetime) -> str:
    """Write how long ago something was, as kubectl does: ``45s``, ``12m``, ``5h``, ``3d``."""
    return duration((now - then).total_seconds())


def duration(seconds: float) -> str:
    """Write a time span in its largest unit of which it has two: ``45s``, ``12m``, ``5h``, ``3d``."""
    seconds = max(0, int(seconds))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def document(value: Any, form: str) -> str:
    """Write a document as ``json`` or ``yaml``."""
    plain = msgspec.to_builtins(value)
    if form == "json":
        return json.dumps(plain, indent=2) + "\n"
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
