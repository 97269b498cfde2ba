"""The agent as operators run it: in the root file system of the image, if ``make image`` has left one.

What is in the image decides how long a start takes, its Python before all. Without an image, the agent is that of this
checkout.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.user_mode import STAND_INS

#: Seen from here; in a virtual machine it is the host's.
IMAGE = Path(os.environ.get("RING_IMAGE") or Path(__file__).parents[1] / "dist/rootfs")
_PROGRAM = "opt/ipvs-proxy/bin/ipvs-proxy"


def mount() -> None:
    """Mount in the image what the kubelet mounts in a container, and this ``/tmp``; needs its own mount namespace."""
    if _is_there():
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        for place in ("proc", "sys", "dev", "tmp"):
            subprocess.run(["mount", "--rbind", f"/{place}", IMAGE / place], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", IMAGE / "run"], check=True)


def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    """Start the agent with its log in a pipe."""
    if not _is_there():
        return subprocess.Popen([sys.executable, "-m", "ipvs_proxy", *arguments], stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(
        [f"/{_PROGRAM}", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        # This environment is for another Python and other programs.
        env={"PATH": f"{STAND_INS}:/usr/sbin:/usr/bin:/sbin:/bin"},
        preexec_fn=lambda: os.chroot(IMAGE),  # noqa: PLW1509  this process has one thread
    )


def interpreter(process: int) -> str:
    """Name the Python that a process runs, such as ``python3.13``, and say if it is the image's."""
    name = Path(f"/proc/{process}/exe").readlink().name
    return f"{name} of the image" if _is_there() else name


def _is_there() -> bool:
    return (IMAGE / _PROGRAM).exists()
