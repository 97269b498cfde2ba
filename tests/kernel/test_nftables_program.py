"""What the failures of nft mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ipvs_proxy.kernel.filter import processes
from ipvs_proxy.kernel.filter.nftables.program import carry_out, explain, read_tables
from ipvs_proxy.netlink.errors import Busy, MissingPiece, Unusable

NftThat = Callable[[str], None]


@pytest.fixture
def nft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NftThat:
    """Puts a program of a few lines of shell in the place of nft."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def put(text: str) -> None:
        (tmp_path / "nft").write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "nft").chmod(0o755)

    return put


@pytest.mark.parametrize(
    ("printed", "kind", "said"),
    [
        (
            "Error: Could not process rule: Operation not permitted\nadd table inet x\n                ^\n",
            MissingPiece,
            "nft may not read or write rules: run as root with the capability CAP_NET_ADMIN",
        ),
        (
            "netlink: Error: cache initialization failed: Protocol not supported\n",
            MissingPiece,
            "the kernel has no nf_tables: load the module nf_tables",
        ),
        (
            "/dev/stdin:9:3-5: Error: Could not process rule: No such file or directory\n  fib saddr type local\n  ^^^\n",
            MissingPiece,
            "nft failed with status 1: /dev/stdin:9:3-5: Error: Could not process rule: No such file or directory "
            "fib saddr type local: if the kernel lacks one, load the modules nft_chain_nat, nft_ct, nft_fib_inet, "
            "nft_masq, nft_nat, nft_reject_inet",
        ),
        ("Error: Could not process rule: Cannot allocate memory\n", Busy, "nft failed with status 1: Error: Could not"),
        ("\n", Unusable, "nft failed with status 1: it printed no reason"),
    ],
    ids=["no right", "no nf_tables", "no module", "a shortage", "nothing"],
)  # fmt: skip
def test_a_failure_is_one_line_with_a_remedy(printed: str, kind: type[Unusable], said: str) -> None:
    error = explain(1, printed)
    assert type(error) is kind
    assert str(error).startswith(said)


def test_commands_go_in_and_tables_come_out(nft: NftThat, tmp_path: Path) -> None:
    nft(f'read -r line; echo "$* $line" >>{tmp_path}/said; echo "table inet x {{"')
    assert read_tables() == "table inet x {\n"
    carry_out("add table inet x\n")
    assert (tmp_path / "said").read_text() == "--terse list ruleset inet \n--file - add table inet x\n"


def test_a_failure_is_raised(nft: NftThat) -> None:
    nft('echo "Error: syntax error" >&2; exit 1')
    with pytest.raises(Unusable, match="nft failed with status 1: Error: syntax error"):
        read_tables()


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        with pytest.raises(MissingPiece, match="the program nft was not found in PATH: install the package nftables"):
            read_tables()


def test_a_program_that_does_not_end_is_stopped(nft: NftThat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "DEADLINE", 0.1)
    nft("exec /bin/sleep 60")
    with pytest.raises(Unusable, match="nft did not end within"):
        read_tables()
