"""``make bench``: measures in a kernel with IPVS (a virtual machine if this one has none) and prints one table.

    python -m bench [SERVICESxENDPOINTS ...]     sizes; 100x10, 1000x10 and 10000x10 unless told
        --write                                  also write docs/performance.md's table and its picture

Every ratio is of two figures of one run on one kernel. Absolute times belong to the machine; in a virtual machine
without hardware acceleration Python is slowed down about three times as much as system calls.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.native import growth, measure_python
from bench.report import picture, table

SIZES = ("100x10", "1000x10", "10000x10")
DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
PICTURE = DOCUMENT.with_name("performance.png")
BEGIN, END = "<!-- begin: table -->\n", "<!-- end: table -->\n"


def main(words: Sequence[str]) -> None:
    """Measure the sizes, print the table."""
    sizes = [word for word in words if not word.startswith("-")] or list(SIZES)
    found = []
    for size in sizes:
        services, endpoints = size.split("x")
        found.append(measure(services, endpoints))
        found[-1] |= measure_python(int(services), int(endpoints))
        sys.stderr.write(json.dumps(found[-1]) + "\n")
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    text = table(found, machine) + growth()
    sys.stdout.write(text)
    if "--write" in words:
        before, _, rest = DOCUMENT.read_text().partition(BEGIN)
        DOCUMENT.write_text(before + BEGIN + text + END + rest.partition(END)[2])
        picture(found, PICTURE)


def measure(services: str, endpoints: str) -> dict[str, Any]:
    """Measure one size where there is IPVS; give its figures."""
    command = [sys.executable, "-m", "tests.ring.vm", sys.executable, "-m", "bench.measure", services, endpoints]
    environment = os.environ | {"RING_WITH_API": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    for line in done.stdout.splitlines():
        if line.startswith('{"services"'):
            return json.loads(line)  # type: ignore[no-any-return]
        sys.stderr.write(line + "\n")
    sys.exit(f"bench: measuring {services}x{endpoints} failed with status {done.returncode}")


if __name__ == "__main__":
    main(sys.argv[1:])
