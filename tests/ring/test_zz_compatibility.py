"""The table of compatibility is what the tests of this ring have just shown. Comes last, by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ring.behaviours import RESULTS, document

DOCUMENT = Path(__file__).parents[2] / "docs/compatibility.md"
FILES = {f"tests/ring/{path.name}" for path in Path(__file__).parent.glob("test_*.py")} - {
    "tests/ring/test_zz_compatibility.py"
}


def test_the_document_is_what_the_ring_has_shown(request: pytest.FixtureRequest) -> None:
    ran = {name.split("::")[0] for name in request.config.stash[RESULTS]}
    if not ran >= FILES:
        pytest.skip("only a run of the whole ring tells")
    results = {name.removeprefix("tests/ring/"): outcome for name, outcome in request.config.stash[RESULTS].items()}
    written = document(results)
    assert "FAILED" not in written, [line for line in written.splitlines() if "FAILED" in line]
    assert written == DOCUMENT.read_text(), f"write this to {DOCUMENT.name}:\n{written}"
