"""What is said of a node and a configuration before a migration."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipvs_proxy.commands.migrate import (
    Consequence,
    Standing,
    judge_configuration,
    judge_node,
    report,
)
from ipvs_proxy.kernel.filter.iptables.programs import LEGACY, NF_TABLES, Iptables
from ipvs_proxy.node.inventory import Inventory
from ipvs_proxy.node.problem import Problem
from ipvs_proxy.node.processes import Process
from ipvs_proxy.node.sysctl import SysctlChange
from ipvs_proxy.plan.tables import Family
from ipvs_proxy.settings.merge import effective
from ipvs_proxy.settings.model import Settings

SETTINGS = Settings(node_name="node")
PORTS = {"health": 10256, "metrics": 10249}
NFT = Iptables(suffix="", backend=NF_TABLES, version=(1, 8, 9), reason="it is the node's default")
CONFIGURATION = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


def judged(**found: Any) -> list[Consequence]:
    return judge_node(Inventory(kernel=(6, 1), iptables=NFT, **found), SETTINGS, PORTS)


def said(consequences: list[Consequence], standing: Standing) -> str:
    return "\n".join(
        f"{consequence.topic}: {consequence.text} -> {consequence.remedy}"
        for consequence in consequences
        if consequence.standing is standing
    )


def test_a_clean_node_is_ready() -> None:
    consequences = judged()
    assert {consequence.standing for consequence in consequences} == {Standing.FOUND}
    assert "kube-proxy: has left nothing on this node" in said(consequences, Standing.FOUND)
    assert report(consequences).endswith("\nReady: nothing stands in the way.\n")


@pytest.mark.parametrize(
    ("found", "standing", "part"),
    [
        (
            {"link": True, "addresses": 6, "sets": 17, "schedulers": Counter(rr=12)},
            Standing.FOUND,
            "IPVS mode: virtual servers 12, addresses on kube-ipvs0 6, sets 17",
        ),
        ({"sets": 17}, Standing.CHANGE, "IPVS mode: taken over as it is"),
        ({"schedulers": Counter(rr=12, wrr=3)}, Standing.CHANGE, "of the virtual servers 3 have wrr; Services get rr"),
        ({"iptables_mode": {("IPv4", NF_TABLES): 10}}, Standing.FOUND, "chains of IPv4 in nf_tables: 10"),
        ({"iptables_mode": {("IPv4", NF_TABLES): 10}}, Standing.CHANGE, "iptables mode: IPv4: its chains serve until"),
        ({"nftables_mode": (Family.IPV6,)}, Standing.CHANGE, "nftables mode: IPv6: its table serves until"),
        ({"iptables_mode": {("IPv4", LEGACY): 10}}, Standing.OBSTACLE, "kube-proxy has rules in legacy"),
        ({"ipvs_mode": {("IPv6", LEGACY): 9}}, Standing.OBSTACLE, "ipvs-proxy cleanup --kube-proxy"),
        (
            {"foreign": ["192.0.2.7:80/TCP"]},
            Standing.FOUND,
            "1 virtual server of others, which stays: 192.0.2.7:80/TCP ->",
        ),
        ({"foreign": ["a"] * 7}, Standing.FOUND, "a, a, a, a, a and 2 more"),
        (
            {"sysctls": [SysctlChange("net/ipv4/vs/conntrack", "0", "1")]},
            Standing.CHANGE,
            "net.ipv4.vs.conntrack: 0 -> 1",
        ),
        ({"flaws": [Problem("IPv6 is off", "set it")]}, Standing.UNSUPPORTED, "IPv6 is off -> set it"),
        ({"unsupported": {Family.IPV6: "off"}}, Standing.UNSUPPORTED, "IPv6: is not served on this node: off"),
        ({"missing": [Problem("no IPVS", "load ip_vs")]}, Standing.OBSTACLE, "kernel: no IPVS -> load ip_vs"),
        (
            {"kube_proxy": Process(7, "kube-proxy"), "holders": {10256: Process(7, "kube-proxy")}},
            Standing.CHANGE,
            "kube-proxy: kube-proxy (process 7) is running -> take it off this node",
        ),
        ({"holders": {10256: Process()}}, Standing.CHANGE, "10256 is taken by a process that cannot be seen from here"),
        ({"holders": {10256: Process(7, "nginx")}}, Standing.OBSTACLE, "10256 is taken by nginx (process 7)"),
        ({"holders": {10249: Process(7, "nginx")}}, Standing.OBSTACLE, "set metricsBindAddress to another port"),
        ({"agent": True, "holders": {10256: Process(7, "python")}}, Standing.FOUND, "there is nothing to migrate"),
    ],
)
def test_each_fact_has_its_standing(found: dict[str, Any], standing: Standing, part: str) -> None:
    consequences = judged(**found)
    assert part in said(consequences, standing)
    expected = "Not ready: 1 thing stands in the way." if standing is Standing.OBSTACLE else "Ready"
    assert report(consequences).splitlines()[-1].startswith(expected)


def test_beside_a_kube_proxy_its_rules_stay_and_its_ports_are_its_own() -> None:
    settings = effective({"service_proxy_name": "ipvs"})
    proxy = Process(9, "kube-proxy")
    found = Inventory(kernel=(6, 1), iptables=NFT, iptables_mode={("IPv4", NF_TABLES): 40}, kube_proxy=proxy)
    consequences = judge_node(found, settings, {"health": 10356, "metrics": 10349})
    assert "iptables mode: chains of IPv4 in nf_tables: 40; stay" in said(consequences, Standing.FOUND)
    assert "label service.kubernetes.io/service-proxy-name: ipvs" in said(consequences, Standing.CHANGE)
    assert "removed" not in report(consequences)
    assert report(consequences).endswith("\nReady: nothing stands in the way.\n")
    found.holders = {10256: proxy}
    taken = judge_node(found, settings, {"health": 10256, "metrics": 10349})
    assert "10256 is taken by kube-proxy (process 9) -> set healthzBindAddress" in said(taken, Standing.OBSTACLE)


def test_variants_in_the_way_are_named_once() -> None:
    consequences = judged(iptables_mode={("IPv4", LEGACY): 10, ("IPv6", LEGACY): 8}, ipvs_mode={("IPv4", LEGACY): 9})
    assert len(said(consequences, Standing.OBSTACLE).splitlines()) == 1


def test_the_report_is_aligned_and_not_wider_than_a_terminal() -> None:
    missing = Problem("a piece that is missing " * 6, "with a remedy " + "word " * 30)
    order = list(Standing)
    found = judged(missing=[missing], nftables_mode=(Family.IPV4,))
    consequences = sorted(found, key=lambda consequence: order.index(consequence.standing))
    lines = report(consequences).splitlines()
    assert max(map(len, lines)) <= 100
    begun = [line for line in lines if line.startswith(tuple(f"  {standing.value} " for standing in order))]
    columns = {
        line.index(consequence.text[:10], 15 + len(consequence.topic))
        for consequence, line in zip(consequences, begun, strict=True)
    }
    (column,) = columns
    body = lines[2:-2]
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in body)


def config_map(data: dict[str, str]) -> str:
    return yaml.safe_dump({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-proxy"}, "data": data})


@pytest.mark.parametrize(
    "text",
    [
        CONFIGURATION + "ipvs: {scheduler: lc}\n",
        config_map({"kubeconfig.conf": "kind: Config", "config.conf": CONFIGURATION + "ipvs: {scheduler: lc}\n"}),
        json.dumps({"kind": "ConfigMap", "data": {"c": CONFIGURATION + "ipvs: {scheduler: lc}\n"}}),
    ],
)
def test_a_configuration_is_read_by_itself_and_in_a_config_map(text: str) -> None:
    settings, consequences = judge_configuration(text, "x.yaml")
    assert settings.scheduler == "lc"
    assert consequences == [Consequence(Standing.FOUND, "configuration", "x.yaml can be used as it is")]


def test_what_has_no_effect_is_named() -> None:
    _, consequences = judge_configuration(
        CONFIGURATION + "mode: iptables\nmagic: 1\nwinkernel: {networkName: x}\n", "x.yaml"
    )
    unsupported = said(consequences, Standing.UNSUPPORTED)
    for part in ("iptables", "magic", "winkernel.networkName"):
        assert part in unsupported


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (CONFIGURATION + "ipvs: {syncPeriod: soon}\n", "KubeProxyConfiguration.ipvs.syncPeriod: "),
        (config_map({"a": "b"}), "the ConfigMap has no KubeProxyConfiguration in its data"),
        ("kind: Pod\n", "x.yaml"),
        ("", "x.yaml"),
        ("\0{", "x.yaml"),
        ("[" * 5000, "x.yaml"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_in_the_way(text: str, part: str) -> None:
    settings, consequences = judge_configuration(text, "x.yaml")
    assert settings == SETTINGS
    assert {consequence.standing for consequence in consequences} == {Standing.OBSTACLE}
    assert part in said(consequences, Standing.OBSTACLE)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"\xff\xfe")
    for name in ("missing", "latin"):
        command = [sys.executable, "-m", "ipvs_proxy", "migrate", "check", "--config", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 1
        assert done.stderr.startswith(f"ipvs-proxy: error: --config {tmp_path / name}: ")
