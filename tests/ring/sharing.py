"""How parallel guests divide the ring among themselves, and how they report their results.

Each guest collects all tests. To run a file it first claims it, by making a directory of the file's name in
``RING_SHARED``, which all guests see; only one can succeed, and the others skip the file. Files that take long come
first, so that no guest is still running one at the end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

#: Files that take longer than their size suggests, because of a parametrized fixture or a loop.
_LONG = frozenset(("test_tunnels.py", "test_shortages.py", "test_marks_of_others.py", "test_every_address.py"))


def shared_directory() -> Path | None:
    """Return the directory that the guests share, ``None`` if this run has all tests to itself."""
    name = os.environ.get("RING_SHARED")
    return Path(name) if name else None


def in_order(items: list[pytest.Item]) -> None:
    """Sort tests: files that take long first, then by size; the order within a file stays."""
    sizes = {path: path.stat().st_size for path in {item.path for item in items}}
    items.sort(key=lambda item: (item.path.name not in _LONG, -sizes[item.path], str(item.path)))


def run_claimed(session: pytest.Session, shared: Path) -> None:
    """Run the tests of each file that no other guest has claimed."""
    for path, group in groupby(session.items, key=lambda item: item.path):
        items = list(group)
        if _claim(shared / path.name):
            for item, following in _pairs(items):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if session.shouldstop:
                    raise session.Interrupted(session.shouldstop)


def tell(session: pytest.Session, shared: Path, results: dict[str, str]) -> None:
    """Write the results of this guest to where ``tests.ring.__main__`` reads them."""
    told = {"collected": [item.nodeid for item in session.items], "results": results}
    Path(shared, f"results-{os.environ['RING_GUEST']}.json").write_text(json.dumps(told))


def _claim(place: Path) -> bool:
    try:
        place.mkdir()
    except FileExistsError:
        return False
    return True


def _pairs(items: list[pytest.Item]) -> Iterator[tuple[pytest.Item, pytest.Item | None]]:
    return zip(items, [*items[1:], None], strict=True)
