"""Configuration files as people have them, from public reports: each with the values that it must lead to."""

from __future__ import annotations

import json
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from ipvs_proxy.commands.migrate import Standing, judge_configuration
from ipvs_proxy.settings.file import read_settings
from ipvs_proxy.settings.merge import effective
from ipvs_proxy.settings.model import Settings, SettingsError

CASES = Path(__file__).parent / "cases"
KIND = "KubeProxyConfiguration"
HEAD = f"apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: {KIND}\n"
LENIENT = "config_decoded_leniently"


def read(name: str) -> Settings:
    return read_settings({}, CASES / name)


@pytest.mark.parametrize(
    ("name", "values", "notes"),
    [
        (
            "21-metallb-unindented.conf",
            {"strict_arp": False},
            [(LENIENT, {"unknown": [f"{KIND}.strictARP"], "duplicate": []})],
        ),
        (
            "22-kubeadm-init.yaml",
            {"strict_arp": True, "scheduler": "rr"},
            [
                (
                    "config_documents_ignored",
                    {
                        "documents": [
                            "InitConfiguration (kubeadm.k8s.io/v1beta4)",
                            "ClusterConfiguration (kubeadm.k8s.io/v1beta4)",
                        ]
                    },
                )
            ],
        ),
        (
            "23-kubeadm-133.conf",
            {
                "kubeconfig": "/var/lib/kube-proxy/kubeconfig.conf",
                "cluster_cidrs": (ip_network("10.244.0.0/16"),),
                "scheduler": "rr",
                "sync_period": 30.0,
                "min_sync_period": 0.0,
                "masquerade_bit": 14,
                "oom_score_adj": -999,
                "conntrack_max_per_core": 32768,
                "healthz_bind_address": "0.0.0.0:10256",
                "metrics_bind_address": "127.0.0.1:10249",
            },
            [],
        ),
        (
            "24-kubespray.conf",
            {
                "node_name": "node-1",
                "cluster_cidrs": (ip_network("10.233.64.0/18"), ip_network("fd85:ee78:d8a6:8607::1:0/112")),
                "strict_arp": True,
                "healthz_bind_address": "[::]:10256",
                "metrics_bind_address": "127.0.0.1:10249",
                "node_port_addresses": (),
                "conntrack_tcp_established": 86400.0,
            },
            [],
        ),
        (
            "29-wrong-section.conf",
            {"masquerade_all": False, "min_sync_period": 5.0, "scheduler": "rr"},
            [
                (
                    LENIENT,
                    {
                        "unknown": [f"{KIND}.conntrack.max", f"{KIND}.ipvs.masqueradeAll", f"{KIND}.udpIdleTimeout"],
                        "duplicate": [],
                    },
                )
            ],
        ),
        ("30-bom-crlf.conf", {"strict_arp": True}, []),
    ],
)
def test_file_leads_to_its_values_and_what_is_told(name: str, values: dict[str, Any], notes: list[Any]) -> None:
    settings = read(name)
    assert {field: getattr(settings, field) for field in values} == values
    assert list(settings.notes) == notes


@pytest.mark.parametrize(
    ("name", "faults"),
    [
        (
            "26-v6brackets.conf",
            [
                f"{KIND}.healthzBindAddress: ':::10256' is neither an IP address nor one with a port, "
                "such as 127.0.0.1:80 and [::1]:80: write [::]:10256",
                f"{KIND}.metricsBindAddress: '::1:10249' is neither an IP address nor one with a port, "
                "such as 127.0.0.1:80 and [::1]:80: write [::1]:10249",
            ],
        ),
        (
            "28-aksstyle.conf",
            [
                f"{KIND}.ipvs.scheduler: 'LeastConnection' is not the kernel's name of a scheduler; it calls this one lc",
                f"{KIND}.mode: 'IPVS' is not one of ipvs, iptables, nftables",
            ],
        ),
    ],
)
def test_file_that_kube_proxy_refuses_is_refused_with_what_to_write(name: str, faults: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        read(name)
    assert str(caught.value).splitlines() == faults


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ipvs_proxy", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("name", "field"),
    [("21-metallb-unindented.conf", f"{KIND}.strictARP"), ("29-wrong-section.conf", f"{KIND}.ipvs.masqueradeAll")],
)
@pytest.mark.parametrize("command", [["--write-config-to", "/dev/null"], ["plan", "--manifests", "/nonexistent"]])
def test_commands_tell_of_unknown_fields_as_a_start_does(name: str, field: str, command: list[str]) -> None:
    subcommand = [command[0]] if command[0] == "plan" else []
    done = run(*subcommand, "--config", str(CASES / name), *command[len(subcommand) :])
    warnings = [line for line in done.stderr.splitlines() if line.startswith("ipvs-proxy: warning: ")]
    assert len(warnings) == 1
    assert warnings[0].startswith("ipvs-proxy: warning: config decoded leniently: unknown ")
    assert field in warnings[0]


