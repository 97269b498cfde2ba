"""Chooses the kernel for a command that needs IPVS; nothing else makes that choice.

In this order: this machine's own kernel if it has IPVS; the native one (``lab.build``), from the cache or built now;
Debian's stock kernel, emulated, if the native one cannot be had. ``RING_KERNEL`` asks for one of them: ``own``,
``native`` or ``stock``.

``RING_PACKET_FILTER=nftables`` has the agent use nftables. The native kernel then has no iptables and no ipset, and no
program of theirs runs.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, NamedTuple

from lab import build, emulated, native

CHECKOUT = Path(__file__).parents[1]


class Machine(NamedTuple):
    """A kernel to run commands in, and the reason for it. ``own`` is the running kernel and has no file."""

    kind: Literal["own", "native", "stock"]
    kernel: Path
    reason: str

    def __str__(self) -> str:
        what = {
            "own": f"this machine's own kernel, {platform.release()}",
            "native": f"Linux {self.kernel.parent.name.rpartition('-')[0]} as a program, at native speed",
            "stock": f"{self.kernel.name} in an emulated machine (slow)",
        }
        return f"lab: {what[self.kind]}: {self.reason}"


def choose(*, may_build: bool = True) -> Machine:
    """Return the machine to use; build its kernel if that is needed and allowed.

    Raises SystemExit with the reason if there is none and none can be installed.
    """
    wish = os.environ.get("RING_KERNEL", "")
    if wish not in {"", "own", "native", "stock"}:
        sys.exit(f"lab: RING_KERNEL={wish} is none of own, native, stock")
    if wish == "own" or (not wish and has_ipvs()):
        return Machine("own", Path(), "RING_KERNEL asks for it" if wish else "it has IPVS")
    if wish != "stock" and (kernel := build.built()):
        return Machine("native", kernel, "RING_KERNEL asks for it" if wish else "this machine's own has no IPVS")
    if wish == "native" or (not wish and may_build and _can_build()):
        return Machine("native", build.build(), "built now")
    return Machine(
        "stock", emulated.stock_kernel(), "RING_KERNEL asks for it" if wish else "the native one is not built"
    )


def has_ipvs() -> bool:
    """Return whether this kernel has IPVS, after trying to load the modules for it and for dummy links."""
    for module in ("ip_vs", "dummy"):
        subprocess.run(["modprobe", module], check=False, capture_output=True)
    return Path("/proc/net/ip_vs").exists()


@contextmanager
def running(
    machine: Machine,
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    shared: Path | None = None,
    processors: int = 1,
    interactive: bool = False,
    output: int | IO[bytes] | None = None,
) -> Iterator[native.Guest]:
    """Run a command in a guest, with the checkout as its directory; kill both at the end.

    ``environment`` is added to the guest's. ``shared`` is a directory that this guest and others may write.
    ``processors`` are the emulated machine's; as a program Linux has one. ``interactive`` gives the command a terminal.
    """
    told = {name: os.environ.get(name, "") for name in ("REQUIRE_RING", "RING_PACKET_FILTER")}
    told |= {"RING_IMAGE": str(CHECKOUT / "dist/rootfs")} | dict(environment or {})
    told["RING_WITHOUT_IPTABLES"] = "1" * (machine.kind == "native" and told["RING_PACKET_FILTER"] == "nftables")
    with native.scratch_directory() as scratch:
        if machine.kind == "native":
            native.allow_many_mappings()
            started = native.guest(
                machine.kernel,
                command,
                directory=CHECKOUT,
                environment=told,
                scratch=scratch,
                shared=shared,
                interactive=interactive,
                has_iptables=not told["RING_WITHOUT_IPTABLES"],
                output=output,
            )
        elif machine.kind == "stock":
            if interactive:
                sys.exit("lab: a shell needs the native kernel (python -m lab.build)")
            started = emulated.guest(
                machine.kernel,
                command,
                checkout=CHECKOUT,
                environment=told,
                scratch=scratch,
                shared=shared,
                processors=processors,
                output=output,
            )
        else:
            whole = os.environ | told
            started = native.here(command, directory=CHECKOUT, environment=whole, scratch=scratch, output=output)
        with started as guest:
            yield guest


def _can_build() -> bool:
    """Return whether this machine is one where the kernel can be built: Debian on x86-64, as root."""
    return Path("/etc/debian_version").exists() and platform.machine() == "x86_64" and os.geteuid() == 0
