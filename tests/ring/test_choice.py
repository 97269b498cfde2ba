"""Which packet filter an agent uses that is not told which: what has served the node before, else what works there."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which

import pytest

from lab import manifests
from lab.agent import PROGRAM, Agent, command, running_agent
from lab.manifests import PORTS, TARGET_PORTS, endpoint
from lab.packet_filter import IPTABLES, NFTABLES
from lab.topology import ADDRESSES, FAMILIES, Topology, servers, topology
from tests.ring.kube_proxy import ipvs_proxy, leave_iptables_mode, leave_ipvs_mode, leave_nftables_mode

AUTO = ("--packet-filter", "auto")
VIPS = {"IPv4": "10.96.0.70", "IPv6": "fd00:10:96::70"}
CHECKOUT = Path(__file__).parents[2]
EXTRA = "kernel-modules-extra on RHEL"


@pytest.fixture
def net() -> Iterator[Topology]:
    with topology() as net, servers(net, ("pod1",), TARGET_PORTS):
        yield net


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "manifests"
    directory.mkdir()
    manifests.write(directory, "node", manifests.node())
    ends = [endpoint(ADDRESSES["pod1"][family]) for family in FAMILIES]
    manifests.write(directory, "web", manifests.service("web", *VIPS.values()), *manifests.slices("web", ends))
    return directory


@pytest.fixture
def only(tmp_path: Path) -> Callable[..., tuple[str, ...]]:
    """Return a function that makes a command see these programs alone in its PATH."""

    def only(*programs: str) -> tuple[str, ...]:
        place = tmp_path / "-".join(("bin", *programs))
        place.mkdir()
        for program in programs:
            found = which(program)
            assert found, f"{program} is not installed"
            (place / program).symlink_to(found)
        return "env", f"PATH={place}"

    return only


def chosen(agent: Agent) -> tuple[str, str]:
    (event,) = agent.named("packet_filter")
    return event["chosen"], event["reason"]


def last_words(net: Topology, directory: Path, prefix: tuple[str, ...], place: Path, *flags: str) -> str:
    """Return the line with which the start of an agent ends that cannot work."""
    errors = place / "errors"
    words = (*prefix, *PROGRAM, "--manifests", str(directory), "--hostname-override", "node", *flags)
    script = f"PYTHONPATH={os.environ.get('PYTHONPATH', CHECKOUT)} {shlex.join(words)} 2>{errors}; test $? -eq 1"
    net.run("node", "sh", "-c", script)
    return errors.read_text().splitlines()[-1]


def leave_nothing(_: Topology) -> None:
    pass


@pytest.mark.packet_filter(IPTABLES)
@pytest.mark.parametrize(
    ("leave", "expected", "reason"),
    [
        (leave_nothing, IPTABLES, "iptables and ipset work here"),
        (leave_ipvs_mode, IPTABLES, "the ipsets of an earlier agent, or of kube-proxy's IPVS mode, are here"),
        (leave_iptables_mode, IPTABLES, "kube-proxy's chains of iptables are here"),
        (leave_nftables_mode, NFTABLES, "the table of kube-proxy's nftables mode is here"),
    ],
)
def test_what_kube_proxy_has_left_decides(
    net: Topology, directory: Path, leave: Callable[[Topology], None], expected: str, reason: str
) -> None:
    leave(net)
    with running_agent(net, directory, *AUTO) as agent:
        assert chosen(agent) == (expected, reason)


@pytest.mark.packet_filter(IPTABLES)
@pytest.mark.parametrize(
    ("before", "reason"),
    [(NFTABLES, "the table inet ipvs-proxy of an earlier agent is here"), (IPTABLES, "the ipsets of an earlier agent")],
)
def test_what_an_earlier_agent_has_used_stays(net: Topology, directory: Path, before: str, reason: str) -> None:
    with running_agent(net, directory, "--packet-filter", before) as agent:
        assert chosen(agent) == (before, "the setting says so")
        agent.stop()
    with running_agent(net, directory, *AUTO) as agent:
        assert chosen(agent)[0] == before
        assert reason in chosen(agent)[1]
        assert agent.named("started")[0]["kernel_writes"] == 0


@pytest.mark.packet_filter(IPTABLES)
def test_a_host_without_the_programs_of_iptables_is_served_with_nft_alone(
    net: Topology, directory: Path, only: Callable[..., tuple[str, ...]]
) -> None:
    """As an image that has none of them; the kernel has all of it."""
    with running_agent(net, directory, *AUTO, prefix=only("nft", "modprobe")) as agent:
        name, reason = chosen(agent)
        assert name == NFTABLES
        assert "the program iptables was not found in PATH" in reason
        assert {net.ask("client", VIPS[family], PORTS["TCP"])[0] for family in FAMILIES} == {"pod1"}
        assert net.run("node", "ipset", "list", "-n") == ""
        assert "KUBE-" not in net.run("node", "iptables-save")


@pytest.mark.packet_filter(IPTABLES)
def test_without_iptables_and_nft_both_are_named(
    net: Topology, directory: Path, only: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    line = last_words(net, directory, only("modprobe"), tmp_path, *AUTO)
    for part in ("the program iptables was not found", "the program nft was not found", "package nftables"):
        assert part in line


@pytest.mark.packet_filter(IPTABLES)
def test_a_choice_that_does_not_work_names_the_other_that_does(
    net: Topology, directory: Path, only: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    cases = {
        (IPTABLES, NFTABLES): only("nft"),
        (NFTABLES, IPTABLES): only("iptables", "ip6tables", "iptables-save", "ip6tables-save"),
    }
    for (packet_filter, other), alone in cases.items():
        line = last_words(net, directory, alone, tmp_path, "--packet-filter", packet_filter)
        assert f"or use --packet-filter {other}, all of which is here" in line


@pytest.mark.without_iptables
def test_a_kernel_without_iptables_is_served_with_nftables_and_the_log_says_what_is_missing(
    net: Topology, directory: Path
) -> None:
    with running_agent(net, directory, *AUTO) as agent:
        name, reason = chosen(agent)
        assert name == NFTABLES
        assert reason.startswith("iptables does not work here: the kernel has no ipset: load the module ip_set")
        assert EXTRA in reason
        assert {net.ask("client", VIPS[family], PORTS["TCP"])[0] for family in FAMILIES} == {"pod1"}
        agent.stop()
    with running_agent(net, directory, *AUTO) as agent:
        assert chosen(agent) == (NFTABLES, "the table inet ipvs-proxy of an earlier agent is here")
        assert agent.named("started")[0]["kernel_writes"] == 0


@pytest.mark.without_iptables
def test_a_kernel_without_iptables_refuses_it_and_names_the_remedies(
    net: Topology, directory: Path, tmp_path: Path
) -> None:
    line = last_words(net, directory, (), tmp_path, "--packet-filter", IPTABLES)
    assert "the kernel has no ipset" in line
    assert EXTRA in line
    assert "or use --packet-filter nftables, all of which is here" in line
    assert f"\n{line}\n" in (CHECKOUT / "docs/troubleshooting.md").read_text(), "the document quotes it"


@pytest.mark.without_iptables
def test_commands_know_a_host_without_iptables(net: Topology, directory: Path, tmp_path: Path) -> None:
    checked = ipvs_proxy(net, "migrate", "check")
    assert checked.returncode == 0, checked.stdout
    assert "packet filter nftables" in " ".join(checked.stdout.split())
    with running_agent(net, directory, *AUTO) as agent:
        found = json.loads(command(net, "doctor", "-o", "json"))
        assert "problem" not in {one["level"] for one in found}, found
        assert json.loads(command(net, "diff", "-o", "json"))["changes"] == []
        steps = command(net, "explain", "--from", ADDRESSES["client"]["IPv4"], f"{VIPS['IPv4']}:80")
        assert "masqueraded: a cluster IP" in steps
        assert "balanced among 10.244.1.1:8080" in steps
        bundle = tmp_path / "bundle.tar.gz"
        command(net, "debug-bundle", str(bundle))
        net.run("node", "tar", "-xzf", str(bundle), "-C", str(tmp_path), "--strip-components", "1")
        assert "table inet ipvs-proxy" in (tmp_path / "rules.txt").read_text()
        assert "rules.txt" not in (tmp_path / "missing.txt").read_text()
        agent.stop()
    cleaned = ipvs_proxy(net, "cleanup")
    assert (cleaned.returncode, cleaned.stderr) == (0, "")
    assert "removed the nftables table inet ipvs-proxy" in cleaned.stdout
    assert net.run("node", "nft", "list", "tables") == ""
