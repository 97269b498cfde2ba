"""A configuration file that changes under the agent."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ipvs_proxy.settings.live import Reload
from tests.support.configuration_file import HEAD, following


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.conf"
    path.write_text(HEAD + "ipvs: {scheduler: rr}\n")
    return path


async def test_change_is_applied(config: Path) -> None:
    async with following(config) as followed:
        config.write_text(HEAD + "ipvs: {scheduler: lc, syncPeriod: 10s}\n")
        assert await followed.outcome() is Reload.APPLIED
        assert (followed.running.scheduler, followed.running.sync_period) == ("lc", 10.0)


async def test_swap_of_a_volumes_symbolic_link_is_a_change(tmp_path: Path) -> None:
    for number, scheduler in enumerate(("rr", "sh")):
        (tmp_path / f"..{number}").mkdir()
        (tmp_path / f"..{number}" / "config.conf").write_text(HEAD + f"ipvs: {{scheduler: {scheduler}}}\n")
    (tmp_path / "..data").symlink_to("..0")
    (tmp_path / "config.conf").symlink_to("..data/config.conf")
    async with following(tmp_path / "config.conf") as followed:
        (tmp_path / "..new").symlink_to("..1")
        (tmp_path / "..new").replace(tmp_path / "..data")
        assert await followed.outcome() is Reload.APPLIED
        assert followed.running.scheduler == "sh"


async def test_broken_file_is_refused_and_what_runs_stays(config: Path) -> None:
    async with following(config) as followed:
        with capture_logs() as logs:
            config.write_text(HEAD + "ipvs: {scheduler: lc, syncPeriod: soon}\n")
            assert await followed.outcome() is Reload.REFUSED
        (fault,) = logs[0]["faults"]
        assert fault.startswith("KubeProxyConfiguration.ipvs.syncPeriod: ")
        assert followed.running.scheduler == "rr"
        config.write_text(HEAD + "ipvs: {scheduler: wrr}\n")
        assert await followed.outcome() is Reload.APPLIED
        assert followed.running.scheduler == "wrr"


async def test_what_needs_a_restart_is_named_and_the_rest_applied(config: Path) -> None:
    async with following(config) as followed:
        with capture_logs() as logs:
            config.write_text(HEAD + "ipvs: {scheduler: lc}\niptables: {masqueradeBit: 15}\nmetricsBindAddress: ::1\n")
            assert await followed.outcome() is Reload.RESTART_NEEDED
        named = next(line for line in logs if line["event"] == "restart_needed")
        assert named["changed"] == [
            "KubeProxyConfiguration.iptables.masqueradeBit",
            "KubeProxyConfiguration.metricsBindAddress",
        ]
        assert (followed.running.scheduler, followed.running.masquerade_bit) == ("lc", 14)
        assert followed.running.fields["KubeProxyConfiguration.ipvs.scheduler"] == "lc"
        assert followed.running.fields["KubeProxyConfiguration.iptables.masqueradeBit"] == 14


async def test_file_that_goes_and_comes_back_the_same_changes_nothing(config: Path) -> None:
    async with following(config) as followed:
        text = config.read_text()
        config.unlink()
        await asyncio.sleep(0.05)
        config.write_text("# rewritten\n" + text)
        assert await followed.outcome() is Reload.UNCHANGED


async def test_change_that_the_kernel_refuses_ends_nothing(config: Path) -> None:
    async with following(config) as followed:
        followed.fault = OSError("no such scheduler")
        config.write_text(HEAD + "ipvs: {scheduler: magic}\n")
        assert await followed.outcome() is Reload.REFUSED
        followed.fault = None
        config.write_text(HEAD + "ipvs: {scheduler: lc}\n")
        assert await followed.outcome() is Reload.APPLIED
