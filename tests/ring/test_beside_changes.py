"""What changes beside a kube-proxy: starts, syncs and cleanups of both, and a Service that moves from one to the other."""

from __future__ import annotations

import json
import re
import shlex
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import manifests
from lab.agent import command, eventually, running_agent
from lab.topology import FAMILIES, Topology, exchange
from tests.ring.kube_proxy import ipvs_proxy, leave_ipvs_mode, witnessed
from tests.ring.labelled import FLAGS, TRAP, WEB, labelled, node_with_kube_proxy, slices, write_services
from tests.ring.neighbour import MODES, NODE_PORT, OTHER, restart, rules_of_kube_proxy, sync

MOVER = {"IPv4": "10.96.0.60", "IPv6": "fd00:10:96::60"}
AGENT = ("--agent", "127.0.0.1:10349")
#: What the document has run on a node that kube-proxy stays on.
_SECTION = (Path(__file__).parents[2] / "docs/migration.md").read_text().split("## One Service at a time")[1]
CHECK, CLEANUP = (shlex.split(text) for text in re.findall(r"^on_node node-1 (.+)$", _SECTION, re.MULTILINE))


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def net(mode: str) -> Iterator[Topology]:
    with node_with_kube_proxy(mode) as net:
        yield net


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_services(tmp_path)
    return tmp_path


@contextmanager
def requests(net: Topology, place: str, address: str) -> Iterator[list[str]]:
    """Make requests from a place until the block ends; what failed is in the list."""
    failures: list[str] = []
    stop = threading.Event()

    def make() -> None:
        while not stop.wait(0.02):
            try:
                net.ask(place, address, 80, timeout=10.0)
            except OSError as error:
                failures.append(f"{place} {time.monotonic():.2f} {error!r}")

    thread = threading.Thread(target=make)
    thread.start()
    try:
        yield failures
    finally:
        stop.set()
        thread.join()


def ours(net: Topology) -> str:
    return "".join(net.run("node", f"{program}-save") for program in ("iptables", "ip6tables"))


def test_neither_repairs_the_other_away_and_cleanup_leaves_kube_proxys(
    net: Topology, directory: Path, mode: str
) -> None:
    before = rules_of_kube_proxy(net)
    for _ in range(2):
        with running_agent(net, directory, *FLAGS) as agent:
            assert agent.named("other_mode_found") == []
            assert rules_of_kube_proxy(net) == before
            sync(net, mode)
            assert rules_of_kube_proxy(net) == before
            found = json.loads(command(net, "diff", *AGENT, "-o", "json"))
            assert found["changes"] == []
            agent.stop()
    cleaned = ipvs_proxy(net, *CLEANUP)
    assert (cleaned.returncode, cleaned.stderr) == (0, "")
    assert rules_of_kube_proxy(net) == before
    assert "IPVS-PROXY" not in ours(net)
    assert net.run("node", "ipset", "list", "-n") == ""
    assert net.run("node", "ipvsadm", "-Sn") == ""
    assert "kube-ipvs0" not in net.run("node", "ip", "-o", "link")
    assert net.ask("client", OTHER["IPv4"], 80)[0] == "pod2"


@pytest.mark.parametrize("mode", ["iptables"])
def test_our_jumps_come_before_those_of_kube_proxy(net: Topology, directory: Path, mode: str) -> None:
    with running_agent(net, directory, *FLAGS) as agent:
        assert net.ask("client", TRAP["IPv4"], NODE_PORT)[0] == "pod1"
        agent.stop()
    for chain in ("PREROUTING", "OUTPUT"):
        jump = (chain, "-m", "comment", "--comment", "kubernetes service portals", "-j", "KUBE-SERVICES")
        net.run("node", "iptables", "-w", "-t", "nat", "-D", *jump)
    sync(net, mode)
    assert net.ask("client", TRAP["IPv4"], NODE_PORT)[0] == "pod2", "kube-proxy takes it for its node port"
    with running_agent(net, directory, *FLAGS):
        assert net.ask("client", TRAP["IPv4"], NODE_PORT)[0] == "pod1"
        assert net.ask("node", TRAP["IPv4"], NODE_PORT)[0] == "pod1"
        saved = net.run("node", "iptables-save", "-t", "nat")
        assert saved.count("-A PREROUTING -m comment --comment") == 2, "the old jump is gone"


