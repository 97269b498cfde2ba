"""Runs a command in Debian's stock kernel in a virtual machine, emulated unless IPVS_PROXY_KVM=1.

The command runs as root in a copy of this checkout. The machine sees the host's files read-only; only a scratch
directory is shared for writing. Its root file system is slow: starting Python takes seconds, opening a small file some
hundredths of one. So the checkout, the virtual environment and Python's own library are copied into the guest's memory,
as one archive each, and the rest is mounted a second time with a cache. Tests fork the agent and its commands from a
process that has imported them (``lab.preloaded``).

Emulation is the default: a ``/dev/kvm`` may exist and still not boot a stock kernel.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from lab.native import Guest
from lab.packages import install

#: The kernel, the emulator, and the programs with which virtme-ng finds out the kernel's version and makes an initial
#: file system.
PACKAGES = ("linux-image-amd64", "qemu-system-x86", "busybox-static", "udev", "zstd", "cpio", "file")
PATH = "/tmp/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Parts of the checkout and of the virtual environment that the guest does not need. With RING_WITH_API=1 it also gets
#: the models of the Kubernetes API. Of what was downloaded, tests of the ring need Helm alone.
_NOT_OF_THE_CHECKOUT = ("./.venv", "./.git", "./.cache/[!h]*", "./.*_cache", "./.hypothesis", "./dist")
_NOT_OF_THE_PACKAGES = (
    *(
        ()
        if os.environ.get("RING_WITH_API")
        else ("./kubernetes_asyncio/client/models", "./kubernetes_asyncio/client/api")
    ),
    *("mypy", "mypyc", "mypy*.so", "*__mypyc*.so", "ruff", "grimp", "importlinter", "pip", "setuptools", "virtme*"),
    *("kubernetes_validate", "matplotlib", "numpy*", "PIL", "pillow*", "fontTools", "playwright"),
    # With it structlog imports it, which takes a second; it comes with import-linter, and the image has none.
    "rich",
)
_NOT_OF_THE_LIBRARY = (
    "./site-packages",
    "./dist-packages",
    "./test",
    "./idlelib",
    "./tkinter",
    "./lib2to3",
    "./config-*",
)
#: Options without KVM. The emulator keeps translated code by its virtual address: where each process has a library at
#: the same address, it is not translated again, and processes start twice as fast. A processor with ERMS is asked to
#: clear and copy memory by instructions that the emulator repeats for each byte; without it, a new page takes half the
#: time. And nothing needs to be defended against guesses that an emulated processor does not make.
_EMULATED = ("--disable-kvm", "--append", "norandmaps", "--append", "mitigations=off", "--qemu-opts=-cpu max,-erms")

_GUEST = """\
set -e
echo "lab: booted $(uname -r); the ring forks agents and commands from a process that has imported them" >&2
while read -r source place rest; do [ $place != /mnt ] || tag=$source; done </proc/mounts
umount /mnt
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000,access=any $tag /mnt
for place in proc sys dev run dev/shm; do mount --rbind /$place /mnt/$place; done
for place in tmp var/tmp var/log; do mount -t tmpfs none /mnt/$place; done
for name in checkout site stdlib; do
    mkdir /mnt/tmp/$name
    tar xf {scratch}/$name.tar -C /mnt/tmp/$name
    rm {scratch}/$name.tar
