"""Durations as Go and Kubernetes write them."""

from __future__ import annotations

import re
from typing import Any, Final

_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", re.ASCII)
#: Go keeps durations as nanoseconds in 64 bits.
_LONGEST: Final = (2**63 - 1) / 1e9


def duration(value: Any) -> float:
    """Read a duration as Go writes it (``1m30s``); 0 is a duration without a unit. Gives seconds."""
    text = str(value).strip()
    if text == "0":
        return 0.0
    if not text or _DURATION.sub("", text):
        raise ValueError(f"{text!r} is no duration such as 30s or 1m30s")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))
    if seconds > _LONGEST:
        raise ValueError("a duration has 292 years at most")
    return seconds


def duration_text(seconds: float) -> str:
    """Write a duration as Go does: ``1h0m0s``, ``1m30s``, ``500ms``, ``0s``."""
    if 0 < seconds < 1:
        return f"{seconds * 1000:g}ms"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{rest:.9f}".rstrip("0").rstrip(".") + "s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text
