"""Installs the Debian packages that a kernel needs, when it is first used."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence


def install(names: Sequence[str], purpose: str) -> None:
    """Install those of these packages that are missing, without questions, and say so.

    Raises SystemExit with apt's words if that fails.
    """
    missing = [name for name in names if not is_installed(name)]
    if not missing:
        return
    sys.stderr.write(f"lab: installing the Debian packages {' '.join(missing)} ({purpose})\n")
    sys.stderr.flush()
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["-y", "install", "--no-install-recommends", *missing]):
        done = subprocess.run(
            ["apt-get", "-qq", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = (done.stdout + done.stderr).strip()[-2000:]
            sys.exit(f"lab: apt-get {command[0]} failed (it needs root and a mirror):\n{said}")


def is_installed(name: str) -> bool:
    """Return whether a package is installed."""
    query = ["dpkg-query", "-Wf", "${db:Status-Status}", name]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout == "installed"
