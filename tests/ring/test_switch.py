"""From one packet filter to the other and back, and from kube-proxy in each of its modes to either: no request fails."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lab import manifests
from lab.agent import Agent, command, eventually, running_agent
from lab.manifests import TARGET_PORTS
from lab.packet_filter import IPTABLES, NFTABLES
from lab.topology import ADDRESSES, FAMILIES, Topology, exchange, servers, topology
from tests.ring.kube_proxy import VIP, leave_ipvs_mode
from tests.ring.labelled import (
    FLAGS,
    LOCAL_INGRESS,
    LOCAL_NODE_PORT,
    TRAP,
    WEB,
    WEB_INGRESS,
    WEB_NODE_PORT,
    node_with_kube_proxy,
    slices,
    write_services,
)
from tests.ring.neighbour import MODES, NODE_PORT, OTHER, rules_of_kube_proxy, sync

# Both packet filters have to be there.
pytestmark = pytest.mark.packet_filter(IPTABLES)

BOTH = (IPTABLES, NFTABLES)
WAYS = ((IPTABLES, NFTABLES), (NFTABLES, IPTABLES))
NODE = ADDRESSES["node"]
#: Who asks for what all the time.
REQUESTS = (
    *(("client", address[family], 80) for family in FAMILIES for address in (WEB_INGRESS, LOCAL_INGRESS)),
    *(("pod3", address[family], 80) for family in FAMILIES for address in (WEB, LOCAL_INGRESS)),
    *(("node", WEB[family], 80) for family in FAMILIES),
    ("client", NODE["IPv4"], WEB_NODE_PORT),
    ("client", NODE["IPv6"], LOCAL_NODE_PORT),
)


@pytest.fixture
def net() -> Iterator[Topology]:
    with topology() as net, servers(net, ("pod1", "pod2", "pod3", "pod4"), TARGET_PORTS):
        yield net


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_services(tmp_path)
    for file in tmp_path.glob("*.json"):
        file.write_text(file.read_text().replace("service.kubernetes.io/service-proxy-name", "example.org/was"))
    return tmp_path


@contextmanager
def asking(net: Topology, *requests: tuple[str, str, int]) -> Iterator[list[str]]:
    """Make all of the requests again and again until the block ends; what failed, or came from elsewhere, is in the list.

    A source that a request has is that of its first answer from the same place: it must stay.
    """
    failures: list[str] = []
    stop = threading.Event()

    def make(place: str, address: str, port: int) -> None:
        sources: dict[str, str] = {}
        while not stop.wait(0.1):
            try:
                name, source = net.ask(place, address, port, timeout=10.0)
            except OSError as error:
                failures.append(f"{place} -> {address}:{port}: {error!r}")
                continue
            if sources.setdefault(name, source) != source:
                failures.append(f"{place} -> {address}:{port} at {name}: from {source}, not from {sources[name]}")

    threads = [threading.Thread(target=make, args=request) for request in requests]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def used(net: Topology) -> set[str]:
    """Return which packet filters have something of ours, or of kube-proxy's IPVS mode, on the node."""
    found = set()
    saved = "".join(net.run("node", f"{program}-save") for program in ("iptables", "ip6tables"))
    if "KUBE-" in saved or "IPVS-PROXY" in saved or net.run("node", "ipset", "list", "-n"):
        found.add(IPTABLES)
    if "table inet ipvs-proxy" in net.run("node", "nft", "list", "tables"):
        found.add(NFTABLES)
    return found


def assert_nothing_differs(net: Topology, *flags: str) -> None:
    assert json.loads(command(net, "diff", *flags, "-o", "json"))["changes"] == []


@contextmanager
def agent_with(net: Topology, directory: Path, packet_filter: str, *flags: str) -> Iterator[Agent]:
    with running_agent(net, directory, "--packet-filter", packet_filter, *flags) as agent:
        yield agent


