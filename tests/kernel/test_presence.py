"""An agent is seen as long as it lives, and no longer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from ipvs_proxy.kernel import presence


@pytest.fixture(autouse=True)
def name(monkeypatch: pytest.MonkeyPatch) -> str:
    """A name that no agent on the host of these tests has."""
    name = f"\0ipvs-proxy/test-{os.urandom(8).hex()}"
    monkeypatch.setattr(presence, "_NAME", name)
    return name


def test_one_agent_holds_the_name_until_it_ends() -> None:
    assert not presence.is_running()
    first = presence.announce()
    assert first is not None
    assert presence.is_running()
    assert presence.announce() is None
    first.close()
    assert not presence.is_running()


def test_the_name_ends_with_a_process_that_is_killed(name: str) -> None:
    code = f"import time; from ipvs_proxy.kernel import presence; presence._NAME = {name!r}; held = presence.announce(); print(held is not None, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert presence.is_running()
        process.send_signal(signal.SIGKILL)
    assert not presence.is_running()
