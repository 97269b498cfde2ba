"""One dual-stack Service with three pods, and requests to it without a pause."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab import manifests
from lab.manifests import endpoint
from lab.topology import ADDRESSES, FAMILIES, Topology

PODS = ("pod1", "pod2", "pod3")
VIPS = {"IPv4": "10.96.0.30", "IPv6": "fd00:10:96::30"}


def write_objects(directory: Path) -> Path:
    """Write the Node, the Service and its slices; return the directory."""
    manifests.write(directory, "node", manifests.node())
    manifests.write(directory, "service", manifests.service("web", *VIPS.values()))
    set_endpoints(directory, *PODS)
    return directory


def set_endpoints(directory: Path, *pods: str, **conditions: dict[str, bool]) -> None:
    """Write the slices of the Service; ``conditions`` by pod, ready otherwise."""
    endpoints: list[dict[str, Any]] = [
        endpoint(ADDRESSES[pod][family], **conditions.get(pod, {})) for pod in pods for family in FAMILIES
    ]
    manifests.write(directory, "slices", *manifests.slices("web", endpoints, ("TCP", "UDP", "SCTP")))


@contextmanager
def continuous_requests(net: Topology) -> Iterator[list[str]]:
    """Make requests one after another from the client until the block ends; what failed is in the list."""
    failures: list[str] = []
    stop = threading.Event()

    def make() -> None:
        while not stop.wait(0.05):
            try:
                net.ask("client", VIPS["IPv4"], 80, timeout=10.0)
            except OSError as error:
                failures.append(repr(error))

    thread = threading.Thread(target=make)
    thread.start()
    try:
        yield failures
    finally:
        stop.set()
        thread.join()
