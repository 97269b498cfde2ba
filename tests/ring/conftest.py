"""The ring needs root and a kernel with IPVS. Without them it is skipped; with ``REQUIRE_RING`` it fails."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import ExitStack
from typing import Final

import pytest

from lab.packet_filter import CHOSEN, WITHOUT_IPTABLES
from lab.preloaded import preloading
from tests.ring.sharing import in_order, run_claimed, shared_directory, tell
from tests.support.namespaces import missing_piece

#: The outcome of every test of this run by its id.
RESULTS: Final = pytest.StashKey[dict[str, str]]()
#: The test that compares a document with existing results.
WITHOUT_KERNEL = "test_compatibility.py"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "packet_filter(name): the test is about this packet filter and no other")
    config.addinivalue_line("markers", "without_iptables: the test needs a kernel that has neither iptables nor ipset")
    config.stash[RESULTS] = {}
    if os.environ.get("LAB_PRELOADED"):
        stack = ExitStack()
        stack.enter_context(preloading())
        config.add_cleanup(stack.close)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" or report.outcome != "passed":
        item.config.stash[RESULTS][item.nodeid] = report.outcome
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if _is_possible(item)]
    ours = [item for item in items if "/tests/ring/" in str(item.path) and item.path.name != WITHOUT_KERNEL]
    if ours and (missing := missing_piece()):
        if os.environ.get("REQUIRE_RING"):
            pytest.exit(f"the kernel ring cannot run here: {missing}", returncode=1)
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=missing))
    if shared_directory():
        in_order(items)


def _is_possible(item: pytest.Item) -> bool:
    if item.get_closest_marker("without_iptables"):
        return WITHOUT_IPTABLES
    marker = item.get_closest_marker("packet_filter")
    return marker is None or marker.args == (CHOSEN,)


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    shared = shared_directory()
    if not shared or session.testsfailed:
        return None
    run_claimed(session, shared)
    return True


def pytest_sessionfinish(session: pytest.Session) -> None:
    if shared := shared_directory():
        tell(session, shared, session.config.stash[RESULTS])
