"""The table of compatibility from the outcomes of tests."""

from __future__ import annotations

import re

import pytest

from tools.compatibility import BEHAVIOURS, WITH_NFTABLES, document

#: One test of each kind that the table names.
PASSED = {test: "passed" for _, _, tests in BEHAVIOURS for test in tests}
DUMMY = "test_kinds.py::test_the_link_is_a_dummy_that_stays_down"


def row_of(test: str, results: dict[str, str]) -> str:
    (row,) = (line for line in document(results).splitlines() if f"`{test}`" in line)
    return row


@pytest.mark.parametrize(
    ("more", "cells"),
    [
        ({}, "2 passed |  |"),
        ({WITH_NFTABLES + DUMMY: "passed"}, "2 passed | 1 passed |"),
        ({WITH_NFTABLES + DUMMY: "failed"}, "2 passed | **FAILED** |"),
        ({DUMMY: "failed", WITH_NFTABLES + DUMMY: "passed"}, "**FAILED** | 1 passed |"),
    ],
    ids=["not with nftables", "with both", "not with nftables any more", "with nftables alone"],
)
def test_a_behaviour_is_proven_for_each_packet_filter_by_itself(more: dict[str, str], cells: str) -> None:
    assert row_of(DUMMY, PASSED | more).endswith(f"| {cells}")


def test_a_test_that_is_gone_is_named() -> None:
    row = row_of(DUMMY, {test: outcome for test, outcome in PASSED.items() if test != DUMMY})
    assert re.search(rf"\*\*FAILED\*\* no such test: {re.escape(DUMMY)}", row)