def test_a_restart_of_kube_proxy_is_made_good_at_once(net: Topology, directory: Path, mode: str) -> None:
    with running_agent(net, directory, *FLAGS) as agent:
        table = net.run("node", "ipvsadm", "-Sn")
        connection = net.connect("client", WEB["IPv4"], 80)
        name, _ = exchange(connection)
        begun = time.monotonic()
        restart(net, mode)
        eventually(lambda: net.run("node", "ipvsadm", "-Sn") == table)
        for family in FAMILIES:
            eventually(lambda family=family: net.ask("client", WEB[family], 80, timeout=1.0))
        assert time.monotonic() - begun < 15.0, "half of a sync period"
        assert json.loads(command(net, "diff", *AGENT, "-o", "json"))["changes"] == []
        repaired = {event["table"] for event in agent.named("drift_repaired")}
        if mode == "iptables":
            assert exchange(connection)[0] == name
            assert repaired == set()
        else:
            # What kube-proxy clears away are also the kernel's connections (``expire_nodest_conn``).
            with pytest.raises(OSError):
                exchange(connection)
            assert repaired == {"ipvs", "tables", "addresses"}, "no set goes that a rule of ours names"
        connection.close()


def test_a_service_moves_here_and_back(net: Topology, directory: Path, mode: str) -> None:
    mover = manifests.service("mover", *MOVER.values())
    manifests.write(directory, "mover", mover, *slices("mover", "pod2"))
    sync(net, mode, MOVER)
    with running_agent(net, directory, *FLAGS):
        through_kube_proxy = net.connect("client", MOVER["IPv4"], 80)
        assert exchange(through_kube_proxy)[0] == "pod2"
        with (
            requests(net, "client", MOVER["IPv4"]) as outside,
            requests(net, "node", MOVER["IPv4"]) as node,
            requests(net, "pod1", MOVER["IPv6"]) as pod,
        ):
            manifests.write(directory, "mover", labelled(mover), *slices("mover", "pod2"))
            eventually(lambda: MOVER["IPv6"] in net.run("node", "ipvsadm", "-Ln"))
            sync(net, mode)
            time.sleep(0.5)
        assert (outside, node, pod) == ([], [], [])
        assert exchange(through_kube_proxy)[0] == "pod2", "connections from before go on"
        through_ipvs = [net.connect("client", address, 80) for address in MOVER.values()]
        assert [exchange(connection)[0] for connection in through_ipvs] == ["pod2", "pod2"]
        assert net.run("node", "ipvsadm", "-Lnc").count("ESTABLISHED") >= 2

        sync(net, mode, MOVER)
        manifests.write(directory, "mover", manifests.service("mover", *MOVER.values()), *slices("mover", "pod2"))
        eventually(lambda: f"{MOVER['IPv4']},tcp:80" not in net.run("node", "ipset", "list", "KUBE-CLUSTER-IP"))
        eventually(lambda: f"{MOVER['IPv6']},tcp:80" not in net.run("node", "ipset", "list", "KUBE-6-CLUSTER-IP"))
        for place in ("client", "node", "pod1"):
            for family in FAMILIES:
                assert net.ask(place, MOVER[family], 80)[0] == "pod2", "new ones are kube-proxy's, while ours drain"
        assert [exchange(connection)[0] for connection in through_ipvs] == ["pod2", "pod2"]
        for connection in through_ipvs:
            connection.close()
        for tool in (("ipvsadm", "-Ln"), ("ip", "-o", "address")):
            for address in MOVER.values():
                eventually(lambda tool=tool, address=address: address not in net.run("node", *tool))
        assert exchange(through_kube_proxy)[0] == "pod2"
        through_kube_proxy.close()


def test_the_node_is_checked_before_and_nothing_is_written(net: Topology, mode: str, tmp_path: Path) -> None:
    before = rules_of_kube_proxy(net)
    (tmp_path / "config.conf").write_text(
        f"apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: {mode}\n"
    )
    checked = ipvs_proxy(net, *(word.replace("/config/", f"{tmp_path}/") for word in CHECK))
    assert checked.returncode == 0, checked.stdout
    assert f"{mode} mode: " in checked.stdout
    assert "removed" not in checked.stdout
    assert "IPVS-PROXY" not in ours(net)
    assert rules_of_kube_proxy(net) == before


@pytest.mark.parametrize("mode", ["iptables"])
def test_rules_of_ipvs_mode_refuse_the_start(net: Topology, directory: Path, mode: str) -> None:
    leave_ipvs_mode(net)
    sync(net, mode)
    left = witnessed(net)
    flags = ("--manifests", str(directory), "--hostname-override", "node", *FLAGS)
    done = ipvs_proxy(net, *flags)
    assert done.returncode == 1
    assert "kube-proxy's IPVS mode, or of an agent without --service-proxy-name" in done.stderr
    assert "ipvs-proxy cleanup" in done.stderr
    checked = ipvs_proxy(net, "migrate", "check", "--service-proxy-name", "ipvs")
    assert checked.returncode == 2
    assert witnessed(net) == left
    cleaned = ipvs_proxy(net, "cleanup")
    assert (cleaned.returncode, cleaned.stderr) == (0, "")
    with running_agent(net, directory, *FLAGS):
        assert net.ask("client", WEB["IPv4"], 80)[0] in {"pod1", "pod4"}
        assert net.ask("client", OTHER["IPv4"], 80)[0] == "pod2"
