"""Durations as Go and Kubernetes write them."""

from __future__ import annotations

import re
from typing import Final

from ipvs_proxy.kube.texts import quote

_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", re.ASCII)
_DURATION: Final = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)
#: Characters of a duration. Whoever may edit a Service may write 256 KiB into an annotation, and the time that it takes
#: to refuse a text may grow with the square of its length.
_MAX_LENGTH: Final = 1000
#: Seconds. Go keeps a duration as nanoseconds in 64 bits.
_LONGEST: Final = (2**63 - 1) / 1e9


def duration(value: object) -> float:
    """Return the seconds of a duration as Go writes it (``1m30s``); 0 needs no unit.

    Raises:
        ValueError: it is not a duration, or is longer than Go can hold. The message quotes the beginning of the text.

    """
    written = str(value)
    text = written.strip() if len(written) <= _MAX_LENGTH else ""
    if text == "0":
        return 0.0
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{quote(written)!r} is not a duration such as 30s or 1m30s")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if seconds > _LONGEST:
        raise ValueError("a duration is at most 292 years")
    return seconds


def duration_text(seconds: float) -> str:
    """Return a duration as Go writes it: ``1h0m0s``, ``1m30s``, ``500ms``, ``0s``."""
    if 0 < seconds < 1:
        return f"{seconds * 1000:g}ms"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{rest:.9f}".rstrip("0").rstrip(".") + "s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text
