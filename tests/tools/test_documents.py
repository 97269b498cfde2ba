"""Every document that tools write is in the repository as they would write it now."""

from __future__ import annotations

import re

import pytest

from tools import scale
from tools.__main__ import DERIVED
from tools.documents import filled

#: Tables of docs/scale.md that are the same on every machine, and the others.
SCALE = {"initial", "selectors", "churn", "rollout", "upkeep", "outage"} | {"encodings", "objects", "measured"}


@pytest.mark.parametrize("name", DERIVED)
def test_a_document_is_as_its_writer_has_it(name: str) -> None:
    for path, text in DERIVED[name]().items():
        assert path.read_text() == text, "run: make docs"


def test_parts_are_put_between_their_markers_and_nowhere_else() -> None:
    document = "a\n<!-- begin: x -->\nold\n<!-- end: x -->\nb\n"
    assert filled(document, [("x", "| a |\n| b |\n")]) == "a\n<!-- begin: x -->\n| a |\n| b |\n<!-- end: x -->\nb\n"
    assert filled(filled(document, [("x", "new")]), [("x", "old")]) == document


@pytest.mark.parametrize("document", ["a\n", "<!-- begin: y -->\n<!-- end: y -->\n" * 2])
def test_a_part_without_a_place_of_its_own_is_refused(document: str) -> None:
    with pytest.raises(ValueError, match="places for 'y', not one"):
        filled(document, [("y", "text")])


def test_the_document_of_scale_has_no_place_that_nobody_fills() -> None:
    assert set(re.findall(r"<!-- begin: (\w+) -->", scale.DOCUMENT.read_text())) == SCALE
