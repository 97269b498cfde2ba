"""Which processes on this node matter to a migration: who listens on a port, and whether kube-proxy is running.

Everything is read from ``/proc`` (proc(5)). A container sees only its own processes, unless it shares the host's
(``hostPID``). It still sees that a port is taken, but not by whom.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

PROC: Final = Path("/proc")
KUBE_PROXY: Final = "kube-proxy"

_LISTENING: Final = "0A"  # TCP_LISTEN of include/net/tcp_states.h
#: A line of /proc/net/tcp: number, local address and port, remote ones, state, queues, timers, retransmits, uid,
#: timeout, inode.
_SOCKET: Final = re.compile(
    r"\s*\d+: [0-9A-F]+:([0-9A-F]{4}) [0-9A-F]+:[0-9A-F]{4} ([0-9A-F]{2}) \S+ \S+ \S+ +\d+ +\d+ (\d+)"
)
#: A line of /proc/PID/status: real, effective, saved and file system user. A process name cannot forge such a line.
_UID: Final = re.compile(r"^Uid:\t\d+\t(\d+)\t", re.MULTILINE)


class Process(NamedTuple):
    """A process; ``pid`` is 0 and the name empty if it cannot be seen from here."""

    pid: int = 0
    name: str = ""

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})" if self.pid else "a process that cannot be seen from here"


def holder_of(port: int, proc: Path = PROC) -> Process | None:
    """Return who listens on a TCP port, on whatever address; ``None`` if nobody does."""
    inodes = {inode for inode, number in _listening(proc) if number == port}
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in _processes(proc):
        with suppress(OSError):  # gone, or not ours to look at
            for descriptor in (proc / str(process.pid) / "fd").iterdir():
                with suppress(OSError):
                    if str(descriptor.readlink()) in wanted:
                        return process
    return Process()


def running_kube_proxy(proc: Path = PROC) -> Process | None:
    """Return the kube-proxy of this network namespace; ``None`` if there is none, or if it cannot be seen from here.

    Any user of the node may give a process this name, so only processes of root, and of the user who asks, count: no
    other can change networks.
    """
    with suppress(OSError):
        here = (proc / "thread-self/ns/net").readlink()
        for process in _processes(proc):
            with suppress(OSError):
                if (
                    process.name == KUBE_PROXY
                    and _uid(process, proc) in {0, os.geteuid()}
                    and (proc / str(process.pid) / "ns/net").readlink() == here
                ):
                    return process
    return None


def running_programs(names: Collection[str], proc: Path = PROC) -> list[str]:
    """Return, sorted, which programs of ``names`` run on this host, as far as processes can be seen from here."""
    with suppress(OSError):
        return sorted({process.name for process in _processes(proc) if process.name in names})
    return []


def _listening(proc: Path) -> Iterator[tuple[str, int]]:
    """Return the inode and the port of each listening TCP socket of this thread's network namespace."""
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (proc / "thread-self/net" / table).read_text(encoding="ascii", errors="replace").split("\n"):
                found = _SOCKET.match(line)
                if found and found[2] == _LISTENING:
                    yield found[3], int(found[1], 16)


def _uid(process: Process, proc: Path) -> int | None:
    """Return the effective user of a process. The owner of its directory is not always that user (proc(5))."""
    found = _UID.search((proc / str(process.pid) / "status").read_text(encoding="utf-8", errors="replace"))
    return int(found[1]) if found else None


def _processes(proc: Path) -> Iterator[Process]:
    for directory in proc.iterdir():
        if directory.name.isdigit():
            with suppress(OSError):
                name = (directory / "comm").read_text(encoding="utf-8", errors="replace").strip()
                # The name is chosen by whoever runs the process, and ours is printed on a terminal.
                yield Process(int(directory.name), "".join(char if char.isprintable() else "?" for char in name))
