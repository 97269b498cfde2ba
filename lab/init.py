"""The first process of a guest (``lab.native``): mounts what is written into memory, runs one command, ends the guest.

It is a program of its own, which the kernel starts: ``init.py`` with the path of a JSON file as the kernel's argument
``TASK=``: the command, its directory and environment, the directories of the host that it goes on seeing, whether it
talks with a person, and where its exit status goes.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from typing import IO, Any

_MOUNTS = (
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("tmpfs", "/var/tmp"),
    ("tmpfs", "/var/log"),
)
_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
#: ``reboot`` of the C library: LINUX_REBOOT_CMD_POWER_OFF (linux/reboot.h).
_POWER_OFF = 0x4321FEDC
#: ``mount``: MS_BIND (linux/mount.h).
_BIND = 4096
_CHUNK = 1 << 16
#: Open files of a process, as systemd allows; a client of a test has a thousand connections.
_OPEN_FILES = 1 << 19
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Run the command and power off."""
    try:
        task = json.loads(Path(os.environ["TASK"]).read_text())
        prepare(task["kept"])
        resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
        status = interact(task) if task["interactive"] else run(task)
        Path(task["status"]).write_text(str(status))
    except Exception as error:  # noqa: BLE001  its last words; there is nobody to raise it to
        sys.stderr.write(f"lab: the guest's first process failed: {error!r}\n")
        time.sleep(0.2)  # for the console to write it
    Path("/proc/sys/kernel/printk").write_text("0")  # not even "Power down"
    os.sync()
    _libc.reboot(_POWER_OFF)


def prepare(kept: list[str]) -> None:
    """Mount the guest's own file systems; directories of the host in ``kept`` stay visible.

    Everything else is the host's, read-only.
    """
    opened = {place: os.open(place, os.O_PATH) for place in kept}
    for kind, place in _MOUNTS:
        mount(kind, place)
    for place, number in opened.items():
        if not Path(place).exists():
            Path(place).mkdir(parents=True)
            mount("", place, source=f"/proc/self/fd/{number}", flags=_BIND)
        os.close(number)
    for name, target in _LINKS.items():
        Path("/dev", name).symlink_to(target)
    for kind, place in (("tmpfs", "/dev/shm"), ("devpts", "/dev/pts")):
        Path(place).mkdir()
        mount(kind, place)
    for place in ("/tmp", "/var/tmp", "/dev/shm"):
        Path(place).chmod(0o1777)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})


def mount(kind: str, place: str, *, source: str = "none", flags: int = 0) -> None:
    """Mount a file system. Raises OSError if the kernel refuses."""
    if _libc.mount(source.encode(), place.encode(), kind.encode(), flags, None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), place)


def run(task: dict[str, Any]) -> int:
    """Run the command with its output on the first console and its errors on the second; return its status."""
    child = subprocess.Popen(
        task["command"],
        cwd=task["directory"],
        env=task["environment"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    # Through pipes, because programs format their output differently on a terminal.
    relays = [
        threading.Thread(target=relay, args=(source, console))
        for source, console in ((child.stdout, "/dev/tty0"), (child.stderr, "/dev/tty1"))
    ]
    for thread in relays:
        thread.start()
    status = wait(child)
    for thread in relays:
        thread.join(5.0)  # a process that the command left behind may hold its output open
    return status


def interact(task: dict[str, Any]) -> int:
    """Run the command on the first console as its controlling terminal; return its status."""
    with open("/dev/tty0", "r+b", buffering=0) as console:  # noqa: PTH123  Path.open refuses to read and write a terminal
        child = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *task["command"]],
            cwd=task["directory"],
            env=task["environment"],
            stdin=console,
            stdout=console,
            stderr=console,
        )
        return wait(child)


def relay(source: IO[bytes] | None, console: str) -> None:
    """Write what comes out of a pipe to a console, byte for byte."""
    assert source is not None
    terminal = os.open(console, os.O_WRONLY | os.O_NOCTTY)
    settings = termios.tcgetattr(terminal)
    settings[1] &= ~termios.OPOST
    termios.tcsetattr(terminal, termios.TCSANOW, settings)
    while data := os.read(source.fileno(), _CHUNK):
        while data:
            data = data[os.write(terminal, data) :]
    termios.tcdrain(terminal)


def wait(child: subprocess.Popen[bytes]) -> int:
    """Wait for the command and return its status as a shell would; meanwhile reap orphans, as process 1 has to."""
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            code = os.waitstatus_to_exitcode(status)
            child.returncode = code
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        # A handler rather than SIG_IGN, which child processes would inherit.
        signal.signal(number, lambda *_: None)
    main()
