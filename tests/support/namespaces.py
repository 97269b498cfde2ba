"""Network namespaces for tests of the kernel layer: a fresh one per test, in the thread that runs the test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from ipvs_proxy.kernel.filter.ipset.table import Sets
from ipvs_proxy.kernel.filter.nftables.sets import open_netfilter
from ipvs_proxy.kernel.ipvs.table import Ipvs
from ipvs_proxy.kernel.links.addresses import Addresses
from lab.namespaces import NETWORK, enter_network, unshare
from lab.packet_filter import CHOSEN, NFTABLES


@contextmanager
def fresh_namespace() -> Iterator[None]:
    """Move this thread, and the processes it starts, into a new network namespace with ``lo`` up; then back."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare(NETWORK)
        try:
            run("ip", "link", "set", "lo", "up")
            yield
        finally:
            enter_network(before)
    finally:
        os.close(before)


def run(*command: str) -> str:
    """Run a command in the namespace of this thread; return what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


@cache
def missing_piece() -> str | None:
    """Return what this host lacks for the tests of the kernel layer, ``None`` if nothing."""
    try:
        with fresh_namespace():
            Ipvs().close()
            addresses = Addresses("probe0")
            addresses.ensure_link()
            addresses.close()
            (open_netfilter() if CHOSEN == NFTABLES else Sets([])).close()
    except OSError as error:
        return str(error)
    return None
