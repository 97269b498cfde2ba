"""No test module imports another: what several of them share is in ``tests/support`` or beside them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def imported(path: Path) -> set[str]:
    """Return the last part of every module that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    # ``from tests.ring import test_x`` has the module's name among the names.
    names = [alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    return {name.rpartition(".")[2] for name in (*modules, *names)}


@pytest.mark.parametrize(
    "folder", sorted(path.name for path in TESTS.iterdir() if path.is_dir() and path.name[0] != "_")
)
def test_no_module_imports_a_test_module(folder: str) -> None:
    modules = {path.stem for path in TESTS.rglob("test_*.py")}
    wrong = {path.name: found for path in (TESTS / folder).rglob("*.py") if (found := imported(path) & modules)}
    assert not wrong
