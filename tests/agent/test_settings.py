"""Flags, the configuration file, and which of them wins."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from ipvs_proxy.agent.settings import SETTINGS, SettingsError, duration, effective
from ipvs_proxy.agent.settings_file import read_file

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


def write(tmp_path: Path, text: str, head: str = HEAD) -> Path:
    file = tmp_path / "config.conf"
    file.write_text(head + text)
    return file


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30.0), ("1m30s", 90.0), ("1h", 3600.0), ("500ms", 0.5), ("1.5h", 5400.0), ("0", 0.0), ("0s", 0.0)],
)
def test_durations_are_written_as_in_go(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "s", "-1s", "1d", "1s2"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        duration(text)


def test_defaults_are_those_of_kube_proxy() -> None:
    settings = effective({"hostname_override": " Node-A "})
    assert settings.node_name == "node-a"
    assert settings.healthz_bind_address == "0.0.0.0:10256"
    assert settings.metrics_bind_address == "127.0.0.1:10249"
    assert (settings.scheduler, settings.sync_period, settings.min_sync_period) == ("rr", 30.0, 1.0)
    assert (settings.masquerade_bit, settings.masquerade_all, settings.cluster_cidrs) == (14, False, ())
    assert settings.notes == ()


def test_default_addresses_follow_the_family_of_the_bind_address() -> None:
    settings = effective({"bind_address": "fd00::1"})
    assert (settings.healthz_bind_address, settings.metrics_bind_address) == ("[::]:10256", "[::1]:10249")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1", "127.0.0.1:10256"),
        ("127.0.0.1:99", "127.0.0.1:99"),
        ("::1", "[::1]:10256"),
        ("[::1]:99", "[::1]:99"),
        ("", "0.0.0.0:10256"),
    ],
)
def test_bind_address_gets_its_port(text: str, address: str) -> None:
    assert effective({"healthz_bind_address": text}).healthz_bind_address == address


def test_all_faults_are_told_at_once_with_their_place() -> None:
    flags = {"sync_period": "soon", "masquerade_bit": "32", "cluster_cidrs": "10.0.0.0/8,11.0.0.0/8", "mode": "magic"}
    with pytest.raises(SettingsError) as caught:
        effective(flags | {"hostname_override": "  "})
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "--cluster-cidr",
        "--ipvs-sync-period",
        "--iptables-masquerade-bit",
        "--proxy-mode",
        "--hostname-override",
    ]


def test_file_of_kubeadm_works_as_it_is(tmp_path: Path) -> None:
    text = """
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection: {acceptContentTypes: "", burst: 0, contentType: "", kubeconfig: /var/lib/kube-proxy/kubeconfig.conf, qps: 0}
clusterCIDR: 10.244.0.0/16,fd00::/48
configSyncPeriod: 0s
conntrack: {maxPerCore: null, min: null, tcpCloseWaitTimeout: null, tcpEstablishedTimeout: null}
detectLocal: {bridgeInterface: "", interfaceNamePrefix: ""}
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables: {localhostNodePorts: null, masqueradeAll: true, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
ipvs: {excludeCIDRs: [192.0.2.0/24], minSyncPeriod: 0s, scheduler: lc, strictARP: true, syncPeriod: 0s, tcpFinTimeout: 0s, tcpTimeout: 15m, udpTimeout: 0s}
logging: {flushFrequency: 0, options: {json: {infoBufferSize: "0"}}, verbosity: 0}
metricsBindAddress: ""
mode: ipvs
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel: {enableDSR: false, networkName: "", sourceVip: ""}
"""
    fields, notes = read_file(write(tmp_path, text))
    settings = effective({}, fields)
    assert settings.kubeconfig == "/var/lib/kube-proxy/kubeconfig.conf"
    assert settings.cluster_cidrs == (ip_network("10.244.0.0/16"), ip_network("fd00::/48"))
    assert (settings.scheduler, settings.strict_arp, settings.masquerade_all) == ("lc", True, True)
    assert settings.exclude_cidrs == (ip_network("192.0.2.0/24"),)
    assert (settings.sync_period, settings.min_sync_period, settings.tcp_timeout) == (30.0, 0.0, 900.0)
    assert settings.masquerade_bit == 14
    assert [name for name, _ in notes] == ["config_fields_without_effect"]
    assert "conntrack" in notes[0][1]["fields"]


def test_file_replaces_flags_but_for_the_named_few(tmp_path: Path) -> None:
    fields, _ = read_file(write(tmp_path, "ipvs: {scheduler: sh}\nhostnameOverride: from-file\n"))
    flags = {"scheduler": "lc", "cluster_cidrs": "10.0.0.0/8", "hostname_override": "from-flag", "master": "https://x"}
    settings = effective(flags, fields)
    assert (settings.scheduler, settings.cluster_cidrs) == ("sh", ())
    assert (settings.node_name, settings.master) == ("from-flag", "https://x")
    assert settings.notes[0][0] == "flags_ignored"
    assert sorted(settings.notes[0][1]["flags"]) == ["--cluster-cidr", "--ipvs-scheduler"]


def test_unknown_and_duplicate_fields_are_named_and_the_rest_counts(tmp_path: Path) -> None:
    fields, notes = read_file(
        write(tmp_path, "mode: ipvs\nmagic: 1\nipvs:\n  scheduler: lc\n  scheduler: sh\n  speed: 9\n")
    )
    assert effective({}, fields).scheduler == "sh"
    assert notes == [("config_decoded_leniently", {"unknown": ["ipvs.speed", "magic"], "duplicate": ["scheduler"]})]


@pytest.mark.parametrize(
    ("text", "head", "message"),
    [
        ("", "kind: Deployment\napiVersion: apps/v1\n", "it is apps/v1 Deployment"),
        ("a: [", HEAD, "not YAML"),
        ("- 1", "", "it holds no KubeProxyConfiguration"),
    ],
)
def test_file_of_another_kind_is_refused_with_its_name(tmp_path: Path, text: str, head: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_file(write(tmp_path, text, head))


def test_fault_in_the_file_is_told_with_the_field_path(tmp_path: Path) -> None:
    fields, _ = read_file(write(tmp_path, "ipvs: {syncPeriod: 5s, minSyncPeriod: 10s, excludeCIDRs: [x]}\n"))
    with pytest.raises(SettingsError) as caught:
        effective({}, fields)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "KubeProxyConfiguration.ipvs.excludeCIDRs",
        "KubeProxyConfiguration.ipvs.syncPeriod",
    ]


def test_other_modes_are_told_to_have_no_effect() -> None:
    assert effective({"mode": "nftables"}).notes[0][0] == "mode_ignored"


def test_every_row_reads_its_own_default() -> None:
    for setting in SETTINGS:
        setting.read(setting.default)
