"""The checks at start: what a host lacks is named. Each missing piece is tested where a host really lacks it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ipvs_proxy.kernel.filter.backend import IPTABLES, NFTABLES
from ipvs_proxy.netlink.errors import MissingPiece, Unusable
from ipvs_proxy.node import requirements

ROOT = Path(__file__).parents[2]
NET_ADMIN, NET_RAW = 1 << 12, 1 << 13


def in_namespace(code: str, *prefix: str) -> str:
    """Run code in a network namespace of its own; return what it prints, or the text of its MissingPiece."""
    program = (
        "from ipvs_proxy.node import requirements\n"
        "from ipvs_proxy.netlink.errors import MissingPiece\n"
        f"try: print({code})\n"
        "except MissingPiece as error: print('MISSING', error)\n"
    )
    command = ["unshare", "-n", *prefix, sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    if "unshare" in done.stderr:
        pytest.skip(f"no namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def dummy_is_there() -> bool:
    command = ["unshare", "-n", "ip", "link", "add", "probe0", "type", "dummy"]
    return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0


def test_missing_piece_is_one_line_with_the_piece_and_the_remedy():
    error = MissingPiece("the kernel has no IPVS", "load the module ip_vs")
    assert str(error) == "the kernel has no IPVS: load the module ip_vs"
    assert (error.piece, error.remedy) == ("the kernel has no IPVS", "load the module ip_vs")
    assert isinstance(error, Unusable)


def test_another_system_than_linux_is_named():
    with pytest.raises(MissingPiece, match="this system is darwin, not Linux"):
        requirements.require_linux("darwin")
    requirements.require_linux("linux")


@pytest.mark.parametrize(
    ("packet_filter", "capabilities", "missing"),
    [
        (IPTABLES, "000001ffffffffff", ""),
        (IPTABLES, f"{NET_ADMIN | NET_RAW:016x}", ""),
        (IPTABLES, "0000000000000000", "capabilities CAP_NET_ADMIN and CAP_NET_RAW are missing"),
        (IPTABLES, f"{0x1FFFFFFFFFF & ~NET_ADMIN:016x}", "capability CAP_NET_ADMIN is missing"),
        (IPTABLES, f"{NET_ADMIN:016x}", "capability CAP_NET_RAW is missing"),
        (IPTABLES, None, "capabilities CAP_NET_ADMIN and CAP_NET_RAW are missing"),
        (NFTABLES, f"{NET_ADMIN:016x}", ""),
        (NFTABLES, f"{NET_RAW:016x}", "capability CAP_NET_ADMIN is missing"),
    ],
)
def test_what_is_missing_is_read_from_the_effective_capabilities(tmp_path, packet_filter, capabilities, missing):
    (tmp_path / "self").mkdir()
    line = "" if capabilities is None else f"CapPrm:\tffffffffffffffff\nCapEff:\t{capabilities}\n"
    (tmp_path / "self/status").write_text(f"Name:\tpython\n{line}Seccomp:\t0\n")
    needed = "NET_ADMIN, NET_RAW" if packet_filter == IPTABLES else "NET_ADMIN"
    if not missing:
        requirements.require_capabilities(packet_filter, tmp_path)
    else:
        with pytest.raises(MissingPiece, match=rf"the {missing}: .*capabilities\.add: \[{needed}\]"):
            requirements.require_capabilities(packet_filter, tmp_path)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
@pytest.mark.parametrize("name", ["net_admin", "net_raw"])
def test_a_process_without_a_capability_is_told_so_first(name):
    without = ("setpriv", f"--bounding-set=-{name}", f"--inh-caps=-{name}")
    said = in_namespace("requirements.require_all()", *without)
    assert said.startswith(f"MISSING the capability CAP_{name.upper()} is missing: ")


@pytest.mark.skipif(Path("/proc/net/ip_vs").exists(), reason="this kernel has IPVS")
def test_a_kernel_without_ipvs_is_named_even_where_modprobe_fails():
    expected = "MISSING the kernel has no IPVS: load the module ip_vs"
    assert in_namespace("requirements.require_ipvs()").startswith(expected)
    assert in_namespace("requirements.require_ipvs()", "env", "PATH=/nowhere").startswith(expected)


def test_dummy_links_are_probed_without_making_one():
    said = in_namespace("[requirements.require_dummy(), __import__('socket').if_nameindex()]")
    if dummy_is_there():
        assert said == "[None, [(1, 'lo')]]"
    else:
        assert said.startswith("MISSING the kernel has no dummy links: load the module dummy")
