"""Runs the agent as a process in the node's namespace, and follows it by its log.

Its objects come from manifest files or from an API server.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab import packet_filter
from lab.topology import CLUSTER_CIDR, Topology

#: The longest that anything may take, in seconds. An emulated machine needs half a minute to import the agent.
PATIENCE = 120.0
PROGRAM = (sys.executable, "-m", "ipvs_proxy")
ATTENTIVE = (sys.executable, "-m", "lab.attentive")
#: The shortest and the longest pause between two checks of a condition, in seconds.
SOONEST, LATEST = 0.01, 0.1


class Agent:
    """A running agent and the events that it has logged so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.events: list[dict[str, Any]] = []
        self.printed: list[str] = []
        self._process = process
        self._told = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def named(self, name: str) -> list[dict[str, Any]]:
        """Return the events of one name."""
        return [event for event in list(self.events) if event["event"] == name]

    def wait_for(self, name: str, count: int = 1) -> dict[str, Any]:
        """Wait for the ``count``-th event of a name and return it."""
        with self._told:
            self._told.wait_for(lambda: len(self.named(name)) >= count or self._ended, PATIENCE)
        found = self.named(name)
        assert len(found) >= count, f"no {name!r} (exit status {self._process.poll()}):\n" + "".join(self.printed[-30:])
        return found[count - 1]

    def stop(self) -> float:
        """Send SIGTERM; return the seconds until the agent was gone. Its exit status must be 0."""
        begun = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert status == 0, f"exit status {status}:\n" + "".join(self.printed[-30:])
        return time.monotonic() - begun

    def kill(self) -> None:
        """Kill the agent, as a crash would."""
        self._process.kill()
        self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)

    def close(self) -> None:
        """Read the rest of the log of an agent that has ended."""
        self._reader.join(PATIENCE)
        assert self._process.stderr is not None
        self._process.stderr.close()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                self.printed.append(line)
                if line.startswith("{"):
                    with self._told:
                        self.events.append(json.loads(line))
                        self._told.notify_all()
        with self._told:
            self._ended = True
            self._told.notify_all()


@contextmanager
def running_agent(
    net: Topology, source: Path, *flags: str, prefix: Sequence[str] = (), program: Sequence[str] = ATTENTIVE
) -> Iterator[Agent]:
    """Start an agent on the node and wait until it has programmed everything; kill it at the end if it still runs.

    ``source`` is a directory of manifests or a kubeconfig file. ``prefix`` goes before the command, such as one that
    drops capabilities; ``program`` is the agent itself, without its flags. Raises AssertionError with the end of the
    log if the agent does not start.
    """
    command = [
        *prefix,
        *(*program, "--kubeconfig" if source.is_file() else "--manifests", str(source), "--hostname-override", "node"),
        *("--cluster-cidr", CLUSTER_CIDR, "--logging-format", "json", "--ipvs-min-sync-period", "0s"),
        *(*packet_filter.FLAGS, *flags),
    ]
    with net.inside("node"):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    agent = Agent(process)
    try:
        agent.wait_for("started")
        yield agent
    finally:
        if process.poll() is None:
            agent.kill()
        agent.close()


def command(net: Topology, *arguments: str, status: int = 0) -> str:
    """Run a subcommand of ipvs-proxy on the node, which must end with ``status``; return its output.

    For status 1 that is what it wrote to standard error.
    """
    with net.inside("node"):
        done = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stderr if status == 1 else done.stdout


def eventually(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Wait until a condition holds; while it raises AssertionError or OSError it does not.

    The pause between two checks is as long as a check takes, so that at least half of a processor is left to the agent,
    whether a check compares two values or starts processes. Raises AssertionError after ``patience`` seconds.
    """
    deadline = time.monotonic() + patience
    while True:
        begun = time.monotonic()
        try:
            if condition():
                return
            problem = "it did not hold"
        except (AssertionError, OSError) as error:
            problem = repr(error)
        now = time.monotonic()
        assert now < deadline, f"after {patience:.0f} s: {problem}"
        time.sleep(min(max(SOONEST, now - begun), LATEST))
