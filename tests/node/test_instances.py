"""An agent is seen as long as it lives, and no longer; nobody without rights over the network can pretend to be one."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ipvs_proxy.node import instances


@pytest.fixture(autouse=True)
def groups(monkeypatch: pytest.MonkeyPatch) -> int:
    """Groups that no agent on the host of these tests is a member of."""
    groups = random.randrange(0x8000, 0xFFFF) << 16
    monkeypatch.setattr(instances, "_GROUPS", groups)
    return groups


def registered() -> socket.socket:
    held = instances.register()
    if held is None:
        pytest.skip("netlink sockets may not become members of groups here")
    return held


def test_agents_are_counted_as_long_as_they_live() -> None:
    assert not instances.any_running()
    first = registered()
    assert instances.any_running()
    second = registered()
    assert instances.count_running() == 2
    first.close()
    # The second one is seen although it came when there was another.
    assert instances.any_running()
    second.close()
    assert not instances.any_running()


def hold(groups: int) -> subprocess.Popen[str]:
    code = (
        "import time\n"
        f"from ipvs_proxy.node import instances; instances._GROUPS = {groups}\n"
        "held = instances.register(); print(held is not None, flush=True); time.sleep(60)"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_the_sign_ends_with_a_process_that_is_killed(groups: int) -> None:
    registered().close()
    with hold(groups) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert instances.any_running()
        process.send_signal(signal.SIGKILL)
    assert not instances.any_running()


#: What an ordinary user of the node can do: ask for the groups, in both ways, and in a user namespace of their own as
#: well.
PRETENDER = """
import ctypes, os, socket, sys, time
os.setgid(65534); os.setuid(65534)
held, refused = [], []
def everything(groups):
    held.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12))
    try:
        held[-1].bind((0, groups))
    except OSError as error:
        refused.append(error.errno)
    held[-1].bind((0, 0))
    for number in range(17, 33):
        try:
            held[-1].setsockopt(270, 1, number)  # NETLINK_ADD_MEMBERSHIP
        except OSError as error:
            refused.append(error.errno)
everything(int(sys.argv[1]))
ctypes.CDLL(None).unshare(0x10000000)  # CLONE_NEWUSER
everything(int(sys.argv[1]))
print(len(refused), flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_another_user_of_the_node_cannot_pretend_to_be_an_agent_nor_hide_one(groups: int) -> None:
    with subprocess.Popen([sys.executable, "-c", PRETENDER, str(groups)], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "34\n", "each attempt is refused"
            assert not instances.any_running()
            held = registered()
            assert instances.count_running() == 1
            held.close()
        finally:
            other.kill()


def test_host_that_shows_no_sockets_has_no_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(instances, "_SOCKETS", tmp_path / "missing")
    assert not instances.any_running()
