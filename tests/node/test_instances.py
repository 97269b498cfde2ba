"""An agent is seen as long as it lives, and no longer; nobody without the right to raw sockets can pretend to be one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ipvs_proxy.node import instances

NOBODY = 65534


@pytest.fixture(autouse=True)
def address(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address that no agent on the host of these tests has."""
    address = socket.inet_ntoa(b"\x7f" + os.urandom(3))
    monkeypatch.setattr(instances, "_ADDRESS", address)
    return address


def registered() -> socket.socket:
    held = instances.register()
    if held is None:
        pytest.skip("raw sockets are not allowed here")
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


def hold(address: str, uid: int = 0) -> subprocess.Popen[str]:
    code = (
        f"import os, time; os.setuid({uid}) if {uid} else None\n"
        f"from ipvs_proxy.node import instances; instances._ADDRESS = {address!r}; held = instances.register()\n"
        "print(held is not None, flush=True); time.sleep(60)"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_the_sign_ends_with_a_process_that_is_killed(address: str) -> None:
    registered().close()
    with hold(address) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert instances.any_running()
        process.send_signal(signal.SIGKILL)
    assert not instances.any_running()


#: What an ordinary user of the node can do: hold the names of the abstract namespace, open datagram sockets at the
#: address, ask for the raw socket, in a user namespace of their own as well.
PRETENDER = """
import ctypes, os, socket, sys, time
os.setgid(65534); os.setuid(65534)
def attempt(*arguments, to):
    try:
        sock = socket.socket(*arguments)
        sock.bind(to)
        held.append(sock)
    except OSError as error:
        refused.append(error.errno)
held, refused = [], []
def everything():
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        attempt(socket.AF_UNIX, kind, to="\\0ipvs-proxy/agent")
    attempt(socket.AF_INET, socket.SOCK_DGRAM, to=(sys.argv[1], 253))
    attempt(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP, to=(sys.argv[1], 253))
    attempt(socket.AF_INET, socket.SOCK_RAW, 253, to=(sys.argv[1], 0))
everything()
ctypes.CDLL(None).unshare(0x10000000)  # CLONE_NEWUSER
everything()
print("done", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_another_user_of_the_node_cannot_pretend_to_be_an_agent_nor_hide_one(address: str) -> None:
    with subprocess.Popen([sys.executable, "-c", PRETENDER, address], stdout=subprocess.PIPE, text=True) as pretender:
        try:
            assert pretender.stdout is not None
            assert pretender.stdout.readline() == "done\n"
            assert not instances.any_running()
            held = registered()
            assert instances.count_running() == 1
            held.close()
        finally:
            pretender.kill()


def test_host_that_shows_no_sockets_has_no_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(instances, "_SOCKETS", tmp_path / "missing")
    assert not instances.any_running()
