"""Documents are read in terminals too: lines of prose have at most 120 characters."""

from __future__ import annotations

from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
LONGEST = 120
DOCUMENTS = [
    str(path.relative_to(CHECKOUT))
    for glob in ("*.md", "docs/*.md", "docs/*/*.md", "helm/*/*.md")
    for path in CHECKOUT.glob(glob)
]


def prose(text: str) -> list[tuple[int, str]]:
    """Return the numbered lines of a document that are neither code nor rows of tables."""
    found, in_code = [], False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code and not line.startswith("|"):
            found.append((number, line))
    return found


@pytest.mark.parametrize("name", DOCUMENTS)
def test_lines_of_prose_are_short(name: str) -> None:
    lines = prose((CHECKOUT / name).read_text())
    assert [(number, line) for number, line in lines if len(line) > LONGEST] == []
