"""The table of kube-proxy's test cases names tests that exist, and has no empty row."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    line
    for line in (ROOT / "docs/upstream-tests.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| upstream")
]


@cache
def names(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_every_case_has_a_test_or_a_reason(row: str) -> None:
    _, upstream, pins, here, _ = (cell.strip() for cell in row.split("|"))
    assert upstream
    assert pins
    references = re.findall(r"`(tests/[^`]+)`", here)
    assert references or here.startswith("does not apply: ")
    for reference in references:
        path, _, name = reference.partition("::")
        assert name in names(path), reference


def test_the_table_is_long_enough_to_be_whole() -> None:
    assert len(ROWS) >= 80
