"""The ring needs a kernel with IPVS and root. Where they are missing it is skipped, or refused if it was asked for."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

from tests.ring.behaviours import RESULTS
from tests.support.namespaces import missing_piece


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" or report.outcome != "passed":
        item.config.stash[RESULTS][item.nodeid] = report.outcome
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = missing_piece()
    if missing is None:
        return
    if os.environ.get("REQUIRE_RING"):
        pytest.exit(f"the kernel ring cannot run here: {missing}", returncode=1)
    for item in items:
        if "/tests/ring/" in str(item.path):
            item.add_marker(pytest.mark.skip(reason=missing))
