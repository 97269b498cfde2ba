"""Measures in kernels with IPVS and prints one table; ``make bench`` also writes it to ``docs/performance.md``.

    python -m bench [SERVICESxENDPOINTS ...]     sizes at native speed; without any, those of SIZES

Where this machine's kernel has no IPVS, two others serve: one that runs as a program, at native speed, for all sizes
(``bench.user_mode``), and Debian's in an emulated machine for small ones, with real packet rules (``lab.emulated``).
Every ratio is of two figures of one run on one kernel; absolute times belong to the machine.
"""

from __future__ import annotations

import compileall
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.native import growth, measure_python
from bench.report import Figures, table
from lab.machine import has_ipvs

_SIZE = re.compile(r"\d+x\d+")
#: What is measured by default, at native speed and in the emulated machine.
SIZES = ("100x10", "1000x10", "10000x10", "10000x50", "50000x2")
EMULATED_SIZES = ("100x10", "1000x10")


def main(words: Sequence[str]) -> None:
    """Measure the sizes and print the tables."""
    if not all(_SIZE.fullmatch(word) for word in words):
        sys.stdout.write(__doc__ or "")
        sys.exit(0 if "--help" in words else 2)
    found = figures(words or SIZES)
    sys.stdout.write(tables(found))


def figures(sizes: Sequence[str]) -> list[Figures]:
    """Measure these sizes, and small ones in the emulated machine too if they are ``SIZES``; return their figures."""
    # Compiled beforehand, as in an image: the guests see these files read-only and could not keep byte code.
    compileall.compile_dir(Path(__file__).parents[1] / "ipvs_proxy", quiet=1)
    found = []
    for emulated, size in [(False, size) for size in sizes] + [(True, size) for size in _emulated(sizes)]:
        services, endpoints = size.split("x")
        found.append(measure(services, endpoints, emulated=emulated))
        found[-1] |= measure_python(int(services), int(endpoints))
        sys.stderr.write(json.dumps(found[-1]) + "\n")
    return found


def tables(found: Sequence[Figures]) -> str:
    """Return the table of these figures, and measure and add what grows with a Service's size or in a day."""
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    return table(found, machine) + growth()


def _emulated(sizes: Sequence[str]) -> tuple[str, ...]:
    return EMULATED_SIZES if tuple(sizes) == SIZES and not has_ipvs() else ()


def measure(services: str, endpoints: str, *, emulated: bool) -> Figures:
    """Measure one size in a kernel with IPVS; return its figures."""
    where = "lab" if emulated or has_ipvs() else "bench.user_mode"
    command = [sys.executable, "-m", where, sys.executable, "-m", "bench.measure", services, endpoints]
    environment = os.environ | {"RING_WITH_API": "1"} | ({"RING_KERNEL": "stock"} if emulated else {})
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    for line in done.stdout.splitlines():
        if line.startswith('{"services"'):
            return {**json.loads(line), "emulated": emulated}
        sys.stderr.write(line + "\n")
    sys.exit(f"bench: measuring {services}x{endpoints} failed with status {done.returncode}")


if __name__ == "__main__":
    main(sys.argv[1:])