done
mount --bind /mnt/tmp/stdlib /mnt{stdlib}
mkdir -p /mnt{scratch}
mount --bind {scratch} /mnt{scratch}
{shared}
mkdir -p /mnt/tmp/bin
cp /usr/sbin/xtables-nft-multi /usr/sbin/xtables-legacy-multi /usr/sbin/ipset /usr/sbin/ipvsadm /bin/ip /mnt/tmp/bin/
for name in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
    ln -s xtables-nft-multi /mnt/tmp/bin/$name
    case $name in ip6*) rest=${{name#ip6tables}}; base=ip6tables ;; *) rest=${{name#iptables}}; base=iptables ;; esac
    ln -s xtables-legacy-multi /mnt/tmp/bin/$base-legacy$rest
done
for module in ip_vs dummy veth sctp ip_set xt_set; do modprobe $module; done
ip link set lo up
# Open files of a process, as systemd allows; a client of a test has a thousand connections.
ulimit -n 524288
status=0
chroot /mnt /bin/sh -c {command} || status=$?
echo $status > {scratch}/status
"""


def stock_kernel() -> Path:
    """Return Debian's newest general kernel on this machine; install one, and the emulator, if there is none.

    Raises SystemExit if they cannot be installed.
    """
    install(PACKAGES, "to emulate a machine")
    kernels = [path for path in Path("/boot").glob("vmlinuz-*-amd64") if not re.search("cloud|rt-amd64", path.name)]
    if not kernels:
        sys.exit(
            "lab: linux-image-amd64 is installed, but /boot has no vmlinuz-*-amd64; try: apt-get install --reinstall"
        )
    return max(kernels, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])


@contextmanager
def guest(
    kernel: Path,
    command: Sequence[str],
    *,
    checkout: Path,
    environment: Mapping[str, str],
    scratch: Path,
    shared: Path | None = None,
    processors: int = 1,
    output: int | IO[bytes] | None = None,
) -> Iterator[Guest]:
    """Boot a guest that runs the command in a copy of the checkout; kill it at the end if it still runs.

    Words of the command that are this Python become the guest's. ``scratch`` is an empty directory that the guest may
    write, ``shared`` one that several may. ``output`` takes both of its streams, which otherwise are ours.
    """
    script = scratch / "guest.sh"
    script.write_text(_prepare(command, checkout, environment, scratch, shared))
    process = subprocess.Popen(
        [
            *("setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *(str(Path(sys.executable).parent / "vng"), "--run", str(kernel)),
            *([] if os.environ.get("IPVS_PROXY_KVM") == "1" else _EMULATED),
            *("--cpus", str(processors), "--memory", "4G", "--user", "root", "--rodir=/mnt=/"),
            *(f"--rwdir={directory}" for directory in (scratch, shared) if directory),
            *("--", "sh", str(script)),
        ],
        stdin=subprocess.DEVNULL,
        # Always pipes: the emulator reopens its output by path, which would truncate a file.
        stdout=subprocess.PIPE if output is None else output,
        stderr=subprocess.PIPE if output is None else subprocess.STDOUT,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TMPDIR": str(scratch)},
        start_new_session=True,
    )
    with ExitStack() as relays:
        if output is None:
            for source, number in ((process.stdout, 1), (process.stderr, 2)):
                thread = threading.Thread(target=_relay, args=(source, number), daemon=True)
                thread.start()
                relays.callback(thread.join)
        try:
            yield Guest(process, scratch / "status")
        finally:
            process.kill()
            process.wait()


def _prepare(
    command: Sequence[str], checkout: Path, environment: Mapping[str, str], scratch: Path, shared: Path | None
) -> str:
    """Archive in ``scratch`` what the guest gets in memory; return the script that it runs."""
    site = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    stdlib = Path(sysconfig.get_path("stdlib")).resolve()
    pack(checkout, scratch / "checkout.tar", _NOT_OF_THE_CHECKOUT)
    pack(site, scratch / "site.tar", _NOT_OF_THE_PACKAGES)
    pack(stdlib, scratch / "stdlib.tar", _NOT_OF_THE_LIBRARY)
    told = {"PATH": PATH, "PYTHONPATH": "/tmp/site:/tmp/checkout", "HOME": "/root", "LAB_PRELOADED": "1", **environment}
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in told.items())
    inner = shlex.join(["python3" if word == sys.executable else word for word in command])
    python = shlex.quote(str(Path(sys.executable).resolve()))
    return _GUEST.format(
        stdlib=stdlib,
        command=shlex.quote(f"ln -s {python} /tmp/bin/python3; cd /tmp/checkout; exec env {settings} {inner}"),
        scratch=scratch,
        shared=f"mkdir -p /mnt{shared}\nmount --bind {shared} /mnt{shared}" if shared else "",
    )


def pack(directory: Path, archive: Path, left_behind: Iterable[str]) -> None:
    """Archive a directory with tar, except for what matches the patterns."""
    excludes = [f"--exclude={pattern}" for pattern in left_behind]
    subprocess.run(["tar", "cf", str(archive), "-C", str(directory), *excludes, "."], check=True)


def _relay(source: IO[bytes], number: int) -> None:
    while data := os.read(source.fileno(), 1 << 16):
        while data:
            data = data[os.write(number, data) :]
