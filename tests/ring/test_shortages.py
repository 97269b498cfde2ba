"""A start on a node that is short of memory, buffers or descriptors: every call to the kernel fails once, for a while."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from errno import EAGAIN, EIO, EMFILE, ENFILE, ENOBUFS, ENOMEM
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog

from ipvs_proxy.agent import start
from ipvs_proxy.agent.assembly import Agent
from ipvs_proxy.netlink import socket as kernel_socket
from ipvs_proxy.netlink.errors import Unusable
from ipvs_proxy.settings.merge import effective
from tests.support.namespaces import fresh_namespace, run

SHORTAGES = (ENOBUFS, EAGAIN, ENOMEM, EMFILE, ENFILE)
#: More than a socket tries by itself.
ENOUGH = 8
#: Each start is ``ENOUGH`` calls further than the last one, so that each call is one after which so many fail.
IN_A_ROW = 2 * ENOUGH


class Shortage:
    """Lets calls fail from the ``first`` on, ``number`` of them, and counts all calls."""

    def __init__(self, first: int, number: int, error: int) -> None:
        self.calls = 0
        self._failing = range(first, first + number)
        self._error = error

    def watch(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls - 1 in self._failing:
                raise OSError(self._error, os.strerror(self._error))
            return call(*arguments, **named)

        return watched


@contextmanager
def short(first: int, number: int, error: int) -> Iterator[Shortage]:
    """Have sockets, programs and files fail."""
    shortage = Shortage(first, number, error)
    with pytest.MonkeyPatch.context() as patch:

        class Socket(socket.socket):
            def __init__(self, *arguments: Any, **named: Any) -> None:
                shortage.watch(super().__init__)(*arguments, **named)

            def sendto(self, *arguments: Any) -> int:
                return int(shortage.watch(super().sendto)(*arguments))

            def recvfrom_into(self, *arguments: Any) -> tuple[int, Any]:
                found: tuple[int, Any] = shortage.watch(super().recvfrom_into)(*arguments)
                return found

        patch.setattr(socket, "socket", Socket)
        patch.setattr(subprocess, "run", shortage.watch(subprocess.run))
        patch.setattr(Path, "read_text", shortage.watch(Path.read_text))
        patch.setattr(Path, "write_text", shortage.watch(Path.write_text))
        yield shortage


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "BACKOFF", start.BACKOFF._replace(first=0.001))
    monkeypatch.setattr(kernel_socket, "SHORTAGE_PAUSES", (0.0,) * 5)


async def begin(manifests: Path, shortage: Callable[[], AbstractContextManager[Shortage]]) -> int:
    """Start as far as the loops, while there is a shortage; return how many calls that took."""
    settings = effective({"hostname_override": "node", "cluster_cidrs": "10.244.0.0/16", "manifests": str(manifests)})
    with shortage() as counted:
        host, dataplane = await start.prepare(settings)
        dataplane.prepare()

        async def assemble() -> Agent:
            return Agent(settings, host, dataplane, None)

        await start.persist("tables", assemble)
    dataplane.close()
    return counted.calls


def test_no_call_that_fails_for_a_shortage_ends_the_start(tmp_path: Path) -> None:
    first, calls = 0, 1
    while first < calls:
        error = SHORTAGES[first % len(SHORTAGES)]
        with fresh_namespace(), structlog.testing.capture_logs():
            calls = asyncio.run(begin(tmp_path, partial(short, first, IN_A_ROW, error))) - IN_A_ROW
            left = [line for line in run("ipvsadm", "-Ln").splitlines() if line.startswith("TCP")]
            assert left == [], f"the probe is left after call {first} failed with {os.strerror(error)}"
        first += ENOUGH
    assert calls > 50


def test_a_shortage_that_does_not_pass_is_told_and_waited_for(tmp_path: Path) -> None:
    async def wait_and_stop() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.3, stop.set)
        with short(0, 1_000_000, ENOBUFS):
            await start.start(effective({"manifests": str(tmp_path)}), stop)

    with fresh_namespace(), structlog.testing.capture_logs() as logs, pytest.raises(start.Stopped):
        asyncio.run(wait_and_stop())
    assert {(line["event"], line["step"]) for line in logs} == {("start_waits", "checks")}


def test_another_fault_of_the_kernel_is_one_line(tmp_path: Path) -> None:
    with (
        fresh_namespace(),
        structlog.testing.capture_logs(),
        pytest.raises(Unusable, match=r"^the start fails \(checks\): .*Input/output error$"),
    ):
        asyncio.run(begin(tmp_path, partial(short, 0, 1, EIO)))
