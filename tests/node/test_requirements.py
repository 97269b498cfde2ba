"""The checks at start: what a host lacks is named. Each missing piece is tested where a host really lacks it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ipvs_proxy.kernel.filter.iptables.programs import NF_TABLES, Iptables
from ipvs_proxy.netlink.errors import MissingPiece, Unusable
from ipvs_proxy.node import requirements
from ipvs_proxy.plan.tables import Family

ROOT = Path(__file__).parents[2]
NET_ADMIN, NET_RAW = 1 << 12, 1 << 13
IPTABLES = Iptables(suffix="", backend=NF_TABLES, version=(1, 8, 9), reason="test")


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
    ("capabilities", "missing"),
    [
        ("000001ffffffffff", ""),
        (f"{NET_ADMIN | NET_RAW:016x}", ""),
        ("0000000000000000", "capabilities CAP_NET_ADMIN and CAP_NET_RAW are missing"),
        (f"{0x1FFFFFFFFFF & ~NET_ADMIN:016x}", "capability CAP_NET_ADMIN is missing"),
        (f"{NET_ADMIN:016x}", "capability CAP_NET_RAW is missing"),
        (None, "capabilities CAP_NET_ADMIN and CAP_NET_RAW are missing"),
    ],
)
def test_what_is_missing_is_read_from_the_effective_capabilities(tmp_path, capabilities, missing):
    (tmp_path / "self").mkdir()
    line = "" if capabilities is None else f"CapPrm:\tffffffffffffffff\nCapEff:\t{capabilities}\n"
    (tmp_path / "self/status").write_text(f"Name:\tpython\n{line}Seccomp:\t0\n")
    if not missing:
        requirements.require_capabilities(tmp_path)
    else:
        with pytest.raises(MissingPiece, match=rf"the {missing}: .*capabilities\.add: \[NET_ADMIN, NET_RAW\]"):
            requirements.require_capabilities(tmp_path)


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


def test_an_extension_that_does_not_exist_is_seen():
    if in_namespace("requirements.has_extension('addrtype', requirements.Family.IPV4)") != "True":
        pytest.skip("this kernel has no addrtype")
    for family in ("IPV4", "IPV6"):
        assert in_namespace(f"requirements.has_extension('nonsense', requirements.Family.{family})") == "False"


def test_a_kernel_without_the_set_match_is_named(monkeypatch):
    monkeypatch.setattr(requirements, "has_extension", lambda name, family: False)
    with pytest.raises(MissingPiece, match="lacks the iptables extension set: load the module xt_set"):
        requirements.require_set_match(Family.IPV4)


@pytest.fixture
def proc(tmp_path):
    """Return a ``/proc`` of a host with both families."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net/if_inet6").touch()
    (tmp_path / "sys/net/ipv6/conf/all").mkdir(parents=True)
    (tmp_path / "sys/net/ipv6/conf/all/disable_ipv6").write_text("0\n")
    return tmp_path


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Return a function that makes ``iptables`` and ``ip6tables`` end with a status and an error."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))

    def install(name: str, status: int = 0, error: str = "") -> None:
        (directory / name).write_text(f"#!/bin/sh\necho {shlex.quote(error)} >&2\nexit {status}\n")
        (directory / name).chmod(0o755)

    return install


def test_both_families_are_supported_where_both_nat_tables_are_there(proc, programs):
    programs("iptables")
    programs("ip6tables")
    assert requirements.supported_families(IPTABLES, proc=proc) == ((Family.IPV4, Family.IPV6), {})


def test_ipv6_needs_to_be_in_the_kernel(proc, programs):
    programs("iptables")
    (proc / "net/if_inet6").unlink()
    families, unsupported = requirements.supported_families(IPTABLES, proc=proc)
    assert families == (Family.IPV4,)
    assert "the kernel has no IPv6" in unsupported[Family.IPV6]


def test_ipv6_needs_to_be_enabled(proc, programs):
    programs("iptables")
    (proc / "sys/net/ipv6/conf/all/disable_ipv6").write_text("1\n")
    families, unsupported = requirements.supported_families(IPTABLES, proc=proc)
    assert families == (Family.IPV4,)
    assert "disable_ipv6 is 1" in unsupported[Family.IPV6]


def test_a_family_without_a_nat_table_is_left_out_with_its_reason(proc, programs):
    programs("iptables", 3, "iptables v1.8.9 (legacy): can't initialize iptables table `nat': Table does not exist")
    programs("ip6tables")
    families, unsupported = requirements.supported_families(IPTABLES, proc=proc)
    assert families == (Family.IPV6,)
    assert "Table does not exist" in unsupported[Family.IPV4]


def test_no_family_at_all_ends_the_start(proc, programs):
    programs("iptables", 3, "no table")
    (proc / "net/if_inet6").unlink()
    with pytest.raises(MissingPiece, match=r"neither IPv4 nor IPv6 can be served: IPv4: .*no table; IPv6: the kernel"):
        requirements.supported_families(IPTABLES, proc=proc)
