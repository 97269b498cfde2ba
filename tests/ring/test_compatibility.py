"""The table of compatibility is what the tests of a whole run of this ring have shown."""

from __future__ import annotations

import os
import re

import pytest

from tools import compatibility

#: The kernel of the run. Only the native one runs every test: some need a kernel without iptables.
KERNEL = os.environ.get("RING_IS_DONE")


@pytest.mark.skipif(KERNEL is None, reason="only a run of the whole ring tells")
def test_the_document_is_what_the_ring_has_shown() -> None:
    for path, text in compatibility.written().items():
        assert "FAILED" not in text, [line for line in text.splitlines() if "FAILED" in line]
        assert _comparable(path.read_text()) == _comparable(text), "run python -m tools compatibility"


def _comparable(text: str) -> str:
    return text if KERNEL == "native" else re.sub(r"\d+ passed", "passed", text)
