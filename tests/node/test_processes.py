"""Who serves a port, and whether kube-proxy runs, read from /proc."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ipvs_proxy.node.processes import Process, holder_of, running_kube_proxy, running_programs


def test_the_holder_of_a_port_is_named() -> None:
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as listening:
            listening.bind((address, 0))
            port = listening.getsockname()[1]
            assert holder_of(port) is None, "bound, and not listening"
            listening.listen()
            found = holder_of(port)
            assert found is not None
            assert found.pid == os.getpid()
            assert str(found) == f"{found.name} (process {os.getpid()})"
        assert holder_of(port) is None


def test_a_holder_that_cannot_be_seen_is_still_somebody(tmp_path: Path) -> None:
    (tmp_path / "thread-self/net").mkdir(parents=True)
    line = "   0: 00000000:2810 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0\n"
    (tmp_path / "thread-self/net/tcp").write_text(f"  sl  local_address rem_address\n{line}garbage\n")
    assert holder_of(10256, tmp_path) == Process()
    assert str(Process()) == "a process that cannot be seen from here"
    assert holder_of(10249, tmp_path) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_process_of_another_user_is_no_kube_proxy_whatever_its_name() -> None:
    code = (
        "import os, ctypes, time; os.setuid(65534)\n"
        "libc = ctypes.CDLL(None); libc.prctl(15, b'kube-proxy'); libc.prctl(4, 0)  # and not dumpable: root's /proc\n"
        "print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            assert Path(f"/proc/{process.pid}/comm").read_text() == "kube-proxy\n"
            assert running_kube_proxy() is None
        finally:
            process.kill()


def test_a_name_that_somebody_chose_cannot_write_to_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/comm").write_text("\x1b[2Jkeepalived\n")
    assert running_programs(("?[2Jkeepalived",), tmp_path) == ["?[2Jkeepalived"]


def test_a_kube_proxy_is_found_by_its_name(tmp_path: Path) -> None:
    program = tmp_path / "kube-proxy"
    shutil.copy2("/bin/sleep", program)
    with subprocess.Popen([program, "60"]) as process:
        try:
            # A kernel may show a new name somewhat later than it tells that the program has begun.
            deadline = time.monotonic() + 5.0
            while running_kube_proxy() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            assert running_kube_proxy() == Process(process.pid, "kube-proxy")
        finally:
            process.kill()
    assert running_kube_proxy(tmp_path) is None, "no /proc there"
