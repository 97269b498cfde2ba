"""The table of compatibility is what the tests of a whole run of this ring have shown."""

from __future__ import annotations

import os

import pytest

from tools import compatibility


@pytest.mark.skipif("RING_IS_DONE" not in os.environ, reason="only a run of the whole ring tells")
def test_the_document_is_what_the_ring_has_shown() -> None:
    for path, text in compatibility.written().items():
        assert "FAILED" not in text, [line for line in text.splitlines() if "FAILED" in line]
        assert path.read_text() == text, "run python -m tools compatibility"
