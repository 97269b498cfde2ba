"""``make bench``: measures in kernels with IPVS and prints one table.

    python -m bench [SERVICESxENDPOINTS ...]     sizes at native speed; see SIZES for what is measured unless told
        --write                                  also write docs/performance.md's table and its picture

Where this machine's kernel has no IPVS, two others serve: one that runs as a program, at native speed, for all sizes
(``bench.user_mode``), and Debian's in an emulated machine for small ones, with real packet rules
(``lab.emulated``). Every ratio is of two figures of one run on one kernel; absolute times belong to the machine.
"""

from __future__ import annotations

import compileall
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
from lab.machine import has_ipvs

#: What is measured unless told, at native speed and in the emulated machine.
SIZES = ("100x10", "1000x10", "10000x10", "10000x50")
EMULATED_SIZES = ("100x10", "1000x10")
DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
PICTURE = DOCUMENT.with_name("performance.png")
BEGIN, END = "<!-- begin: table -->\n", "<!-- end: table -->\n"


def main(words: Sequence[str]) -> None:
    """Measure the sizes, print the table."""
    sizes = [word for word in words if not word.startswith("-")] or list(SIZES)
    # As it is installed in an image: modules are compiled beforehand, and these kernels cannot write the result down.
    compileall.compile_dir(Path(__file__).parents[1] / "ipvs_proxy", quiet=1)
    found = []
    for emulated, size in [(False, size) for size in sizes] + [(True, size) for size in _emulated(sizes)]:
        services, endpoints = size.split("x")
        found.append(measure(services, endpoints, emulated=emulated))
        found[-1] |= measure_python(int(services), int(endpoints))
        sys.stderr.write(json.dumps(found[-1]) + "\n")
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    text = table(found, machine) + growth()
    sys.stdout.write(text)
    if "--write" in words:
        before, _, rest = DOCUMENT.read_text().partition(BEGIN)
        DOCUMENT.write_text(before + BEGIN + text + END + rest.partition(END)[2])
        picture(found, PICTURE)


def _emulated(sizes: Sequence[str]) -> tuple[str, ...]:
    return EMULATED_SIZES if sizes == list(SIZES) and not has_ipvs() else ()


def measure(services: str, endpoints: str, *, emulated: bool) -> dict[str, Any]:
    """Measure one size where there is IPVS; return its figures."""
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
