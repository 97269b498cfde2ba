"""Runs a command in the kernel of ``lab.build``: Linux as a program, at this machine's own speed.

The command sees this machine's files read-only at their own paths, one scratch directory for what it may leave, and
memory at /tmp, /run, /var/tmp and /var/log. It is root, the network is its own, its output and exit status are ours.

Nothing stays behind, however it ends: the guest's processes live in a process namespace of their own that the kernel
kills together, its mounts in a mount namespace, and its scratch directory goes with the context that made it.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import IO, Any

INIT = Path(__file__).with_name("init.py")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
#: An upper bound: the kernel takes pages as it needs them.
MEMORY = "6G"
MAPPINGS = Path("/proc/sys/vm/max_map_count")
#: Each page of a process in the guest is a mapping here; this allows 4 GiB in one process. At the usual limit a process
#: repeats the same page fault for ever.
ENOUGH_MAPPINGS = 1 << 20

#: The processor of the next guest, round robin; another run starts with another processor.
_ALLOWED = sorted(os.sched_getaffinity(0))
_PROCESSORS = cycle(_ALLOWED[os.getpid() % len(_ALLOWED) :] + _ALLOWED[: os.getpid() % len(_ALLOWED)])
#: If this process is killed, the guest dies with it.
_BOUND_TO_US = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child")
#: The environment of every command; byte code cannot be written beside the sources.
_ENVIRONMENT = {"PATH": PATH, "HOME": "/tmp", "TERM": os.environ.get("TERM", "dumb"), "PYTHONDONTWRITEBYTECODE": "1"}
#: What iptables and ipset are made of in the kernel, by the functions that would set it up, and their programs.
#: Without ``nft_compat``, the variant nf_tables has no match of its own; without the others, legacy has no table.
_IPTABLES_PARTS = (
    "ip_set_init",
    "nft_compat_module_init",
    *(f"ip{version}_tables_init" for version in ("", "6")),
    *(f"ip{version}table_{table}_init" for version in ("", "6") for table in ("filter", "mangle", "nat", "raw")),
)
#: Puts links to all other programs in the place of those of iptables and ipset.
_HIDE_IPTABLES = """\
mkdir {scratch}/programs
mount --bind /usr/sbin {root}{scratch}/programs
mount -t tmpfs none {root}/usr/sbin
ls /usr/sbin | sed 's,^,{scratch}/programs/,' | xargs ln -s -t {root}/usr/sbin
for name in ip6tables iptables xtables ipset arptables ebtables; do rm -f {root}/usr/sbin/$name*; done
"""
#: Mounts the machine's files a second time, read-only and unaffected by later mounts, and boots there.
_BOOT = """\
set -e
mount --make-rprivate /
mount --rbind / {root}
cut -d ' ' -f 5 /proc/self/mountinfo | grep '^{root}' | while read -r place; do mount -o remount,ro,bind "$place"; done
for place in {writable}; do mount --bind $place {root}$place; done
{more}
exec {kernel} mem={memory} seccomp=on root=/dev/root rootfstype=hostfs hostfs={root} rw init={init} TASK={task} \
    uml_dir={scratch}/ umid=guest con=null con0={console},fd:1 con1=null,fd:2 ssl=null quiet loglevel=2 {options}
