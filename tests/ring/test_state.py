"""What the agent tells of itself is what the kernel has, by its witnesses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lab import manifests
from lab.agent import command, eventually, running_agent
from lab.manifests import PORTS, TARGET_PORTS, endpoint
from lab.topology import ADDRESSES, CLUSTER_CIDR, FAMILIES, Topology, exchange, servers, topology

VIPS = {"IPv4": "10.96.0.95", "IPv6": "fd00:10:96::95"}
PODS = ("pod1", "pod2")


def explained(net: Topology) -> dict[str, Any]:
    """Return what is said of the endpoints of the IPv4 virtual server, by address."""
    state = json.loads(command(net, "explain", f"{VIPS['IPv4']}:80", "-o", "json"))
    assert (state["namespace"], state["name"]) == ("ring", "web")
    (server,) = [found for found in state["virtualServers"] if found["address"] == VIPS["IPv4"]]
    return {"inSync": state["inSync"], **{found["address"]: found for found in server["endpoints"]}}


def test_state_is_what_the_kernel_has_and_says_why(tmp_path: Path) -> None:
    manifests.write(tmp_path, "node", manifests.node())
    manifests.write(tmp_path, "service", manifests.service("web", *VIPS.values()))
    ready = [endpoint(ADDRESSES[pod][family]) for pod in PODS for family in FAMILIES]
    manifests.write(tmp_path, "slices", *manifests.slices("web", ready))
    pod1, pod2 = (f"{ADDRESSES[pod]['IPv4']}:{TARGET_PORTS['TCP']}" for pod in PODS)
    with (
        topology() as net,
        servers(net, PODS, TARGET_PORTS),
        # No audit meanwhile: this machine may take half a minute for a command.
        running_agent(net, tmp_path, "--ipvs-sync-period", "600s") as agent,
        net.connect("client", VIPS["IPv4"], PORTS["TCP"]) as client,
    ):
        exchange(client)
        found = explained(net)
        assert found["inSync"]
        assert [found[pod]["reason"] for pod in (pod1, pod2)] == ["ready", "ready"]
        assert sorted(found[pod]["activeConnections"] for pod in (pod1, pod2)) == [0, 1]
        assert net.run("node", "ipvsadm", "-Ln").count("Masq    1      1") == 1
        busy = pod1 if found[pod1]["activeConnections"] else pod2

        # The endpoint with the connection becomes unready: out, and the kernel's real server drains.
        conditions = [
            endpoint(ADDRESSES[pod][family], ready=not busy.startswith(f"{ADDRESSES[pod]['IPv4']}:"))
            for pod in PODS
            for family in FAMILIES
        ]
        manifests.write(tmp_path, "slices", *manifests.slices("web", conditions))
        agent.wait_for("programmed")
        found = explained(net)
        assert (found[busy]["wanted"], found[busy]["reason"], found[busy]["weight"]) == (False, "not-ready", 0)
        text = command(net, "explain", "ring/web")
        assert any(line.split()[:3] == [busy, "draining", "not-ready"] for line in text.splitlines()), text
        listed = command(net, "services", "ring/")
        assert [line.split()[:5] for line in listed.splitlines()] == [
            ["SERVICE", "ADDRESS", "PORTS", "SCHEDULER", "ENDPOINTS"],
            ["ring/web", VIPS["IPv4"], "+1", "80/TCP", "rr"],
        ], listed

        # Somebody takes the other real server away: that is seen at once, before any audit.
        other = ({pod1, pod2} - {busy}).pop()
        net.run("node", "ipvsadm", "-d", "-t", f"{VIPS['IPv4']}:80", "-r", other)
        found = explained(net)
        assert (found["inSync"], found[other]["wanted"], found[other]["weight"]) == (False, True, None)
        assert f"DIFFERS: {VIPS['IPv4']}:80/TCP lacks real server {other}" in command(net, "explain", "ring/web")

        missing = f"{VIPS['IPv4']}:80/TCP -> {other} weight 1"
        assert command(net, "diff", status=2).splitlines() == [
            f"+  ipvs  {missing}",
            "1 to add, 0 to change, 0 to delete, for 1 Service",
        ]
        status = command(net, "status")
        assert "healthy" in status
        assert "1 drain," in status
        assert "ring/web" in status.partition("Last changes")[2]
        assert "there is no Service ring/wep" in command(net, "explain", "ring/wep", status=1)
        assert "did you mean ring/web?" in command(net, "explain", "default/web", status=1)
    assert (
        max(len(line) for line in (status + text + listed).splitlines() if not line.startswith(VIPS["IPv6"][:4])) <= 100
    )


def kernel(net: Topology) -> str:
    """Return all that witnesses see of the node's tables."""
    tables = net.run("node", "ipvsadm", "-Sn") + net.run("node", "ipset", "save") + net.run("node", "ip", "-br", "addr")
    return tables + net.run("node", "iptables-save") + net.run("node", "ip6tables-save")


