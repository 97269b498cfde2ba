"""What is missing on a node is kept as it was raised: the piece and the remedy, each in its field."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipvs_proxy.commands.doctor import Level, judge_kernel
from ipvs_proxy.commands.migrate import Standing, judge_node
from ipvs_proxy.kernel.filter.iptables.programs import choose_variant, explain
from ipvs_proxy.netlink.errors import Busy, MissingPiece, Unusable
from ipvs_proxy.node.inventory import Inventory, attempt
from ipvs_proxy.node.problem import Problem
from ipvs_proxy.settings.model import Settings


def noted(error: Unusable) -> Problem:
    def look() -> None:
        raise error

    found = Inventory()
    assert not attempt(found, look)
    (problem,) = found.missing
    return problem


def test_reason_of_the_operating_system_is_no_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "iptables").write_text("#!/bin/sh\n")
    (tmp_path / "iptables").chmod(0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = Inventory(kernel=(6, 12))
    assert not attempt(found, choose_variant)
    text = "iptables could not be started: Permission denied"
    (diagnosis,) = (one for one in judge_kernel(found) if one.level is Level.PROBLEM)
    assert (diagnosis.text, diagnosis.remedy) == (text, "")
    (consequence,) = (
        one for one in judge_node(found, Settings(node_name="n"), {}) if one.standing is Standing.OBSTACLE
    )
    assert (consequence.text, consequence.remedy) == (text, "")


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (MissingPiece("the kernel has no IPVS", "load ip_vs"), Problem("the kernel has no IPVS", "load ip_vs")),
        (
            MissingPiece("neither IPv4 nor IPv6: none can be served", "IPv4: load it; IPv6: turn it on"),
            Problem("neither IPv4 nor IPv6: none can be served", "IPv4: load it; IPv6: turn it on"),
        ),
        (
            explain("iptables-save", status=1, printed="Chain x: is odd\n", text=""),
            Problem("iptables-save failed with status 1: Chain x: is odd"),
        ),
        (
            explain("iptables-restore", status=4, printed="holding the xtables lock\n", text=""),
            Problem(
                "iptables-restore waited 5 s for the xtables lock",
                "another program is writing rules (fuser /run/xtables.lock names it)",
            ),
        ),
        (Busy("the kernel cannot be asked: no buffer space"), Problem("the kernel cannot be asked: no buffer space")),
    ],
)
def test_piece_and_remedy_are_those_of_the_error(error: Unusable, problem: Problem) -> None:
    assert noted(error) == problem
    assert str(error) == ": ".join(part for part in problem if part), "the agent logs one line"
