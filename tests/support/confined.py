"""Runs a program with the confinement of a container that has few rights.

    python tests/support/confined.py CAPABILITY[,CAPABILITY...] PROGRAM [ARGUMENT ...]

This is what Kubernetes does for a container that is not privileged, drops all capabilities but a few and has the
seccomp profile RuntimeDefault: ``/proc/sys`` and ``/sys`` are read-only, other capabilities cannot be gained, and the
system calls that the profile refuses fail with EPERM. Needs root and a mount namespace of its own
(``unshare --mount``). x86-64 only.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
import subprocess
import sys
from errno import EPERM
from pathlib import Path

#: What the profile refuses to a container without CAP_SYS_ADMIN and its like (Docker's documentation, "Seccomp security
#: profiles", significant syscalls blocked; the same list is containerd's), by the numbers of x86-64.
# fmt: off
REFUSED = {
    "ptrace": 101, "pivot_root": 155, "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167,
    "swapoff": 168, "reboot": 169, "iopl": 172, "ioperm": 173, "init_module": 175, "delete_module": 176,
    "quotactl": 179, "nfsservctl": 180, "lookup_dcookie": 212, "clock_settime": 227, "mbind": 237, "kexec_load": 246,
    "add_key": 248, "request_key": 249, "keyctl": 250, "unshare": 272, "move_pages": 279, "perf_event_open": 298,
    "name_to_handle_at": 303, "open_by_handle_at": 304, "clock_adjtime": 305, "setns": 308, "process_vm_readv": 310,
    "process_vm_writev": 311, "kcmp": 312, "finit_module": 313, "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323,
}
# fmt: on

# linux/prctl.h, linux/filter.h, linux/seccomp.h
_SET_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | EPERM


def capabilities_of_the_chart(packet_filter: str) -> list[str]:
    """Return the capabilities that the chart gives to an agent with a packet filter."""
    text = (Path(__file__).parents[2] / "helm/ipvs-proxy/templates/daemonset.yaml").read_text()
    (branches,) = re.findall(
        r'drop: \[ALL\]\n *{{- if eq .Values.packetFilter "nftables" }}\n((?:.*\n)*?) *{{- end', text
    )
    for_nftables, for_others = re.findall(r"^ *add: \[(.*)\]$", branches, re.MULTILINE)
    return [name.strip() for name in (for_nftables if packet_filter == "nftables" else for_others).split(",")]


def confined(capabilities: list[str]) -> tuple[str, ...]:
    """Return the prefix that makes a command run with these capabilities only."""
    return ("unshare", "--mount", sys.executable, __file__, ",".join(capabilities))


def seccomp_filter() -> bytes:
    """Return the filter's program: ``struct sock_filter`` after ``struct sock_filter``."""
    numbers = sorted(REFUSED.values())
    steps = [(_LOAD, 0, 0, 0)]
    # A jump skips the remaining steps and "allow".
    steps += [(_JUMP_IF_EQUAL, len(numbers) - index, 0, number) for index, number in enumerate(numbers)]
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def refuse_system_calls() -> None:
    """Install the filter for this process and every program that it executes."""
    program = seccomp_filter()
    buffer = ctypes.create_string_buffer(program, len(program))
    description = struct.pack("HP", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(_SET_SECCOMP, _FILTER, description, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def main() -> None:
    """Confine this process and execute the program."""
    capabilities, *command = sys.argv[1:]
    for place in ("/proc/sys", "/sys"):
        subprocess.run(["mount", "--bind", place, place], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
    refuse_system_calls()
    kept = ",".join(f"+{name.lower()}" for name in capabilities.split(",") if name)
    bounds = f"-all,{kept}" if kept else "-all"
    os.execvp("setpriv", ["setpriv", f"--bounding-set={bounds}", "--inh-caps=-all", *command])


if __name__ == "__main__":
    main()
