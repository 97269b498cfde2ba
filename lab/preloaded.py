"""Starts the agent and its commands by a fork of a process that has imported them, where imports take seconds.

In the emulated machine Python needs some 6 s to import the agent, and the kernel ring starts hundreds of them. The
invariant: whoever starts ``python -m ipvs_proxy`` through ``subprocess`` cannot tell the difference. What starts is a
process and child of its own, with the streams, arguments, environment, directory and network namespace that an exec
would have given it, without any other descriptor, and from ``__main__`` on it runs the same code. Only the imports are
done before. What starts under another program (``setpriv``, ``unshare``, a container's) is executed as ever.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import pkgutil
import runpy
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ipvs_proxy
from lab.namespaces import enter_network

#: What is started so: modules for ``python -m``.
MODULES = ("ipvs_proxy", "lab.attentive")
#: ``prctl``: PR_SET_CHILD_SUBREAPER (linux/prctl.h).
_CHILD_SUBREAPER = 36
_LARGEST = 1 << 18
_one_at_a_time = threading.Lock()


@contextmanager
def preloading() -> Iterator[None]:
    """Have ``subprocess`` start these modules so, in all threads of this process.

    Raises AttributeError on a Python whose ``subprocess`` is built otherwise.
    """
    execute = subprocess._fork_exec  # type: ignore[attr-defined]  # noqa: SLF001
    spawns = subprocess._USE_POSIX_SPAWN  # noqa: SLF001
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-m", "lab.preloaded", str(theirs.fileno())]
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=(theirs.fileno(),)
        )
    # What the server starts is orphaned at once, and so becomes a child of this process, which can wait for it.
    _adopt_orphans(wanted=True)
    subprocess._fork_exec = _Starter(ours, execute)  # type: ignore[attr-defined]  # noqa: SLF001
    # Where a Python prefers posix_spawn, it would not fork.
    subprocess._USE_POSIX_SPAWN = False  # type: ignore[misc]  # noqa: SLF001
    try:
        yield
    finally:
        subprocess._fork_exec = execute  # type: ignore[attr-defined]  # noqa: SLF001
        subprocess._USE_POSIX_SPAWN = spawns  # type: ignore[misc]  # noqa: SLF001
        _adopt_orphans(wanted=False)
        ours.close()
        server.wait()


def _adopt_orphans(*, wanted: bool) -> None:
    ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


class _Starter:
    """In the place of ``_posixsubprocess.fork_exec``: returns the process id of what it has started."""

    def __init__(self, server: socket.socket, execute: Callable[..., int]) -> None:
        self._server = server
        self._execute = execute

    def __call__(self, words: Sequence[str], *rest: Any) -> int:
        directory, environment, stdin, _, _, stdout, _, stderr = rest[3:11]
        asks_for_more = rest[14] or rest[20]  # start_new_session, preexec_fn
        if list(words[:2]) != [sys.executable, "-m"] or words[2] not in MODULES or asks_for_more:
            return self._execute(words, *rest)
        variables = [os.fsdecode(one).split("=", 1) for one in environment or ()]
        task = {
            "module": words[2],
            "arguments": list(words[3:]),
            "directory": str(directory or Path.cwd()),
            "environment": dict(os.environ) if environment is None else dict(variables),
        }
        streams = [number if number >= 0 else inherited for inherited, number in enumerate((stdin, stdout, stderr))]
        with Path("/proc/thread-self/ns/net").open() as network, _one_at_a_time:
            socket.send_fds(self._server, [json.dumps(task).encode()], [*streams, network.fileno()])
            return int(self._server.recv(_LARGEST))


def serve(server: socket.socket) -> None:
    """Import everything of the agent; then start what is asked for, until the asking process has ended."""
    for found in pkgutil.walk_packages(ipvs_proxy.__path__, "ipvs_proxy."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    gc.collect()
    gc.freeze()  # so that a child's collections do not copy all pages
    while True:
        message, descriptors, _, _ = socket.recv_fds(server, _LARGEST, 4)
        if not message:
            return
        reader, writer = os.pipe()
        between = os.fork()
        if between == 0:
            child = os.fork()
            if child == 0:
                become(json.loads(message), descriptors)
            os.write(writer, str(child).encode())
            os._exit(0)
        # Told only once the child is an orphan, so that its new parent can wait for it.
        os.waitpid(between, 0)
        server.send(os.read(reader, 64))
        for descriptor in (reader, writer, *descriptors):
            os.close(descriptor)


def become(task: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Turn this process into the one that the task asks for, and run it to its end."""
    *streams, network = descriptors
    enter_network(network)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(task["directory"])
    os.environ.clear()
    os.environ.update(task["environment"])
    sys.argv[1:] = task["arguments"]
    sys.path[0] = task["directory"]
    runpy.run_module(task["module"], run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