def test_plan_says_what_a_start_changes_and_changes_nothing(tmp_path: Path) -> None:
    manifests.write(tmp_path, "node", manifests.node())
    manifests.write(tmp_path, "service", manifests.service("web", *VIPS.values()))
    endpoints = [endpoint(ADDRESSES["pod1"][family]) for family in FAMILIES]
    manifests.write(tmp_path, "slices", *manifests.slices("web", endpoints))
    flags = ("--manifests", str(tmp_path), "--hostname-override", "node", "--cluster-cidr", CLUSTER_CIDR)
    with topology() as net:
        before = kernel(net)
        planned = json.loads(command(net, "plan", *flags, "-o", "json", status=2))
        assert re.sub(r"\[[0-9:]+\]", "", kernel(net)) == re.sub(r"\[[0-9:]+\]", "", before)
        objects = {(found["verb"], found["object"]) for found in planned["changes"]}
        pod = f"{ADDRESSES['pod1']['IPv4']}:{TARGET_PORTS['TCP']}"
        assert {
            ("add", "link kube-ipvs0"),
            ("add", "KUBE-CLUSTER-IP"),
            ("add", f"{VIPS['IPv4']}:80/TCP rr"),
            ("add", f"{VIPS['IPv4']}:80/TCP -> {pod} weight 1"),
            ("add", f"{VIPS['IPv4']} on kube-ipvs0"),
            ("add", f"KUBE-CLUSTER-IP {VIPS['IPv4']},tcp:80"),
        } <= objects, objects
        assert planned["services"] == 1
        with running_agent(net, tmp_path):
            text = command(net, "plan", *flags)
            assert text == "nothing would change: the kernel is as 1 Service wants it\n"
            assert command(net, "plan", *flags[:4]) == text, "with the running agent's configuration"
            assert "rules" in command(net, "plan", *flags[:4], "--cluster-cidr", "10.99.0.0/16", status=2)
        net.run("node", "ipvsadm", "-e", "-t", f"{VIPS['IPv4']}:80", "-r", pod, "-m", "-w", "5")
        text = command(net, "plan", *flags, status=2)
        assert text.splitlines()[0] == f"~  ipvs  {VIPS['IPv4']}:80/TCP -> {pod} weight 1"


@pytest.mark.parametrize("family", FAMILIES)
def test_way_that_is_told_is_the_way_that_connections_take(tmp_path: Path, family: str) -> None:
    manifests.write(tmp_path, "node", manifests.node())
    manifests.write(tmp_path, "service", manifests.service("web", *VIPS.values()))
    endpoints = [endpoint(ADDRESSES["pod1"][family])]
    manifests.write(tmp_path, "slices", *manifests.slices("web", endpoints))
    vip = VIPS[family] if family == "IPv4" else f"[{VIPS[family]}]"
    with topology() as net, servers(net, ("pod1",), TARGET_PORTS), running_agent(net, tmp_path):
        for place in ("client", "pod2", "node"):
            address = ADDRESSES[place][family]
            route = json.loads(command(net, "explain", "--from", address, f"{vip}:{PORTS['TCP']}", "-o", "json"))
            assert route["verdict"] == "balanced", route
            name, seen = net.ask(place, VIPS[family], PORTS["TCP"])
            assert name == "pod1"
            if place != "node":  # which has several addresses
                assert route["masqueraded"] == (seen != address), (place, seen, route["steps"])
        manifests.write(tmp_path, "slices", *manifests.slices("web", []))

        def refused() -> bool:
            text = command(net, "explain", "--from", ADDRESSES["client"][family], f"{vip}:{PORTS['TCP']}")
            return "=> refused" in text and "NO-ENDPOINT" in text

        eventually(refused)
        with pytest.raises(ConnectionRefusedError):
            net.ask("client", VIPS[family], PORTS["TCP"])
