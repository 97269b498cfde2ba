"""Runs a command in the native test kernel (``lab.native``) without packet rules.

    python -m bench.user_mode COMMAND [ARGUMENT ...]

Emulation makes Python ten to thirty times as slow and system calls less, so its ratios say little about a node. This
kernel runs code natively; a system call costs about 17 us, more than on a node. It has one processor. Stand-ins for
iptables' programs keep what they are given, so packet rules cost two short processes each, as on a node, and nothing in
the kernel.
"""

from __future__ import annotations

import os
import shlex
import sys

from lab import build
from lab.machine import Machine, running

#: The directory in the guest with stand-ins for iptables' programs.
STAND_INS = "/tmp/stand-ins"

_PREPARE = """\
mkdir {stand_ins}
for name in iptables ip6tables; do
    printf '#!/bin/sh\\n[ "$1" != --version ] || echo "iptables v1.8.9 (nf_tables)"\\n' >{stand_ins}/$name
    : >/tmp/$name
    printf '#!/bin/sh\\nexec cat /tmp/%s\\n' $name >{stand_ins}/$name-save
    printf '#!/bin/sh\\nexec sed "s/^-I \\([A-Z]*\\)/-A \\\\1/" >/tmp/%s\\n' $name >{stand_ins}/$name-restore
done
chmod +x {stand_ins}/*
PATH={stand_ins}:$PATH exec {command}
"""


def main() -> None:
    """Run the command of the arguments and exit with its status."""
    if not sys.argv[1:]:
        sys.exit("usage: python -m bench.user_mode COMMAND [ARGUMENT ...]")
    machine = Machine("native", build.built() or build.build(), "for figures of a node's own speed")
    # The kernel and the guest's processes are processes here that take turns. On one processor none has to be woken up
    # on another.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    script = _PREPARE.format(stand_ins=STAND_INS, command=shlex.join(sys.argv[1:]))
    with running(machine, ["sh", "-c", script]) as guest:
        status = guest.wait()
    sys.exit(status)


if __name__ == "__main__":
    main()