def test_migrate_check_finds_nothing_unsupported_in_what_kubeadm_writes() -> None:
    settings, findings = judge_configuration((CASES / "23-kubeadm-133.conf").read_text(), "config.conf")
    assert settings.kubeconfig == "/var/lib/kube-proxy/kubeconfig.conf"
    assert [finding.standing for finding in findings] == [Standing.FOUND]


def test_a_document_of_our_groups_that_is_misspelt_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.conf"
    path.write_text(f"{HEAD}---\napiVersion: ipvs-proxy.io/v1alpha1\nkind: IpvsProxyConfigration\n")
    with pytest.raises(SettingsError, match="its kind is IpvsProxyConfigration"):
        read_settings({}, path)


STRINGS = [
    ("detectLocal", "interfaceNamePrefix"),
    ("detectLocal", "bridgeInterface"),
    ("ipvs", "scheduler"),
    ("clientConnection", "kubeconfig"),
    ("ipvs", "excludeCIDRs"),
    ("", "clusterCIDR"),
    ("", "hostnameOverride"),
    ("", "featureGates"),
    ("", "portRange"),
    ("", "nodePortAddresses"),
    ("logging", "options"),
]


@pytest.mark.parametrize(("section", "name"), STRINGS)
@pytest.mark.parametrize("character", ["\0", "\n", "\x1b", "\x7f", "\x85", "\ud800"])
def test_control_characters_are_refused_in_every_setting(
    tmp_path: Path, section: str, name: str, character: str
) -> None:
    value: Any = f"veth{character}x"
    value = {"excludeCIDRs": [value], "nodePortAddresses": [value], "featureGates": {value: True}}.get(name, value)
    body = {section: {name: value}} if section else {name: value}
    path = tmp_path / "config.conf"
    path.write_text(json.dumps({"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": KIND, **body}))
    with pytest.raises(SettingsError, match="has the control character"):
        read_settings({}, path)


def test_control_characters_are_refused_in_flags() -> None:
    with pytest.raises(SettingsError, match=r"--pod-interface-name-prefix: has the control character \\n"):
        effective({"interface_name_prefix": "veth\n-A INPUT"})


def test_prefix_of_interfaces_leaves_room_for_the_sign_that_stands_for_the_rest() -> None:
    # With it a name has at most 15 bytes (IFNAMSIZ of linux/if.h).
    with pytest.raises(SettingsError, match="pod-interface-name-prefix"):
        effective({"interface_name_prefix": "fifteen-letters"})
    assert effective({"bridge_interface": "fifteen-letters"}).bridge_interface == "fifteen-letters"


@pytest.mark.parametrize("gates", ["{AllowServiceExternalIPs: false}", "{AllowServiceExternalIPs: false, Other: true}"])
def test_the_gate_of_external_ips_counts_and_no_other_does(tmp_path: Path, gates: str) -> None:
    path = tmp_path / "config.conf"
    path.write_text(f"{HEAD}featureGates: {gates}\n")
    settings = read_settings({}, path)
    assert settings.external_ips is False
    assert [event for event, _ in settings.notes] == ["settings_without_effect"] * ("Other" in gates)
    assert effective({}).external_ips is True
    assert effective({"feature_gates": "AllowServiceExternalIPs=false"}).external_ips is False


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (["primary"], ["primary"]),
        (["primary", "10.0.0.0/8"], ["primary", "10.0.0.0/8"]),
        (["all"], ["0.0.0.0/0", "::/0"]),
        (["localhost", "primary"], ["127.0.0.0/8", "::1/128", "primary"]),
        (["192.0.2.0/24", "primary", "192.0.2.0/24"], ["192.0.2.0/24", "primary"]),
    ],
)
def test_node_port_addresses_are_any_mix_and_localhost_is_told(written: list[str], shown: list[str]) -> None:
    settings = effective({"node_port_addresses": written})
    assert settings.fields[f"{KIND}.nodePortAddresses"] == shown
    told = [fields["addresses"] for event, fields in settings.notes if event == "node_port_addresses_not_served"]
    assert told == ([["127.0.0.0/8", "::1/128"]] if "localhost" in written else [])
    assert effective({"node_port_addresses": shown}).node_port_addresses == settings.node_port_addresses


def test_a_file_of_windows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.conf"
    path.write_bytes((CASES / "30-bom-crlf.conf").read_bytes().replace(b"\n", b"\r\n"))
    assert read_settings({}, path).strict_arp is True
