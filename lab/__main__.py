"""Runs a command in a kernel with IPVS; ``lab.machine`` chooses which.

    python -m lab [--ready] [COMMAND [ARGUMENT ...]]

Without a command it starts a shell. ``--ready`` builds no kernel: it takes what is there.
"""

from __future__ import annotations

import signal
import sys

from lab.machine import choose, running


def main() -> None:
    """Run the command of the arguments and exit with its status."""
    words = sys.argv[1:]
    ready = words[:1] == ["--ready"]
    command = words[1:] if ready else words
    # As Ctrl-C does: SystemExit unwinds the contexts, which end the guest.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    machine = choose(may_build=not ready)
    sys.stderr.write(f"{machine}\n")
    sys.stderr.flush()
    try:
        with running(machine, command or ["bash"], interactive=not command) as guest:
            status = guest.wait()
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()