@pytest.mark.parametrize(("before", "after"), WAYS)
def test_a_restart_with_the_other_one_fails_no_request_and_keeps_every_connection(
    net: Topology, directory: Path, before: str, after: str
) -> None:
    with ExitStack() as stack:
        with agent_with(net, directory, before) as agent:
            assert used(net) == {before}
            kept = [stack.enter_context(net.connect(*request)) for request in REQUESTS]
            answers = [exchange(connection) for connection in kept]
            table = net.run("node", "ipvsadm", "-Sn")
            failures = stack.enter_context(asking(net, *REQUESTS))
            agent.stop()
        with agent_with(net, directory, after) as agent:
            assert used(net) == {after}
            assert agent.named("other_mode_not_removed") == []
            assert net.run("node", "ipvsadm", "-Sn") == table, "virtual servers, those of marks too, are as they were"
            assert_nothing_differs(net)
            assert [exchange(connection) for connection in kept] == answers
            agent.stop()
        with agent_with(net, directory, after) as again:
            started = again.named("started")[0]
            assert (started["operations"], started["kernel_writes"]) == (0, 0)
            assert again.named("other_mode_found") == []
    assert failures == []


def all_but_busy_are_gone(net: Topology) -> bool:
    """Return whether no virtual server goes any more: drains are looked at each second."""
    before = net.run("node", "ipvsadm", "-Sn")
    time.sleep(2.5)
    return net.run("node", "ipvsadm", "-Sn") == before


@pytest.mark.parametrize(("before", "after"), WAYS)
def test_what_drains_and_what_is_of_others_is_known_after_it(
    net: Topology, directory: Path, before: str, after: str
) -> None:
    """Only the sets say that a node port or a port of a shared address was ours, and that others share it."""
    shared = f"{WEB_INGRESS['IPv4']}:6443"
    ports = [{"name": "tcp", "protocol": "TCP", "port": 81, "nodePort": 0}]
    vips = ("10.96.0.45", "fd00:10:96::45")
    service = manifests.service("second", *vips, type="LoadBalancer", ports=ports, ingress=WEB_INGRESS.values())
    manifests.write(directory, "second", service, *slices("second", "pod2"))
    with agent_with(net, directory, before) as agent:
        net.run("node", "ipvsadm", "-A", "-t", shared, "-s", "rr")
        leaving = net.connect("client", WEB_INGRESS["IPv6"], 80)
        by_node_port = net.connect("client", NODE["IPv4"], WEB_NODE_PORT)
        answers = exchange(leaving), exchange(by_node_port)
        (directory / "web.json").unlink()
        eventually(lambda: f"{WEB['IPv4']}:80" not in net.run("node", "ipvsadm", "-Sn"))
        eventually(lambda: all_but_busy_are_gone(net))
        table = net.run("node", "ipvsadm", "-Sn")
        assert f"{NODE['IPv4']}:{WEB_NODE_PORT}" in table
        assert f"[{WEB_INGRESS['IPv6']}]:80" in table
        agent.kill()
    with agent_with(net, directory, after):
        assert net.run("node", "ipvsadm", "-Sn") == table, "it drains, as before"
        assert (exchange(leaving), exchange(by_node_port)) == answers
        with pytest.raises(ConnectionRefusedError):
            net.ask("client", WEB_INGRESS["IPv6"], 80)
        leaving.close()
        by_node_port.close()
        eventually(lambda: f":{WEB_NODE_PORT} " not in net.run("node", "ipvsadm", "-Sn"))
        eventually(lambda: f"[{WEB_INGRESS['IPv6']}]:80" not in net.run("node", "ipvsadm", "-Sn"))
        assert shared in net.run("node", "ipvsadm", "-Sn")
        assert_nothing_differs(net)


def test_an_agent_that_was_killed_on_the_way_is_carried_on_by_the_next(net: Topology, directory: Path) -> None:
    with agent_with(net, directory, IPTABLES) as agent:
        agent.stop()
    left = net.run("node", "ipset", "save")
    with agent_with(net, directory, NFTABLES) as agent:
        agent.stop()
    # As if it had not come to the end: all of iptables is there again, with sets from before.
    net.run("node", "ipset", "restore", text=left)
    (directory / "trap.json").unlink()
    with asking(net, *REQUESTS) as failures, agent_with(net, directory, NFTABLES) as agent:
        assert used(net) == {NFTABLES}
        assert agent.named("other_mode_not_removed") == []
        eventually(lambda: f"{TRAP['IPv4']}:{NODE_PORT}" not in net.run("node", "ipvsadm", "-Sn"))
        assert_nothing_differs(net)
    assert failures == []


