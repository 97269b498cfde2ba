"""Compares the outputs that ``docs/troubleshooting.md`` shows with what commands print.

A block of the document starts with ``$ ipvs-proxy ...``, followed by the output; ``[...]`` stands for lines that are
left out. Ages, durations, rates and the like vary and are not compared, nor is the width of columns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

DOCUMENT: Final = Path(__file__).parents[2] / "docs/troubleshooting.md"
LEFT_OUT: Final = "[...]"
_PROMPT: Final = "$ ipvs-proxy "
#: Patterns of what varies, and what replaces them in the comparison.
_VARYING: Final = (
    (r"\b\d+\.\d ms\b", "TIME"),
    (r"\b\d+ ?(s|m|h)\b", "TIME"),
    (r"[\d.]+[kMG]?(B?/s)\b", r"RATE\1"),
    (r"ipvs-proxy \d+\.\d+\S*", "ipvs-proxy VERSION"),
    (r"Linux \d+\.\d+", "Linux VERSION"),
    (r"iptables \d+[\d.]*", "iptables VERSION"),
    (r"[\d,]+ connections?\b", "CONNECTIONS"),
    (r"[\d,]+ buckets\b", "BUCKETS"),
    (r"[\d,]+ of [\d,]+ entries \(\d+ %\)", "ENTRIES"),
    (r"(?m)\baddresses +\d+  \S+( and \d+ more)?$", "addresses FOUND"),
    (r"[ \t]+", " "),
)


def blocks(section: str) -> dict[str, str]:
    """Return the outputs that the document shows in a section, by command; a section is the title of a heading."""
    text = DOCUMENT.read_text()
    found = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"{DOCUMENT.name} has no section {section!r}"
    shown = re.findall(r"^```console\n(.*?)^```$", found[1], re.MULTILINE | re.DOTALL)
    return {
        block.partition("\n")[0].removeprefix(_PROMPT): block.partition("\n")[2]
        for block in shown
        if block.startswith(_PROMPT)
    }


def all_shown() -> set[tuple[str, str]]:
    """Return section and command of every output that the document shows."""
    titles = re.findall(r"^## (.*)$", DOCUMENT.read_text(), re.MULTILINE)
    return {(title, name) for title in titles for name in blocks(title)}


def is_shown(documented: str, printed: str) -> bool:
    """Return whether the documented output is the printed one."""
    pieces = _masked(documented).split(f"{LEFT_OUT}\n")
    return re.fullmatch(r"(?:.*\n)*".join(map(re.escape, pieces)), _masked(printed)) is not None


def assert_documented(section: str, printed: Mapping[str, str]) -> None:
    """Fail unless the document shows in this section what these commands have printed."""
    shown = blocks(section)
    if all(is_shown(shown.get(name, ""), text) for name, text in printed.items()):
        return
    real = "".join(f"```console\n{_PROMPT}{name}\n{text}```\n" for name, text in printed.items())
    raise AssertionError(f"write this to the section {section!r} of {DOCUMENT.name}:\n{real}")


def _masked(text: str) -> str:
    for pattern, replacement in _VARYING:
        text = re.sub(pattern, replacement, text)
    return "".join(f"{line.strip()}\n" for line in text.splitlines())
