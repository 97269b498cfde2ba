"""A kernel that runs as a program (user-mode Linux), built from Debian's source and kept outside of the checkout.

The invariant: a kernel in the cache is whole. It is built in a directory beside its place and moved there in one step,
with a checksum that every use compares; one build at a time holds a lock, and whoever waits for it takes its result.

The cache is ``$XDG_CACHE_HOME/ipvs-proxy/kernel/<version>-<hash of kernel.config>``, so it serves all checkouts of this
machine and a changed configuration is another kernel. The kernel needs no library and no module of anybody.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab.packages import install

FRAGMENT = Path(__file__).with_name("kernel.config")
#: Before 6.16 user-mode Linux has no ``seccomp=on``, and 6.1 and 6.12 panic on processors with large extended state.
SOURCE = "linux-source-7.2"
COMPILER = ("gcc", "libc6-dev", "make", "flex", "bison", "bc", "perl", "xz-utils")
#: Roughly how many lines ``make`` prints, for the progress.
OBJECTS = 1_150
#: Seconds between two lines of progress.
PROGRESS = 20.0

_APT = """\
Dir::Etc::sourcelist "{home}/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "{home}/lists";
Dir::Cache "{home}/cache";
APT::Sandbox::User "root";
Acquire::Languages "none";
"""
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def cache() -> Path:
    """Return the directory that holds the kernels of this user, whether it exists or not."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "ipvs-proxy", "kernel")


def built() -> Path | None:
    """Return the kernel of the cache that has this configuration, ``None`` if there is none or it is damaged."""
    places = sorted(cache().glob(f"*-{_fingerprint()}"), key=lambda place: place.stat().st_mtime)
    return next((place / "linux" for place in reversed(places) if _is_whole(place)), None)


def build() -> Path:
    """Build the kernel and return its path; if another build is running, wait for it and return its result.

    Raises SystemExit with the reason and the remedy if it cannot be built here.
    """
    cache().mkdir(parents=True, exist_ok=True)
    with _only_one():
        kernel = built()
        if kernel is not None:
            return kernel
        for abandoned in cache().glob("building-*"):
            shutil.rmtree(abandoned)
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="building-", dir=cache()) as home:
            install(COMPILER, "to build a kernel")
            version, source = _fetch(Path(home))
            _say(f"compiling Linux {version} (once for this machine; some {20 // _cores()} minutes)")
            binary = _compile(source, Path(home, "make.log"))
            place = _keep(binary, source / ".config", Path(home), version)
        _say(f"built in {time.monotonic() - began:.0f} s: {place}")
        return place / "linux"


def _fingerprint() -> str:
    return hashlib.sha256(FRAGMENT.read_bytes()).hexdigest()[:12]


def _is_whole(place: Path) -> bool:
    try:
        written = (place / "linux.sha256").read_text()
        return hashlib.sha256((place / "linux").read_bytes()).hexdigest() == written
    except OSError:
        return False


@contextmanager
def _only_one() -> Iterator[None]:
    with (cache() / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another build is going on, waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(home: Path) -> tuple[str, Path]:
    """Unpack the newest source of this series from Debian unstable; return its version and directory.

    It has package lists of its own, so that apt's are as before.
    """
    _say(f"fetching {SOURCE} of Debian unstable (160 MB)")
    for name in ("lists/partial", "cache/archives/partial"):
        (home / name).mkdir(parents=True)
    (home / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {_mirror()} sid main\n")
    (home / "apt.conf").write_text(_APT.format(home=home))
    environment = os.environ | {"APT_CONFIG": str(home / "apt.conf")}
    _run(["apt-get", "-qq", "update"], environment)
    _run(["apt-get", "-qq", "download", SOURCE], environment, cwd=home)
    (package,) = home.glob("*.deb")
    version = _output(["dpkg-deb", "--field", str(package), "Version"]).strip()
    _run(["sh", "-c", f"dpkg-deb --fsys-tarfile {package.name} | tar -x ./usr/src/{SOURCE}.tar.xz"], cwd=home)
    package.unlink()
    _run(["tar", "-xJf", f"usr/src/{SOURCE}.tar.xz"], cwd=home)
    (home / "usr/src" / f"{SOURCE}.tar.xz").unlink()
    return version, home / SOURCE


def _mirror() -> str:
    """Return the Debian mirror that apt uses, which apt knows only once it has package lists."""
    for attempt in range(2):
        listed = _output(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Identifier: Packages"]).split()
        mirrors = [uri for uri in listed if uri.rstrip("/").endswith("/debian")]
        if mirrors:
            return mirrors[0]
        if attempt == 0:
            _run(["apt-get", "-qq", "update"])
    sys.exit("kernel: apt has no mirror of Debian, see /etc/apt/sources.list")


def _compile(source: Path, log: Path) -> Path:
    make = ["make", "-s", "ARCH=um"]
    # No name of a user or host, so that two builds of one configuration are identical.
    environment = os.environ | {"KBUILD_BUILD_USER": "ipvs-proxy", "KBUILD_BUILD_HOST": "lab", "LC_ALL": "C"}
    _run([*make, "allnoconfig"], environment | {"KCONFIG_ALLCONFIG": str(FRAGMENT)}, cwd=source)
    _check_configuration(source / ".config")
    command = ["make", "ARCH=um", f"-j{_cores()}", "linux"]
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, cwd=source, env=environment, stdout=subprocess.PIPE, stderr=errors) as making,
    ):
        assert making.stdout is not None
        told = time.monotonic()
        for number, _ in enumerate(making.stdout, 1):
            if time.monotonic() - told >= PROGRESS:
                told = time.monotonic()
                _say(f"{min(99, 100 * number // OBJECTS)} % compiled")
    if making.returncode:
        sys.exit(f"kernel: it does not compile, make's last words:\n{log.read_text()[-2000:]}")
    return source / "linux"


def _check_configuration(written: Path) -> None:
    """Refuse a source that does not know a wanted option: Kconfig drops unknown options silently."""
    wanted = {line for line in FRAGMENT.read_text().splitlines() if line.startswith("CONFIG_")}
    dropped = sorted(wanted - set(written.read_text().splitlines()))
    if dropped:
        sys.exit(f"kernel: this source does not take {', '.join(dropped)}; mend {FRAGMENT.name}")


def _keep(binary: Path, configuration: Path, home: Path, version: str) -> Path:
    new, place = home / "kept", cache() / f"{version}-{_fingerprint()}"
    new.mkdir()
    shutil.copy(binary, new / "linux")
    shutil.copy(configuration, new / "config")
    (new / "linux.sha256").write_text(hashlib.sha256((new / "linux").read_bytes()).hexdigest())
    shutil.rmtree(place, ignore_errors=True)
    new.rename(place)
    return place


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _say(text: str) -> None:
    sys.stderr.write(f"kernel: {text}\n")
    sys.stderr.flush()


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None, *, cwd: Path | None = None) -> None:
    done = subprocess.run(
        command, env=environment, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-2000:]
        sys.exit(f"kernel: {' '.join(command)} failed (status {done.returncode}):\n{said}")


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout


if __name__ == "__main__":
    sys.stdout.write(f"{built() or build()}\n")
