"""Runs a command where the kernel has IPVS: here if this kernel has it, otherwise in a virtual machine with Debian's kernel.

    python -m tests.ring.vm COMMAND [ARGUMENT ...]

The command runs as root in a copy of this checkout, with its output as it comes and its exit status as ours. The machine sees the
host's files read-only; only a scratch directory is shared for writing. Its root file system is slow (a start of Python
takes seconds, a small file some hundredths), so the checkout and the virtual environment go into the guest's memory as
one file each, and the rest is mounted once more with a cache.

Emulation is the default: a ``/dev/kvm`` may exist and still not boot a stock kernel. Where it does, IPVS_PROXY_KVM=1 uses it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
#: What of the virtual environment the guest does not need; RING_WITH_API=1 takes the API's client along.
_LEFT_BEHIND = (
    *(() if os.environ.get("RING_WITH_API") else ("kubernetes_asyncio",)),
    *("mypy", "mypyc", "mypy*.so", "*__mypyc*.so", "ruff", "grimp", "importlinter", "pip", "setuptools", "virtme*"),
    *("kubernetes_validate", "matplotlib", "numpy*", "PIL", "pillow*", "fontTools"),
)

_GUEST = """\
set -e
echo "ring: booted $(uname -r)" >&2
umount /mnt
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000,access=any virtme.initmount1 /mnt
for place in proc sys dev run dev/shm; do mount --rbind /$place /mnt/$place; done
for place in tmp var/tmp var/log; do mount -t tmpfs none /mnt/$place; done
for name in checkout site; do mkdir /mnt/tmp/$name; tar xf {scratch}/$name.tar -C /mnt/tmp/$name; rm {scratch}/$name.tar; done
mkdir -p /mnt/tmp/bin
cp /usr/sbin/xtables-nft-multi /usr/sbin/xtables-legacy-multi /usr/sbin/ipset /usr/sbin/ipvsadm /bin/ip /mnt/tmp/bin/
for name in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
    ln -s xtables-nft-multi /mnt/tmp/bin/$name
    case $name in ip6*) rest=${{name#ip6tables}}; base=ip6tables ;; *) rest=${{name#iptables}}; base=iptables ;; esac
    ln -s xtables-legacy-multi /mnt/tmp/bin/$base-legacy$rest
done
for module in ip_vs dummy veth sctp ip_set xt_set; do modprobe $module; done
ip link set lo up
status=0
chroot /mnt /bin/sh -c {command} || status=$?
echo $status > {scratch}/status
"""


def main() -> None:
    """Run the command of the arguments and exit with its status."""
    command = sys.argv[1:]
    if not command:
        sys.exit("usage: python -m tests.ring.vm COMMAND [ARGUMENT ...]")
    if has_ipvs():
        os.chdir(CHECKOUT)
        os.execvp(command[0], command)
    sys.exit(run_in_machine(command))


def has_ipvs() -> bool:
    """Tell whether this kernel has IPVS and dummy links, loading the modules if need be."""
    for module in ("ip_vs", "dummy"):
        subprocess.run(["modprobe", module], check=False, capture_output=True)
    return Path("/proc/net/ip_vs").exists()


def newest_kernel() -> Path:
    """Find the newest of Debian's general kernels that is installed.

    Raises SystemExit with the remedy if there is none.
    """
    kernels = [path for path in Path("/boot").glob("vmlinuz-*-amd64") if not re.search("cloud|rt-amd64", path.name)]
    if not kernels:
        sys.exit(
            "ring: /boot has no kernel for the virtual machine: apt-get install linux-image-amd64 (or: make setup)"
        )
    return max(kernels, key=lambda path: [int(number) for number in re.findall(r"\\d+", path.name)])


def run_in_machine(command: list[str]) -> int:
    """Boot the machine, run the command in it, and give its exit status."""
    kernel = newest_kernel()
    sys.stderr.write(f"ring: this kernel has no IPVS, booting {kernel.name} in a virtual machine (half a minute)\n")
    site = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    with tempfile.TemporaryDirectory(prefix="ipvs-proxy-ring-") as scratch:
        environment = {
            "PATH": "/tmp/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": "/tmp/site:/tmp/checkout",
            "HOME": "/root",
            "REQUIRE_RING": os.environ.get("REQUIRE_RING", ""),
            "RING_IMAGE": str(CHECKOUT / "dist/rootfs"),
        }
        settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
        inner = shlex.join(["python3" if word == sys.executable else word for word in command])
        python = shlex.quote(str(Path(sys.executable).resolve()))
        pack(
            CHECKOUT,
            Path(scratch, "checkout.tar"),
            ("./.venv", "./.git", "./.cache", "./.*_cache", "./.hypothesis", "./dist"),
        )
        pack(site, Path(scratch, "site.tar"), _LEFT_BEHIND)
        guest = _GUEST.format(
            command=shlex.quote(f"ln -s {python} /tmp/bin/python3; cd /tmp/checkout; exec env {settings} {inner}"),
            scratch=scratch,
        )
        Path(scratch, "guest.sh").write_text(guest)
        run_guest(kernel, scratch)
        status = Path(scratch, "status")
        if not status.exists():
            sys.stderr.write("ring: the virtual machine ended before the command did; its last words are above\n")
            return 1
        return int(status.read_text())


def pack(directory: Path, archive: Path, left_behind: Iterable[str]) -> None:
    """Put a directory into a tar archive, without what matches the patterns."""
    excludes = [f"--exclude={pattern}" for pattern in left_behind]
    subprocess.run(["tar", "cf", str(archive), "-C", str(directory), *excludes, "."], check=True)


def run_guest(kernel: Path, scratch: str) -> None:
    """Boot a kernel with the guest's script; its output goes to ours."""
    acceleration = [] if os.environ.get("IPVS_PROXY_KVM") == "1" else ["--disable-kvm"]
    subprocess.run(
        [
            *(str(Path(sys.executable).parent / "vng"), "--run", str(kernel), *acceleration),
            *("--cpus", "2", "--memory", "4G", "--user", "root", f"--rwdir={scratch}", "--rodir=/mnt=/"),
            *("--", "sh", f"{scratch}/guest.sh"),
        ],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        check=False,
    )


if __name__ == "__main__":
    main()