@pytest.mark.parametrize("after", BOTH)
@pytest.mark.parametrize("mode", MODES)
def test_kube_proxys_other_modes_are_taken_over(mode: str, after: str, directory: Path) -> None:
    requests = [(place, OTHER[family], 80) for family in FAMILIES for place in ("client", "pod1", "node")]
    requests += [("client", NODE[family], NODE_PORT) for family in FAMILIES]
    with node_with_kube_proxy(mode) as net, ExitStack() as stack:
        kept = [stack.enter_context(net.connect(*request)) for request in requests]
        answers = [exchange(connection) for connection in kept]
        failures = stack.enter_context(asking(net, *requests))
        with agent_with(net, directory, after) as agent:
            assert agent.named("other_mode_not_removed") == []
            assert "kube-proxy" not in net.run("node", "nft", "list", "tables")
            assert used(net) == {after}
            assert "KUBE-SVC" not in net.run("node", "iptables-save")
            assert_nothing_differs(net)
            assert [exchange(connection) for connection in kept] == answers
        stack.close()
        assert failures == []


def test_kube_proxys_ipvs_mode_is_taken_over_by_nftables(net: Topology, tmp_path: Path) -> None:
    manifests.write(tmp_path, "node", manifests.node())
    ends = [manifests.endpoint(ADDRESSES["pod1"]["IPv4"])]
    manifests.write(tmp_path, "web", manifests.service("web", VIP), *manifests.slices("web", ends))
    leave_ipvs_mode(net)
    with net.connect("client", VIP, 80) as kept, asking(net, ("client", VIP, 80), ("pod2", VIP, 80)) as failures:
        answer = exchange(kept)
        with agent_with(net, tmp_path, NFTABLES) as agent:
            assert agent.named("other_mode_not_removed") == []
            assert used(net) == {NFTABLES}
            # kube-proxy's sets have told that the node port is its own, and so ours.
            eventually(lambda: ":30123" not in net.run("node", "ipvsadm", "-Sn"))
            assert exchange(kept) == answer
            assert_nothing_differs(net)
    assert failures == []


@pytest.mark.parametrize(("before", "after"), WAYS)
@pytest.mark.parametrize("mode", MODES)
def test_beside_a_kube_proxy_its_rules_stay(mode: str, before: str, after: str, tmp_path: Path) -> None:
    write_services(tmp_path)
    agents = "--agent", "127.0.0.1:10349"
    with node_with_kube_proxy(mode) as net:
        rules = rules_of_kube_proxy(net)
        with agent_with(net, tmp_path, before, *FLAGS) as agent:
            agent.stop()
        requests = [("client", WEB_INGRESS["IPv4"], 80), ("pod3", OTHER["IPv6"], 80), ("node", TRAP["IPv4"], NODE_PORT)]
        with asking(net, *requests) as failures, agent_with(net, tmp_path, after, *FLAGS) as agent:
            assert agent.named("other_mode_not_removed") == []
            assert rules_of_kube_proxy(net) == rules
            sync(net, mode)
            assert rules_of_kube_proxy(net) == rules
            assert_nothing_differs(net, *agents)
            assert net.ask("node", TRAP["IPv4"], NODE_PORT)[0] == "pod1"
            diagnoses = {(one["topic"], one["level"]) for one in json.loads(command(net, "doctor", "-o", "json"))}
            assert "problem" not in {level for _, level in diagnoses}
            assert (("kube-proxy", "warning") in diagnoses) is (mode == "nftables"), "which clears IPVS away"
            has_ours = "IPVS-PROXY-" in net.run("node", "iptables-save") or bool(net.run("node", "ipset", "list", "-n"))
            assert has_ours is (after == IPTABLES)
            assert ("inet ipvs-proxy" in net.run("node", "nft", "list", "tables")) is (after == NFTABLES)
        assert failures == []
