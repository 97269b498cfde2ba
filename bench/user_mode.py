"""Runs a command in a kernel with IPVS at this machine's own speed: Linux as a program (user-mode Linux).

    python -m bench.user_mode COMMAND [ARGUMENT ...]

Emulation makes Python ten to thirty times as slow and system calls less, so its ratios say little about a node. This
kernel runs code natively; a system call costs about 17 us, more than on a node. It has one processor, and no iptables:
stand-ins for those programs keep what they are given, so packet rules cost two short processes each, as on a node,
and nothing in the kernel.

Debian has it in its unstable suite only. It is unpacked into ``.cache`` with the C library it needs; nothing is
installed. The command sees this machine's files read-only, except for a scratch directory and its own ``/tmp``.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
HOME = CHECKOUT / ".cache/user-mode"
MEMORY = "6G"
#: Where stand-ins for iptables' programs are in there.
STAND_INS = "/tmp/stand-ins"
MAPPINGS = Path("/proc/sys/vm/max_map_count")
#: For 4 GiB in one process.
ENOUGH_MAPPINGS = 1 << 20

_APT = """\
Dir::Etc::sourcelist "{home}/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "{home}/lists";
Dir::Cache "{home}/cache";
APT::Sandbox::User "root";
Acquire::Languages "none";
"""
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_PACKAGES = ("user-mode-linux", "libc6", "libgcc-s1")

#: In a mount namespace of its own, so that nothing of this stays: a root directory with the kernel and its C library,
#: in which ``/host`` is this machine.
_BOOT = """\
set -e
mount --make-rprivate /
cd {home}/root
mount --bind / host
mount -o remount,ro,bind host
mount --bind {scratch} host{scratch}
mount --bind usr/lib/uml/modules host/usr/lib/modules
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs -o size=90% none tmp
exec env HOME=/tmp chroot . /usr/bin/linux.uml mem={memory} seccomp=on root=/dev/root rootfstype=hostfs hostfs=/host \
    rw init={scratch}/init uml_dir=/tmp/ umid=bench con=null con0=fd:0,fd:1 quiet
"""

_INIT = """\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
for place in tmp run; do mount -t tmpfs none /$place; done
mkdir {stand_ins}
for name in iptables ip6tables; do
    printf '#!/bin/sh\\n[ "$1" != --version ] || echo "iptables v1.8.9 (nf_tables)"\\n' >{stand_ins}/$name
    : >/tmp/$name
    printf '#!/bin/sh\\nexec cat /tmp/%s\\n' $name >{stand_ins}/$name-save
    printf '#!/bin/sh\\nexec sed "s/^-I \\([A-Z]*\\)/-A \\\\1/" >/tmp/%s\\n' $name >{stand_ins}/$name-restore
done
chmod +x {stand_ins}/*
# As where kube-proxy ran: loading a module takes a start some milliseconds of a node, and here many times that.
for module in ip_vs ip_vs_rr dummy xt_set ip_set_bitmap_port ip_set_hash_ip ip_set_hash_ipport ip_set_hash_ipportip \
    ip_set_hash_ipportnet; do modprobe $module; done
ip link set lo up
cd {checkout}
{command} </dev/null >{scratch}/output 2>{scratch}/errors
echo $? >{scratch}/status
poweroff -f
"""


def main() -> None:
    """Run the command of the arguments and exit with its status."""
    if not sys.argv[1:]:
        sys.exit("usage: python -m bench.user_mode COMMAND [ARGUMENT ...]")
    install()
    # The kernel and the processes in it are processes here that take turns: on one processor none has to be woken up on
    # another.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with many_mappings():
        status = run(sys.argv[1:])
    sys.exit(status)


@contextmanager
def many_mappings() -> Iterator[None]:
    """Let processes here have as many mappings as pages in there need.

    A page there is a mapping here, unless it has the right neighbours. At the usual limit, which an agent with 500,000
    real servers reaches, a process in there meets the same page fault again and again, for ever.
    """
    before = MAPPINGS.read_text()
    MAPPINGS.write_text(str(max(int(before), ENOUGH_MAPPINGS)))
    try:
        yield
    finally:
        MAPPINGS.write_text(before)


def install() -> None:
    """Unpack the kernel and its libraries, unless they are there.

    Raises SystemExit if there is no such package here.
    """
    if (HOME / "root/usr/bin/linux.uml").exists():
        return
    sys.stderr.write("bench: fetching a kernel that runs at native speed (Debian unstable, into .cache)\n")
    for name in ("lists/partial", "cache/archives/partial", "root/proc", "root/dev", "root/tmp", "root/host"):
        (HOME / name).mkdir(parents=True, exist_ok=True)
    listed = _output(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Identifier: Packages"]).split()
    mirrors = [uri for uri in listed if uri.rstrip("/").endswith("/debian")]
    if not mirrors:
        sys.exit("bench: apt knows no mirror of Debian, so there is no user-mode Linux here")
    (HOME / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {mirrors[0]} sid main\n")
    (HOME / "apt.conf").write_text(_APT.format(home=HOME))
    environment = os.environ | {"APT_CONFIG": str(HOME / "apt.conf")}
    subprocess.run(["apt-get", "-qq", "update"], check=True, env=environment)
    subprocess.run(["apt-get", "-qq", "download", *_PACKAGES], check=True, env=environment, cwd=HOME)
    for package in HOME.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(HOME / "root")], check=True)
    # Debian's directories are merged in a real system; here the package for it would be one more.
    for name in ("lib", "lib64"):
        (HOME / "root" / name).symlink_to(f"usr/{name}")


def run(command: list[str]) -> int:
    """Boot the kernel, run the command in it, hand on its output, and give its exit status."""
    with tempfile.TemporaryDirectory(prefix="ipvs-proxy-bench-", dir="/var/tmp") as scratch:
        environment = {"PATH": f"{STAND_INS}:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp"}
        words = shlex.join(["env", *(f"{name}={value}" for name, value in environment.items()), *command])
        init = Path(scratch, "init")
        init.write_text(
            _INIT.format(stand_ins=STAND_INS, scratch=scratch, command=words, checkout=shlex.quote(str(CHECKOUT)))
        )
        init.chmod(0o755)
        boot = _BOOT.format(home=shlex.quote(str(HOME)), scratch=scratch, memory=MEMORY)
        booted = subprocess.run(
            ["unshare", "--mount", "sh", "-c", boot], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        for name, stream in (("output", sys.stdout), ("errors", sys.stderr)):
            if Path(scratch, name).exists():
                stream.write(Path(scratch, name).read_text())
        status = Path(scratch, "status")
        if not status.exists():
            sys.stderr.write("bench: the user-mode kernel ended before the command did; its last words:\n")
            sys.stderr.write(booted.stdout.decode(errors="replace")[-2000:] + booted.stderr.decode(errors="replace"))
            return 1
        return int(status.read_text())


def _output(command: list[str]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout


if __name__ == "__main__":
    main()
