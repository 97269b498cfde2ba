"""A guest of the native kernel as whoever starts it sees it: output, status, files, and that nothing stays behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import build
from lab.machine import CHECKOUT, has_ipvs

pytestmark = pytest.mark.skipif(
    build.built() is None and has_ipvs(), reason="this machine's kernel has IPVS and no other was built"
)
PATIENCE = 60.0
LAB = (sys.executable, "-m", "lab")


def lab(*command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"RING_KERNEL": "native"}
    return subprocess.run(
        [*LAB, *command], cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )


def test_output_errors_and_status_are_the_commands() -> None:
    done = lab("sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr.splitlines()[1:], done.returncode) == ("out\n", ["err"], 7)


def test_a_command_that_is_killed_has_a_shells_status() -> None:
    assert lab("sh", "-c", "kill -9 $$").returncode == 137


def test_a_command_can_be_interrupted() -> None:
    assert lab("sh", "-c", "kill -INT $$; echo went on").returncode == 130


def test_much_output_arrives_whole() -> None:
    done = lab("seq", "500000")
    assert done.stdout == "".join(f"{number}\n" for number in range(1, 500_001)), "some lines are lost or changed"


def test_output_is_added_to_a_file_that_has_something_already(tmp_path: Path) -> None:
    file = tmp_path / "output"
    file.write_text("before\n")
    with file.open("a") as output:
        subprocess.run(
            [*LAB, "echo", "after"], cwd=CHECKOUT, env=os.environ | {"RING_KERNEL": "native"}, stdout=output, check=True
        )
    assert file.read_text() == "before\nafter\n"


def test_a_failing_test_shows_its_traceback() -> None:
    test = "def test_it():\n    assert 'what was' == 'what should be'\n"
    script = (
        f'echo "$0" >/tmp/test_it.py; exec {sys.executable} -m pytest -p no:cacheprovider -c /dev/null /tmp/test_it.py'
    )
    done = lab("sh", "-c", script, test)
    assert "E       AssertionError: assert 'what was' == 'what should be'" in done.stdout.splitlines()
    assert done.returncode == 1


def test_the_machines_files_cannot_be_written() -> None:
    done = lab("sh", "-c", f"touch {CHECKOUT}/written /etc/written /usr/written; touch /tmp/written && echo memory")
    assert done.stderr.count("Read-only file system") == 3, done.stderr
    assert done.stdout == "memory\n"
    assert not Path("/tmp/written").exists()


def test_it_has_ipvs_and_the_loopback_link() -> None:
    assert "IP Virtual Server" in lab("ipvsadm", "-Ln").stdout
    assert "lo" in lab("ls", "/sys/class/net").stdout.split()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_it_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with ready.open("w") as output:
        process = subprocess.Popen(
            [*LAB, "sh", "-c", f"echo {tmp_path.name}; sleep 1000"],
            cwd=CHECKOUT,
            env=os.environ | {"RING_KERNEL": "native"},
            stdout=output,
            stderr=subprocess.DEVNULL,
            # Who runs in the background of a script has it ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )
    wait_until(lambda: ready.read_text() != "")
    guest = descendants(process.pid)
    (scratch,) = {Path(word[5:]).parent for pid in guest for word in command_line(pid) if word.startswith("TASK=")}
    process.send_signal(number)
    status = process.wait(PATIENCE)
    assert status == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -number)
    wait_until(lambda: not any(command_line(pid) for pid in guest))
    # Nobody is left to remove it after a kill.
    assert scratch.exists() == (number is signal.SIGKILL)
    shutil.rmtree(scratch, ignore_errors=True)


def descendants(parent: int) -> list[int]:
    """Return the processes below one."""
    children = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    return children + [pid for child in children for pid in descendants(child)]


def command_line(pid: int) -> list[str]:
    """Return the words of a process' command, none if it has ended."""
    try:
        return [word for word in Path(f"/proc/{pid}/cmdline").read_text().split("\0") if word]
    except OSError:
        return []


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)
