"""A process that is forked with its imports done is the one that an exec would have started."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from lab.agent import PROGRAM
from lab.preloaded import preloading

#: It reads its standard input, so it can be looked at while it waits for that.
WAITS = [*PROGRAM, "migrate", "check", "--config", "-"]
#: Of ``/proc/PID/status``: signals and rights.
STATUS = re.compile(r"^(?:Umask|PPid|NoNewPrivs|Cap\w+|Sig(?:Blk|Ign|Cgt)|Seccomp|Groups|[UG]id):.*$", re.MULTILINE)


@pytest.fixture(params=["executed", "forked"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    with preloading() if request.param == "forked" else nullcontext():
        yield request.param


def run(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, check=False, **more)


def look(pid: int) -> dict[str, object]:
    """Return what the kernel knows of a process."""
    process = Path(f"/proc/{pid}")
    return {
        "descriptors": {one.name: re.sub(r"\d+", "N", str(one.readlink())) for one in (process / "fd").iterdir()},
        "directory": (process / "cwd").readlink(),
        "name": (process / "comm").read_text(),
        "network": (process / "ns/net").readlink(),
        "group": os.getpgid(pid),
        "session": os.getsid(pid),
        "status": STATUS.findall((process / "status").read_text()),
    }


def waiting(directory: Path) -> tuple[bool, dict[str, object]]:
    """Start what waits for its input, look at it, and end it; return whether it was forked, and what was seen."""
    pipe = subprocess.PIPE
    with subprocess.Popen(WAITS, stdin=pipe, stdout=pipe, stderr=pipe, cwd=directory) as process:
        assert process.stdin is not None
        process.stdin.write(b" " * 100_000)  # more than a pipe holds: it is reading when this returns
        found = look(process.pid)
        forked = "lab.preloaded" in Path(f"/proc/{process.pid}/cmdline").read_text()
        process.terminate()
        assert process.wait(30) == -15
    return forked, found


def test_the_kernel_knows_the_same_of_both(tmp_path: Path) -> None:
    is_forked, executed = waiting(tmp_path)
    assert not is_forked
    with preloading():
        is_forked, forked = waiting(tmp_path)
    assert is_forked
    assert forked == executed


def test_arguments_streams_and_status_are_its_own(way: str) -> None:
    good, bad = run("--version"), run("--nonsense")
    assert (good.returncode, good.stdout[:11], good.stderr) == (0, "ipvs-proxy ", "")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "Usage: python -m ipvs_proxy run" in bad.stderr


def test_input_and_directory_are_its_own(way: str, tmp_path: Path) -> None:
    (tmp_path / "config.conf").write_text("kind: Nothing\n")
    read = run("migrate", "check", "--config", "config.conf", cwd=tmp_path)
    piped = run("migrate", "check", "--config", "-", input="kind: Nothing\n")
    assert (read.returncode, piped.returncode) == (2, 2)
    assert "config.conf: its kind is Nothing" in read.stdout
    assert "its kind is Nothing" in piped.stdout


def test_what_it_starts_as_child_can_be_waited_for_and_killed_by_any_thread(way: str) -> None:
    statuses = []

    def end() -> None:
        with subprocess.Popen(WAITS, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            process.kill()
            statuses.append(process.wait(30))

    threads = [threading.Thread(target=end) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [-9] * 4


def test_other_programs_are_executed(way: str) -> None:
    done = subprocess.run([sys.executable, "-c", "print(7)"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "7\n")
