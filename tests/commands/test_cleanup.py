"""A node on which an agent or kube-proxy is at work is not cleaned."""

from __future__ import annotations

import random

import pytest

from ipvs_proxy.commands import cleanup as command
from ipvs_proxy.commands.cleanup import run
from ipvs_proxy.kernel.filter.backend import Cleaning
from ipvs_proxy.netlink.errors import MissingPiece
from ipvs_proxy.node import cleanup, instances, processes, requirements
from ipvs_proxy.node.processes import Process


@pytest.fixture(autouse=True)
def groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "_GROUPS", random.randrange(0x8000, 0xFFFF) << 16)
    monkeypatch.setattr(requirements, "require_capabilities", lambda: None)


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    assert run(kube_proxy=True, dry_run=True) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line


def test_an_agent_at_work_is_a_reason_to_refuse(capsys: pytest.CaptureFixture[str]) -> None:
    held = instances.register()
    assert held is not None
    with held:
        assert refused(capsys).startswith("ipvs-proxy: error: an agent is running on this node and would put")


def test_a_running_kube_proxy_is_a_reason_to_refuse(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "running_kube_proxy", lambda: Process(4711, "kube-proxy"))
    assert refused(capsys).startswith("ipvs-proxy: error: kube-proxy (process 4711) is running on this node")


def test_kube_proxy_may_run_where_ours_is_beside_it_unless_its_own_is_to_go(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "running_kube_proxy", lambda: Process(4711, "kube-proxy"))
    monkeypatch.setattr(command, "are_rules_beside_kube_proxy", lambda: True)
    monkeypatch.setattr(cleanup, "clean", lambda **_: Cleaning(["15 chains"], []))
    assert run(kube_proxy=False, dry_run=True) == 0
    assert capsys.readouterr().out == "would remove 15 chains\n"
    assert refused(capsys).startswith("ipvs-proxy: error: kube-proxy (process 4711) is running on this node")


def test_without_the_capability_nothing_is_tried(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise MissingPiece("the capability CAP_NET_ADMIN is missing", "run as root")

    monkeypatch.setattr(requirements, "require_capabilities", refuse)
    assert refused(capsys) == "ipvs-proxy: error: the capability CAP_NET_ADMIN is missing: run as root"
