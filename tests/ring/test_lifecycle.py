"""The life of an agent on a node: start, change, drain, drift, restart, takeover; with real packets and independent
witnesses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import manifests
from lab.agent import eventually, running_agent
from lab.manifests import PORTS, TARGET_PORTS
from lab.packet_filter import CHOSEN, IPTABLES, NFTABLES, saved_rules, saved_sets
from lab.topology import ADDRESSES, Topology, exchange, servers, topology
from lab.witness import addresses, assert_as_planned, virtual_servers, weights
from tests.ring.web_service import PODS, VIPS, continuous_requests, set_endpoints

SYNC = ("--ipvs-sync-period", "300ms")


@pytest.fixture
def net() -> Iterator[Topology]:
    with topology() as net, servers(net, PODS, TARGET_PORTS):
        yield net


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    manifests.write(tmp_path, "node", manifests.node())
    manifests.write(tmp_path, "service", manifests.service("web", *VIPS.values(), protocols=("TCP", "UDP", "SCTP")))
    set_endpoints(tmp_path, *PODS)
    return tmp_path


def who_answers(net: Topology, protocol: str = "TCP", requests: int = 6) -> set[str]:
    return {net.ask("client", VIPS["IPv4"], PORTS[protocol], protocol)[0] for _ in range(requests)}


def test_witnesses_agree_with_the_plan_after_every_change(net: Topology, directory: Path) -> None:
    with running_agent(net, directory) as agent:
        assert_as_planned(net, directory)
        rules = saved_rules(net)
        assert all(any(word in text for word in ("-CLUSTER-IP dst,dst ", "@cluster-ip ")) for text in rules)
        set_endpoints(directory, "pod1")
        manifests.write(directory, "other", manifests.service("other", "10.96.0.31"))
        eventually(lambda: assert_as_planned(net, directory) is None)
        (directory / "other.json").unlink()
        set_endpoints(directory, *PODS)
        eventually(lambda: assert_as_planned(net, directory) is None)
        assert saved_rules(net) == rules
        assert agent.stop() < 1.0
        assert_as_planned(net, directory)


def test_draining_endpoint_keeps_its_connection_and_gets_no_new_one(net: Topology, directory: Path) -> None:
    with running_agent(net, directory) as agent:
        open_connections = [net.connect("client", VIPS["IPv4"], PORTS["TCP"]) for _ in range(3)]
        at_pod1 = next(c for c in open_connections if exchange(c)[0] == "pod1")
        set_endpoints(directory, "pod2", "pod3")
        eventually(lambda: weights(net, VIPS["IPv4"], 80).get(ADDRESSES["pod1"]["IPv4"]) == 0)
        assert who_answers(net) == {"pod2", "pod3"}
        assert exchange(at_pod1)[0] == "pod1"
        # It comes back: its weight with one message, and the connection is still there.
        writes_before = len(agent.named("programmed"))
        set_endpoints(directory, *PODS)
        agent.wait_for("programmed", writes_before + 1)
        eventually(lambda: weights(net, VIPS["IPv4"], 80).get(ADDRESSES["pod1"]["IPv4"]) == 1)
        assert exchange(at_pod1)[0] == "pod1"
        assert who_answers(net) == set(PODS)
        for connection in open_connections:
            connection.close()


def test_idle_endpoint_is_removed_at_once_and_others_at_the_deadline(net: Topology, directory: Path) -> None:
    with running_agent(net, directory, "--drain-timeout", "2s") as agent:
        busy = [net.connect("client", VIPS["IPv4"], PORTS["TCP"]) for _ in range(3)]
        assert {exchange(connection)[0] for connection in busy} == set(PODS)
        set_endpoints(directory, "pod2", "pod3")
        pod1 = ADDRESSES["pod1"]
        # No connection over IPv6, and UDP has none that could end: gone. Over IPv4 there is one: drained, then cut.
        eventually(lambda: pod1["IPv6"] not in weights(net, VIPS["IPv6"], 80))
        eventually(lambda: pod1["IPv4"] not in weights(net, VIPS["IPv4"], 53, 17))
        assert agent.wait_for("drained")["outcome"] == "deadline"
        assert pod1["IPv4"] not in weights(net, VIPS["IPv4"], 80)
        for connection in busy:
            connection.close()


def test_restart_during_traffic_fails_no_request_and_writes_nothing(net: Topology, directory: Path) -> None:
    with running_agent(net, directory) as agent:
        before = snapshot(net)
        with continuous_requests(net) as failures:
            agent.stop()
            with running_agent(net, directory) as successor:
                started = successor.named("started")[0]
        assert failures == []
        assert (started["operations"], started["kernel_writes"]) == (0, 0)
        assert snapshot(net) == before


def test_crash_while_draining_is_carried_on_by_the_next_agent(net: Topology, directory: Path) -> None:
    with running_agent(net, directory) as agent:
        connections = [net.connect("client", VIPS["IPv4"], PORTS["TCP"]) for _ in range(3)]
        at_pod1 = next(c for c in connections if exchange(c)[0] == "pod1")
        set_endpoints(directory, "pod2", "pod3")
        eventually(lambda: weights(net, VIPS["IPv4"], 80).get(ADDRESSES["pod1"]["IPv4"]) == 0)
        agent.kill()
    with running_agent(net, directory):
        assert exchange(at_pod1)[0] == "pod1"
        assert weights(net, VIPS["IPv4"], 80)[ADDRESSES["pod1"]["IPv4"]] == 0
        set_endpoints(directory, *PODS)
        eventually(lambda: weights(net, VIPS["IPv4"], 80).get(ADDRESSES["pod1"]["IPv4"]) == 1)
        assert exchange(at_pod1)[0] == "pod1"
        for connection in connections:
            connection.close()


@pytest.mark.packet_filter(IPTABLES)
def test_table_left_by_another_agent_is_taken_over(net: Topology, directory: Path) -> None:
    vip, pod1, pod2 = VIPS["IPv4"], ADDRESSES["pod1"]["IPv4"], ADDRESSES["pod2"]["IPv4"]
    gone = "10.96.9.9"
    net.run("node", "ip", "link", "add", "kube-ipvs0", "type", "dummy")
    for address in (vip, gone):
        net.run("node", "ip", "address", "add", f"{address}/32", "dev", "kube-ipvs0")
    # Of the Service: right but for the scheduler, one real server with another weight and one that nobody knows. Then a
    # Service that is gone, and a virtual server of somebody else.
    table = (
        f"-A -t {vip}:80 -s wrr\n-a -t {vip}:80 -r {pod1}:8080 -m -w 9\n"
        f"-A -t {gone}:80 -s rr\n-a -t {gone}:80 -r {pod2}:8080 -m -w 1\n"
        f"-A -t 192.0.2.77:99 -s wlc\n-a -t 192.0.2.77:99 -r {pod2}:8080 -m -w 3\n"
    )
    net.run("node", "ipvsadm", "-R", text=table)
    net.run("node", "ipset", "create", "KUBE-CLUSTER-IP", "hash:ip,port")
    net.run("node", "ipset", "add", "KUBE-CLUSTER-IP", f"{gone},tcp:80")
    net.run(
        "node", "iptables-restore", "--noflush", text="*nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j ACCEPT\nCOMMIT\n"
    )
    before = net.connect("client", vip, 80)
    assert exchange(before)[0] == "pod1"
    net.run("node", "ipvsadm", "-a", "-t", f"{vip}:80", "-r", "10.244.9.9:8080", "-m")
    with running_agent(net, directory) as agent:
        eventually(lambda: ("10.244.9.9", 8080) not in virtual_servers(net)[vip, 6, 80])
        foreign = virtual_servers(net).pop(("192.0.2.77", 6, 99))
        assert foreign == {(pod2, 8080): 3}
        net.run("node", "ipvsadm", "-D", "-t", "192.0.2.77:99")
        eventually(lambda: assert_as_planned(net, directory) is None)
        assert gone not in addresses(net)
        assert "-A PREROUTING -j ACCEPT" in net.run("node", "iptables-save")
        assert exchange(before)[0] == "pod1", "the connection from before the takeover"
        assert agent.named("kernel_read")[0]["foreign_virtual_servers"] == 1
        before.close()


@pytest.mark.packet_filter(IPTABLES)
def test_node_ports_that_kube_proxy_left_go_and_what_is_on_the_nodes_address_besides_stays(
    net: Topology, directory: Path
) -> None:
    node, pod2 = ADDRESSES["node"]["IPv4"], ADDRESSES["pod2"]["IPv4"]
    table = "".join(
        f"-A -t {node}:{port} -s rr\n-a -t {node}:{port} -r {pod2}:8080 -m -w 1\n" for port in (30123, 8888)
    )
    net.run("node", "ipvsadm", "-R", text=table + "-A -f 77 -s rr\n-a -f 77 -r 10.244.9.9:0 -m\n")
    net.run("node", "ipset", "create", "KUBE-NODE-PORT-TCP", "bitmap:port", "range", "0-65535")
    net.run("node", "ipset", "add", "KUBE-NODE-PORT-TCP", "30123")
    with running_agent(net, directory):
        # It drains first, which is over as soon as somebody looks.
        eventually(lambda: f"{node}:30123" not in net.run("node", "ipvsadm", "-Sn"))
        saved = net.run("node", "ipvsadm", "-Sn")
        assert f"{node}:8888" in saved
        assert "-f 77" in saved
        assert "add KUBE-NODE-PORT-TCP" not in net.run("node", "ipset", "save")


#: What somebody does to rules and sets, by packet filter.
DRIFTS = {
    IPTABLES: (
        ("rules", "iptables -t nat -F KUBE-SERVICES"),
        ("rules", "ip6tables -D INPUT -m comment --comment 'kubernetes ipvs access filter' -j KUBE-IPVS-FILTER"),
        ("sets", "ipset flush"),
        ("sets", f"ipset del KUBE-CLUSTER-IP {VIPS['IPv4']},tcp:80"),
    ),
    NFTABLES: (
        ("rules", "nft flush ruleset"),
        ("rules", "nft delete table inet ipvs-proxy"),
        ("rules", "nft flush chain inet ipvs-proxy services"),
        ("rules", "nft insert rule inet ipvs-proxy filter-input drop"),
        ("sets", "nft flush set inet ipvs-proxy cluster-ip"),
        ("sets", f"nft delete element inet ipvs-proxy cluster-ip '{{ {VIPS['IPv4']} . tcp . 80 }}'"),
        ("sets", "nft add element inet ipvs-proxy cluster-ip '{ 10.96.77.7 . tcp . 80 }'"),
    ),
}


def test_every_kind_of_drift_is_repaired(net: Topology, directory: Path) -> None:
    vip4, pod1 = VIPS["IPv4"], f"{ADDRESSES['pod1']['IPv4']}:8080"
    drifts: tuple[tuple[str, str], ...] = (
        *DRIFTS[CHOSEN],
        ("ipvs", f"ipvsadm -D -t {vip4}:80"),
        ("ipvs", f"ipvsadm -d -t {vip4}:80 -r {pod1}"),
        ("ipvs", f"ipvsadm -e -t {vip4}:80 -r {pod1} -m -w 7"),
        ("ipvs", f"ipvsadm -e -t {vip4}:80 -r {pod1} -m -x 5"),
        ("ipvs", f"ipvsadm -E -t {vip4}:80 -s lc"),
        ("ipvs", f"ipvsadm -a -t {vip4}:80 -r 10.244.9.9:8080 -m"),
        ("ipvs", f"ipvsadm -A -t {vip4}:4444 -s rr"),
        ("ipvs", "ipvsadm -C"),
        ("addresses", "ip address flush dev kube-ipvs0"),
        ("addresses", f"ip address del {vip4}/32 dev kube-ipvs0"),
        ("addresses", "ip address add 10.96.99.99/32 dev kube-ipvs0"),
        ("addresses", "ip link del kube-ipvs0"),
    )
    with running_agent(net, directory, *SYNC) as agent:
        rules = saved_rules(net)
        for table, command in drifts:
            seen = len([e for e in agent.named("drift_repaired") if e["table"] == table])
            net.run("node", "sh", "-c", command)
            eventually(
                lambda table=table, seen=seen: (
                    len([e for e in agent.named("drift_repaired") if e["table"] == table]) > seen
                )
            )
            eventually(lambda: assert_as_planned(net, directory) is None)
            eventually(lambda: saved_rules(net) == rules)
            assert who_answers(net) == set(PODS), command


def test_removed_link_is_back_at_once(net: Topology, directory: Path) -> None:
    """Long before the next audit, which is half a minute away."""
    with running_agent(net, directory, "--ipvs-sync-period", "1h"):
        for command in ("ip link del kube-ipvs0", f"ip address del {VIPS['IPv6']}/128 dev kube-ipvs0"):
            net.run("node", "sh", "-c", command)
            eventually(lambda: addresses(net) == set(VIPS.values()), patience=20.0)
        assert net.ask("client", VIPS["IPv6"], 80)[0] in PODS


def snapshot(net: Topology) -> tuple[str, ...]:
    """Return all that the witnesses print, without packet counters."""
    commands = (("ipvsadm", "-Sn"), ("ip", "-o", "address", "show", "dev", "kube-ipvs0"))
    return (*(net.run("node", *command) for command in commands), *sorted(saved_sets(net)), *saved_rules(net))
