"""Runs the programs that write packet rules: iptables and its kin, and nft."""

from __future__ import annotations

import os
import subprocess
from typing import Final

from ipvs_proxy.netlink.errors import MissingPiece, Unusable

#: Seconds after which a program is stopped. A node with 100,000 rules takes some.
DEADLINE: Final = 60


def run_program(
    command: list[str], *, text: str | None, package: str, if_slow: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a program until it has ended, whatever its status; ``text`` is its standard input, none if that is ``None``.

    ``package`` says what to do if there is no such program, ``if_slow`` if it does not end in time.

    Raises:
        MissingPiece: if there is no such program.
        Unusable: if it cannot be started, or does not end in time.

    """
    program = command[0]
    try:
        return subprocess.run(
            command,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="replace",
            env=os.environ | {"LC_ALL": "C"},
            timeout=DEADLINE,
        )
    except FileNotFoundError:
        raise MissingPiece(f"the program {program} was not found in PATH", package) from None
    except subprocess.TimeoutExpired:
        raise Unusable(f"{program} did not end within {DEADLINE} s and was stopped", if_slow) from None
    except OSError as error:
        raise Unusable(f"{program} could not be started: {error.strerror}") from error
