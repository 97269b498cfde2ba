"""Guests share out the tests of the ring: every test runs in exactly one of them, and what is missing is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.machine import CHECKOUT
from tests.ring.__main__ import gather

CONFTEST = """\
from tests.ring.sharing import *
from pathlib import Path

def pytest_collection_modifyitems(items): in_order(items)
def pytest_runtestloop(session): run_claimed(session, shared_directory()); return True
def pytest_sessionfinish(session):
    passed = {item.nodeid: "passed" for item in session.items if item.stash.get("ran", False)}
    tell(session, shared_directory(), passed)
def pytest_runtest_teardown(item): item.stash["ran"] = True
"""
TEST = """\
import pytest, time

@pytest.fixture(scope="module")
def once(request):
    yield
    print("torn down", request.module.__name__)

@pytest.mark.parametrize("number", range(3))
def test_it(number, once): time.sleep(0.05)
"""


def test_every_test_runs_once_whoever_takes_it(tmp_path: Path) -> None:
    suite, shared = tmp_path / "suite", tmp_path / "shared"
    suite.mkdir()
    shared.mkdir()
    (suite / "conftest.py").write_text(CONFTEST)
    for number in range(6):
        (suite / f"test_{number}.py").write_text(TEST + "#" * number)
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "RING_SHARED": str(shared)}
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-c", "/dev/null", "--rootdir", str(suite), str(suite)]
    guests = [
        subprocess.Popen(command, env=environment | {"RING_GUEST": str(number)}, stdout=subprocess.PIPE, text=True)
        for number in range(2)
    ]
    printed = "".join(guest.communicate(timeout=60)[0] for guest in guests)
    results, problems = gather(shared, range(2))
    assert problems == [], printed
    assert results == {f"test_{number}.py::test_it[{case}]": "passed" for number in range(6) for case in range(3)}
    assert printed.count("torn down") == 6, f"fixtures of a file end with its last test:\n{printed}"


@pytest.mark.parametrize(
    ("told", "problems"),
    [
        ([(["a", "b"], ["a"]), (["a", "b"], ["b"])], []),
        ([(["a", "b"], ["a"]), (["a", "b"], [])], ["b did not run"]),
        ([(["a", "b"], ["a", "b"]), (["a", "b"], ["a"])], ["a ran twice"]),
        ([(["a", "b"], ["a"]), None], ["guest 2 ended before its tests did", "b did not run"]),
    ],
)
def test_what_is_wrong_with_a_run_is_named(told, problems, tmp_path: Path) -> None:
    for number, guest in enumerate(told):
        if guest is not None:
            collected, ran = guest
            text = json.dumps({"collected": collected, "results": dict.fromkeys(ran, "passed")})
            (tmp_path / f"results-{number}.json").write_text(text)
    assert gather(tmp_path, range(len(told)))[1] == problems
