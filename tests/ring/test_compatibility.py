"""The table of compatibility is what the tests of a whole run of this ring have shown."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.ring.behaviours import document

DOCUMENT = Path(__file__).parents[2] / "docs/compatibility.md"


@pytest.mark.skipif("RING_RESULTS" not in os.environ, reason="only a run of the whole ring tells")
def test_the_document_is_what_the_ring_has_shown() -> None:
    results = json.loads(Path(os.environ["RING_RESULTS"]).read_text())
    written = document({name.removeprefix("tests/ring/"): outcome for name, outcome in results.items()})
    assert "FAILED" not in written, [line for line in written.splitlines() if "FAILED" in line]
    assert written == DOCUMENT.read_text(), f"write this to {DOCUMENT.name}:\n{written}"
