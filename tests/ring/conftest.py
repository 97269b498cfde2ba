"""The ring needs a kernel with IPVS and root. Where they are missing it is skipped, or refused if it was asked for."""

from __future__ import annotations

import os

import pytest

from tests.support.namespaces import missing_piece


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = missing_piece()
    if missing is None:
        return
    if os.environ.get("REQUIRE_RING"):
        pytest.exit(f"the kernel ring cannot run here: {missing}", returncode=1)
    for item in items:
        if "/tests/ring/" in str(item.path):
            item.add_marker(pytest.mark.skip(reason=missing))
