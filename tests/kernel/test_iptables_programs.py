"""Running iptables: which programs, and what their failures mean.

The error outputs are those that iptables 1.8.9 printed for each of the causes.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from ipvs_proxy.kernel.filter import processes
from ipvs_proxy.kernel.filter.iptables import programs as module
from ipvs_proxy.kernel.filter.iptables.programs import LEGACY, NF_TABLES, Iptables, choose_variant, explain
from ipvs_proxy.netlink.errors import MissingPiece, Unusable
from ipvs_proxy.plan.tables import Family

NFT = Iptables(suffix="", backend=NF_TABLES, version=(1, 8, 9), reason="test")
TEXT = "*nat\n:KX - [0:0]\n-A KX -m ipvs --vproto tcp -j RETURN\nCOMMIT\n"


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Return a function that puts a program into an otherwise empty ``PATH``."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def install(name: str, script: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return install


@pytest.mark.parametrize(
    ("printed", "backend", "version", "random_fully"),
    [
        ("iptables v1.8.9 (nf_tables)", NF_TABLES, (1, 8, 9), True),
        ("iptables v1.8.9 (legacy)", LEGACY, (1, 8, 9), True),
        ("iptables v1.6.1", LEGACY, (1, 6, 1), False),
        ("iptables v1.6.2", LEGACY, (1, 6, 2), True),
        ("iptables v1.8 (nf_tables)", NF_TABLES, (1, 8, 0), True),
    ],
)
def test_version_says_which_world_and_which_options(programs, printed, backend, version, random_fully):
    programs("iptables", f"echo '{printed}'")
    found = choose_variant()
    assert (found.backend, found.version, found.random_fully) == (backend, version, random_fully)
    assert found.reason == "it is the node's default"


NFT_SAYS, LEGACY_SAYS = "iptables v1.8.9 (nf_tables)", "iptables v1.8.9 (legacy)"
HINT = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT"
RULES = "*nat\n-A A -j B\n-A A -j C\nCOMMIT"


@pytest.fixture
def both(programs, tmp_path, monkeypatch):
    """Return a function that installs both variants, nf_tables as the default, by what each prints as saved."""
    net = tmp_path / "proc"
    net.mkdir()
    monkeypatch.setattr(module, "_PROC_NET", net)

    def install(
        *, nft: str = "", legacy: str = "", legacy_tables: str | None = "nat\n", says: str = LEGACY_SAYS
    ) -> Path:
        if legacy_tables is not None:
            (net / "ip6_tables_names").write_text(legacy_tables)
        programs("iptables", f"echo '{NFT_SAYS}'")
        programs("iptables-legacy", f"echo '{says}'")
        programs("iptables-legacy-restore", "exit 1")
        for name, printed in (("", nft), ("-legacy", legacy)):
            for family in ("iptables", "ip6tables"):
                log = f'echo "{family}{name}-save $@" >> {tmp_path}/log'
                programs(f"{family}{name}-save", f"{log}\necho '{printed if family == 'ip6tables' else ''}'")
        return tmp_path / "log"

    return install


@pytest.mark.parametrize(
    ("kernel", "chosen", "ran"),
    [
        # Usually two short programs say it.
        ({"nft": HINT, "legacy": HINT}, NF_TABLES, 2),
        ({"legacy": HINT}, LEGACY, 4),
        ({"legacy": RULES}, LEGACY, 6),
        ({"legacy": RULES, "nft": RULES}, NF_TABLES, 6),
        ({}, NF_TABLES, 4),
        # Where there is no legacy table, what would load the module is not run.
        ({"legacy": HINT, "legacy_tables": ""}, NF_TABLES, 2),
        ({"legacy": HINT, "legacy_tables": None}, NF_TABLES, 2),
        ({"legacy": HINT, "says": "nonsense"}, NF_TABLES, 2),
    ],
)
def test_the_world_that_the_node_uses_is_chosen(both, kernel, chosen, ran):
    log = both(**kernel)
    found = choose_variant()
    assert found.backend == chosen
    assert found.suffix == ("-legacy" if chosen == LEGACY else "")
    commands = log.read_text().splitlines()
    assert len(commands) == ran
    assert commands[:2] == ["iptables-save -t mangle", "ip6tables-save -t mangle"]
    assert [command for command in commands if "-legacy-save -t" in command] == []


def test_missing_program_names_the_package(programs):
    with pytest.raises(
        MissingPiece, match=r"iptables was not found in PATH: install the package iptables \(Debian"
    ) as at:
        choose_variant()
    assert "RHEL" in at.value.remedy


def test_what_is_no_iptables_is_refused(programs):
    programs("iptables", "echo hello")
    with pytest.raises(Unusable, match="'hello', which is no version"):
        choose_variant()


def test_a_program_that_hangs_is_stopped(programs, monkeypatch):
    monkeypatch.setattr(processes, "DEADLINE", 0.2)
    programs("iptables-save", "exec /bin/sleep 30")
    with pytest.raises(Unusable, match="did not end within"):
        NFT.save(Family.IPV4)


def test_a_program_that_cannot_be_started_is_an_error_of_one_line(programs, tmp_path):
    (tmp_path / "iptables-save").write_bytes(b"\x7fELF nonsense")
    (tmp_path / "iptables-save").chmod(0o755)
    with pytest.raises(Unusable, match="iptables-save could not be started: Exec format error"):
        NFT.save(Family.IPV4)


def test_an_old_restore_is_not_asked_to_wait(programs, tmp_path):
    programs("ip6tables-restore", f'echo "$@" > {tmp_path}/arguments; /bin/cat > {tmp_path}/input')
    old = Iptables(suffix="", backend=LEGACY, version=(1, 6, 1), reason="test")
    old.restore(Family.IPV6, TEXT)
    assert (tmp_path / "arguments").read_text() == "--noflush --counters\n"
    NFT.restore(Family.IPV6, TEXT)
    assert (tmp_path / "arguments").read_text() == "-w 5 --noflush --counters\n"
    assert (tmp_path / "input").read_text() == TEXT


@pytest.mark.parametrize(
    ("status", "printed", "piece", "said"),
    [
        (
            4,
            "iptables v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)",
            True,
            "CAP_NET_ADMIN",
        ),
        (
            4,
            "Another app is currently holding the xtables lock. Stopped waiting after 5s.\n",
            False,
            "waited 5 s for the xtables lock",
        ),
        (
            4,
            (
                "Warning: Extension ipvs revision 0 not supported, missing kernel module?\n"
                "iptables-nft-restore v1.8.9 (nf_tables): \n"
                "line 3: RULE_APPEND failed (No such file or directory): rule in chain KX\n"
            ),
            True,
            "the kernel lacks the iptables extension ipvs: load its module (modprobe xt_ipvs)",
        ),
        (
            1,
            "Warning: Extension ipvs revision 0 not supported, missing kernel module?\niptables-restore: line 4 failed",
            True,
            "extension ipvs",
        ),
        (
            2,
            (
                "iptables-restore v1.8.9 (legacy): Couldn't load match `ipvs':No such file or directory\n\n"
                "Error occurred at line: 3\n"
                "Try `iptables-restore -h' or 'iptables-restore --help' for more information.\n"
            ),
            True,
            "lacks the extension ipvs: install all of the package",
        ),
        (
            2,
            "iptables-restore v1.8.9 (legacy): Set KUBE-LOOP-BACK doesn't exist.\n\nError occurred at line: 3\n",
            False,
            "the set KUBE-LOOP-BACK does not exist",
        ),
        (3, "iptables-restore v1.8.9 (legacy): Kernel module xt_set is not loaded in.\n", True, "modprobe xt_set"),
        (
            4,
            "iptables-nft-restore v1.8.9 (nf_tables): \nline 3: RULE_APPEND failed (Invalid argument): rule in KX",
            False,
            (
                "iptables-restore failed with status 4: iptables-nft-restore v1.8.9 (nf_tables): line 3: RULE_APPEND "
                "failed (Invalid argument): rule in KX (-A KX -m ipvs --vproto tcp -j RETURN)"
            ),
        ),
        (
            4,
            "iptables v1.8.9 (nf_tables): Could not fetch rule set generation id: Invalid argument\n",
            True,
            "the kernel has no nf_tables: load the module nf_tables",
        ),
        (1, "", False, "failed with status 1: it printed no reason"),
        (1, "line 99999 failed", False, "line 99999 failed"),
    ],
)
def test_a_failure_is_one_line_that_names_its_cause(status, printed, piece, said):
    error = explain("iptables-restore", status=status, printed=printed, text=TEXT)
    assert said in str(error)
    assert "\n" not in str(error)
    assert isinstance(error, MissingPiece) is piece


def works_in_namespace(*command: str, text: str = "") -> bool:
    done = subprocess.run(
        ["unshare", "-n", *command], input=text, text=True, capture_output=True, check=False, timeout=30
    )
    return done.returncode == 0


@pytest.fixture
def wrapped(tmp_path, monkeypatch):
    """Run the real programs in a network namespace of their own each."""
    if not works_in_namespace("iptables-restore", "--noflush", text="*nat\n:KX - [0:0]\nCOMMIT\n"):
        pytest.skip("this host has no iptables, or one without a nat table")
    for name in ("iptables-save", "iptables-restore"):
        path = tmp_path / name
        real = subprocess.run(["sh", "-c", f"command -v {name}"], capture_output=True, text=True, check=True).stdout
        path.write_text(f'#!/bin/sh\nexec unshare -n {real.strip()} "$@"\n')
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.usefixtures("wrapped")
def test_an_extension_that_the_kernel_lacks_is_named():
    if works_in_namespace("iptables-restore", "--noflush", text=TEXT):
        pytest.skip("this kernel has xt_ipvs")
    with pytest.raises(MissingPiece, match="the kernel lacks the iptables extension ipvs"):
        NFT.restore(Family.IPV4, TEXT)


@pytest.mark.usefixtures("wrapped")
def test_an_extension_that_iptables_lacks_is_named():
    with pytest.raises(MissingPiece, match="lacks the extension nonsense"):
        NFT.restore(Family.IPV4, re.sub("ipvs --vproto tcp", "nonsense", TEXT))


@pytest.mark.usefixtures("wrapped")
def test_a_missing_set_is_named():
    with pytest.raises(Unusable, match=r"set KUBE-NONE does not exist|no ipset"):
        NFT.restore(Family.IPV4, "*nat\n:KX - [0:0]\n-A KX -m set --match-set KUBE-NONE dst -j RETURN\nCOMMIT\n")


@pytest.mark.usefixtures("wrapped")
def test_a_line_that_is_refused_is_quoted():
    with pytest.raises(Unusable, match=r"\(-A KX --nonsense\)"):
        NFT.restore(Family.IPV4, "*nat\n:KX - [0:0]\n-A KX --nonsense\nCOMMIT\n")