"""


class Guest:
    """A command that runs in a guest of its own."""

    def __init__(self, process: subprocess.Popen[bytes], status: Path) -> None:
        self.process = process
        self._status = status

    def wait(self) -> int:
        """Wait for the guest's end; return the command's exit status, 1 if the kernel ended before the command did."""
        self.process.wait()
        try:
            return int(self._status.read_text())
        except (OSError, ValueError):
            sys.stderr.write("lab: the guest ended before its command did; its last words are above\n")
            return 1


@contextmanager
def guest(
    kernel: Path,
    command: Sequence[str],
    *,
    directory: Path,
    environment: Mapping[str, str],
    scratch: Path,
    shared: Path | None = None,
    interactive: bool = False,
    has_iptables: bool = True,
    output: int | IO[bytes] | None = None,
) -> Iterator[Guest]:
    """Boot a guest that runs the command; kill it at the end if it still runs.

    ``directory`` is where the command starts, ``environment`` all that it gets, ``scratch`` an empty directory that it
    may write, ``shared`` one that several guests may. Without ``has_iptables``, its kernel has neither iptables nor
    ipset, and their programs do not run. ``output`` takes both of its streams, which otherwise are ours.
    """
    status = scratch / "status"
    task = {
        "command": list(command),
        "directory": str(directory),
        "environment": {**_ENVIRONMENT, "PYTHONPATH": str(directory), **environment},
        "kept": [str(place) for place in (directory, scratch, shared, sys.prefix, sys.base_prefix) if place],
        "interactive": interactive,
        "status": str(status),
    }
    console = "fd:0" if interactive else "null"
    boot = _prepare(kernel, task, scratch=scratch, shared=shared, has_iptables=has_iptables, console=console)
    process = subprocess.Popen(
        [
            *("taskset", "--cpu-list", str(next(_PROCESSORS))),
            *_BOUND_TO_US,
            *("sh", "-c", boot),
        ],
        env={"PATH": PATH, "HOME": str(scratch), "TMPDIR": _memory()},
        stdin=None if interactive else subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        # Not in the terminal's foreground, so that Ctrl-C reaches only this process.
        start_new_session=not interactive,
    )
    try:
        yield Guest(process, status)
    finally:
        process.kill()
        process.wait()


def _prepare(
    kernel: Path, task: Mapping[str, Any], *, scratch: Path, shared: Path | None, has_iptables: bool, console: str
) -> str:
    """Write what the guest's first process reads to ``scratch``; return the script that boots it."""
    root, init, told = (scratch / name for name in ("root", "init", "task"))
    root.mkdir()
    init.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -IS {shlex.quote(str(INIT))}\n")
    init.chmod(0o755)
    told.write_text(json.dumps(task))
    return _BOOT.format(
        kernel=shlex.quote(str(kernel)),
        root=root,
        scratch=scratch,
        writable=shlex.join(str(place) for place in (scratch, shared) if place),
        memory=MEMORY,
        init=init,
        task=told,
        more="" if has_iptables else _HIDE_IPTABLES.format(root=root, scratch=scratch),
        options="" if has_iptables else "initcall_blacklist=" + ",".join(_IPTABLES_PARTS),
        console=console,
    )


@contextmanager
def here(
    command: Sequence[str],
    *,
    directory: Path,
    environment: Mapping[str, str],
    scratch: Path,
    output: int | IO[bytes] | None = None,
) -> Iterator[Guest]:
    """Run the command on this machine itself; kill it at the end if it still runs."""
    process = subprocess.Popen(
        ["sh", "-c", f'"$@"; echo $? >{shlex.quote(str(scratch))}/status', "sh", *command],
        cwd=directory,
        env=environment,
        stdout=output,
        stderr=output,
    )
    try:
        yield Guest(process, scratch / "status")
    finally:
        process.kill()
        process.wait()


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Make a temporary directory and remove it at the end."""
    with tempfile.TemporaryDirectory(prefix="ipvs-proxy-lab-", dir="/var/tmp") as name:
        yield Path(name)


def allow_many_mappings() -> None:
    """Raise this machine's limit on mappings (``vm.max_map_count``) to what guests need, and say so.

    The limit stays raised, because other guests may be running. Some distributions have it as high by default.
    """
    if int(MAPPINGS.read_text()) < ENOUGH_MAPPINGS:
        sys.stderr.write(f"lab: setting vm.max_map_count to {ENOUGH_MAPPINGS}, as large processes in there need\n")
        MAPPINGS.write_text(str(ENOUGH_MAPPINGS))


def _memory() -> str:
    """Return the directory for the guest's memory file: one in memory if possible."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"
