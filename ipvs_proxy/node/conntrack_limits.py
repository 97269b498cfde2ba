"""The kernel's limits of connection tracking, as kube-proxy sets them: room for connections, and timeouts.

A limit that cannot be written is reported and left as it is: traffic flows without it. In nested containers
``nf_conntrack_max`` cannot be written, as it belongs to the whole machine; kube-proxy refuses to start there.
"""

from __future__ import annotations

import os
from errno import EMFILE, ENFILE
from pathlib import Path
from typing import Final, NamedTuple

from ipvs_proxy.node.sysctl import PROC_SYS, SysctlChange

HASH_SIZE: Final = Path("/sys/module/nf_conntrack/parameters/hashsize")
#: kube-proxy's cap: the table is never made larger than this by the number of CPUs.
LARGEST: Final = 1_048_576


class Limits(NamedTuple):
    """What to set. 0 and ``False`` keep the kernel's value; times are in seconds."""

    max_per_core: int = 0
    minimum: int = 0
    tcp_established: float = 0.0
    tcp_close_wait: float = 0.0
    tcp_be_liberal: bool = False
    udp: float = 0.0
    udp_stream: float = 0.0


class Written(NamedTuple):
    """What was changed, and what could not be, with the reason and the remedy."""

    changes: list[SysctlChange]
    refusals: list[str]


def largest_table(max_per_core: int, minimum: int, cpus: int) -> int:
    """Return how many connections to make room for, or 0 to keep the kernel's value.

    As in kube-proxy: ``max_per_core`` times ``cpus``, at most ``LARGEST``; below that cap, at least ``minimum``.
    """
    if not max_per_core:
        return 0
    scaled = min(max_per_core * cpus, LARGEST)
    return scaled if scaled == LARGEST else max(scaled, minimum)


def set_limits(
    limits: Limits, *, cpus: int | None = None, root: Path = PROC_SYS, hash_size: Path = HASH_SIZE
) -> Written:
    """Write the limits that are not as they should be. One that is refused does not hold back the others.

    Raises:
        OSError: if no file descriptor is left to read them with.

    """
    written = Written([], [])
    room = largest_table(limits.max_per_core, limits.minimum, cpus or os.cpu_count() or 1)
    maximum = root / "net/netfilter/nf_conntrack_max"
    # A larger value was set for a reason: like kube-proxy 1.36, never lower it.
    if room and (_number_in(maximum) >= room or _set(maximum, str(room), written)):
        _grow(hash_size, room // 4, written)
    for name, seconds in (
        ("tcp_timeout_established", limits.tcp_established),
        ("tcp_timeout_close_wait", limits.tcp_close_wait),
        ("udp_timeout", limits.udp),
        ("udp_timeout_stream", limits.udp_stream),
    ):
        if seconds:
            _set(root / f"net/netfilter/nf_conntrack_{name}", str(int(seconds)), written)
    if limits.tcp_be_liberal:
        _set(root / "net/netfilter/nf_conntrack_tcp_be_liberal", "1", written)
    return written


def _grow(path: Path, size: int, written: Written) -> None:
    """Make the hash table large enough: a quarter of the connections, as the kernel recommends."""
    if 0 <= _number_in(path) < size:
        _set(path, str(size), written)


def _number_in(path: Path) -> int:
    """Return the number in a file, -1 if there is none."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return -1


def _set(path: Path, wanted: str, written: Written) -> bool:
    """Write a setting that differs; return whether it is as wanted now."""
    try:
        found = path.read_text(encoding="ascii", errors="replace").strip()
        if found == wanted:
            return True
        path.write_text(wanted, encoding="ascii")
    except OSError as error:
        if error.errno in {EMFILE, ENFILE}:  # of this process, or of the host: not the setting's fault
            raise
        written.refusals.append(f"{path} cannot be set to {wanted} ({error.strerror}): set it on the node")
        return False
    written.changes.append(SysctlChange(path.name, found, wanted))
    return True
