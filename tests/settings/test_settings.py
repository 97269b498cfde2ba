"""Flags, the configuration file, and which of them wins."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from ipvs_proxy.settings.file import read_file
from ipvs_proxy.settings.merge import effective
from ipvs_proxy.settings.model import SettingsError
from ipvs_proxy.settings.table import SETTINGS
from ipvs_proxy.settings.values import duration

KIND = "KubeProxyConfiguration"
HEAD = f"apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: {KIND}\n"
OWN_HEAD = "apiVersion: ipvs-proxy.io/v1alpha1\nkind: IpvsProxyConfiguration\n"


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
    with pytest.raises(ValueError, match="not a duration"):
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
        "--ipvs-sync-period",
        "--cluster-cidr",
        "--iptables-masquerade-bit",
        "--proxy-mode",
        "--hostname-override",
    ]


def test_what_cannot_be_read_is_not_compared_with_anything() -> None:
    with pytest.raises(SettingsError) as caught:
        effective({"sync_period": "500ms", "min_sync_period": "soon"})
    assert str(caught.value) == "--ipvs-min-sync-period: 'soon' is not a duration such as 30s or 1m30s"


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
logging: {flushFrequency: 0, options: {}, verbosity: 0}
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
    assert notes == []  # nothing is set that has no effect


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
    assert notes == [
        ("config_decoded_leniently", {"unknown": [f"{KIND}.ipvs.speed", f"{KIND}.magic"], "duplicate": ["scheduler"]})
    ]


@pytest.mark.parametrize(
    ("text", "head", "message"),
    [
        ("", "kind: Deployment\napiVersion: apps/v1\n", "its kind is Deployment and its apiVersion apps/v1"),
        ("", "mode: ipvs\n", "its kind is None"),
        ("a: [", HEAD, "neither YAML nor JSON"),
        ("- 1", "", "it holds no KubeProxyConfiguration"),
        ("", "", "it holds no KubeProxyConfiguration"),
        ("mode: !!timestamp 2001-99-99", HEAD, "neither YAML nor JSON: .2001-99-99. is no timestamp .line 3"),
        ("mode: " + "[" * 1500, HEAD, "nested too deeply"),
        ("{" * 1500, "", "nested too deeply|neither YAML nor JSON"),
        ("---\nmode: ipvs", HEAD, "its kind is None"),
        (f"---\n{HEAD}", HEAD, "wanted one KubeProxyConfiguration, and at most one IpvsProxyConfiguration"),
        ("", OWN_HEAD, "wanted one KubeProxyConfiguration"),
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


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("ipvs: 5", "ipvs: must be a mapping, not a whole number"),
        ("conntrack: [1]", "conntrack: must be a mapping, not a list"),
        ("ipvs: {scheduler: [rr]}", "ipvs.scheduler: must be text, not a list"),
        ("ipvs: {syncPeriod: 30}", "ipvs.syncPeriod: must be text, not a whole number"),
        ("ipvs: {excludeCIDRs: 10.0.0.0/8}", "ipvs.excludeCIDRs: must be a list, not text"),
        ("ipvs: {excludeCIDRs: [10.0.0.0/8, 7]}", "ipvs.excludeCIDRs: element 1 must be text, not a whole number"),
        ("ipvs: {strictARP: 'true'}", "ipvs.strictARP: must be true or false, not text"),
        ("iptables: {masqueradeBit: 14.5}", "iptables.masqueradeBit: must be a whole number, not a number"),
        ("iptables: {masqueradeBit: true}", "iptables.masqueradeBit: must be a whole number, not true or false"),
        ("iptables: {masqueradeBit: 32}", "iptables.masqueradeBit: 32 is not between 0 and 31"),
        ("clusterCIDR: 10.244.0.0", "clusterCIDR: '10.244.0.0' is not a CIDR such as 10.244.0.0/16"),
        ("clusterCIDR: 10.244.0.0/255.255.0.0", "clusterCIDR: '10.244.0.0/255.255.0.0' is not a CIDR"),
        ("clusterCIDR: '10.0.0.0/8, fd00::/8'", "clusterCIDR: ' fd00::/8' is not a CIDR"),
        ("metricsBindAddress: 1.2.3.4:http", "metricsBindAddress: 'http' is not a port"),
        ("metricsBindAddress: 1.2.3.4:0", "metricsBindAddress: '0' is not a port"),
        ("healthzBindAddress: localhost:80", "healthzBindAddress: 'localhost:80' is neither an IP address"),
        ("bindAddress: '[::]'", "bindAddress: '[::]' is not an IP address"),
        (f"ipvs: {{tcpTimeout: {'9' * 400}h}}", "ipvs.tcpTimeout: a duration is at most 292 years"),
    ],
)
def test_wrong_type_or_value_is_one_fault_with_the_field_path(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(SettingsError) as caught:
        effective({}, read_file(write(tmp_path, text))[0])
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"KubeProxyConfiguration.{fault}")


def test_settings_without_effect_are_named_once_when_they_are_set(tmp_path: Path) -> None:
    text = """
iptables: {localhostNodePorts: false, syncPeriod: 30s}
winkernel: {enableDSR: true, sourceVip: ""}
nftables: {}
featureGates: {A: true}
clientConnection: {qps: 50, burst: 0}
logging: {options: {text: {infoBufferSize: "0"}}, flushFrequency: 0}
"""
    settings = effective({}, read_file(write(tmp_path, text))[0])
    assert settings.notes == (
        (
            "settings_without_effect",
            {
                "settings": [
                    f"{KIND}.featureGates",
                    f"{KIND}.clientConnection.qps",
                    f"{KIND}.iptables.localhostNodePorts",
                    f"{KIND}.winkernel.enableDSR",
                    f"{KIND}.logging.options",
                ]
            },
        ),
    )


def test_flags_without_effect_are_accepted_and_named(tmp_path: Path) -> None:
    notes = effective({"clientconnection_qps": "7", "logging_vmodule": "x=4"}).notes
    assert notes == (("settings_without_effect", {"settings": ["--kube-api-qps", "--vmodule"]}),)


def test_what_has_no_effect_may_be_of_any_type(tmp_path: Path) -> None:
    text = "logging: {vmodule: [{filePattern: proxier, verbosity: 5}]}"
    notes = effective({}, read_file(write(tmp_path, text))[0]).notes
    assert notes == (("settings_without_effect", {"settings": [f"{KIND}.logging.vmodule"]}),)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("conntrack: {maxPerCore: -1}", "conntrack.maxPerCore: -1 is not between 0 and"),
        ("conntrack: {udpTimeout: -1s}", "conntrack.udpTimeout: '-1s' is not a duration"),
        ("oomScoreAdj: 1001", "oomScoreAdj: 1001 is not between -1000 and 1000"),
        ("featureGates: {A: maybe}", "featureGates: 'maybe' is neither true nor false"),
        ("featureGates: [A]", "featureGates: must be a mapping, not a list"),
        ("clientConnection: {qps: many}", "clientConnection.qps: 'many' is not a number of 0 or more"),
        ("enableProfiling: 1", "enableProfiling: must be true or false, not a whole number"),
    ],
)
def test_values_are_checked_also_where_they_have_no_effect(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(SettingsError) as caught:
        effective({}, read_file(write(tmp_path, text))[0])
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{KIND}.{fault}")


def test_own_settings_are_a_second_document_that_flags_outrank(tmp_path: Path) -> None:
    text = f"ipvs: {{scheduler: lc}}\n---\n{OWN_HEAD}drainTimeout: 5m\ncompatibility: kube-proxy\nmagic: 1\n"
    fields, notes = read_file(write(tmp_path, text))
    settings = effective({}, fields)
    assert (settings.scheduler, settings.drain_timeout, settings.compatible) == ("lc", 300.0, True)
    assert effective({"drain_timeout": "1m"}, fields).drain_timeout == 60.0
    assert notes == [("config_decoded_leniently", {"unknown": ["IpvsProxyConfiguration.magic"], "duplicate": []})]


def test_timeouts_of_tracked_connections_may_be_left_to_the_kernel(tmp_path: Path) -> None:
    fields, _ = read_file(write(tmp_path, "conntrack: {tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: null}\n"))
    settings = effective({}, fields)
    assert (settings.conntrack_tcp_established, settings.conntrack_tcp_close_wait) == (0.0, 3600.0)


@pytest.mark.parametrize(
    ("flags", "healthz", "metrics"),
    [
        ({"healthz_port": "99", "metrics_port": "98"}, "0.0.0.0:99", "127.0.0.1:98"),
        ({"healthz_port": "0"}, "", "127.0.0.1:10249"),
        ({"healthz_port": "99", "healthz_bind_address": "127.0.0.1:1"}, "127.0.0.1:1", "127.0.0.1:10249"),
    ],
)
def test_deprecated_ports_count_where_an_address_has_none(flags: dict[str, str], healthz: str, metrics: str) -> None:
    settings = effective(flags)
    assert (settings.healthz_bind_address, settings.metrics_bind_address) == (healthz, metrics)


def test_deprecated_ports_do_not_count_beside_a_file(tmp_path: Path) -> None:
    fields, _ = read_file(write(tmp_path, ""))
    assert effective({"healthz_port": "99"}, fields).healthz_bind_address == "0.0.0.0:10256"


def test_restriction_for_one_family_of_two_is_told(tmp_path: Path) -> None:
    flags = {"cluster_cidrs": "10.0.0.0/8,fd00::/8", "node_port_addresses": "192.0.2.0/24"}
    ((event, fields),) = effective(flags).notes
    assert event == "configuration_may_be_incomplete"
    assert "no CIDR of IPv6" in fields["hint"]


def test_json_with_tabs_is_read_and_its_duplicates_are_named(tmp_path: Path) -> None:
    text = (
        '{\n\t"kind": "KubeProxyConfiguration",\n\t"apiVersion": "kubeproxy.config.k8s.io/v1alpha1",\n'
        '\t"ipvs": {"scheduler": "lc", "scheduler": "sh"}\n}'
    )
    fields, notes = read_file(write(tmp_path, text, head=""))
    assert fields == {f"{KIND}.ipvs.scheduler": "sh"}
    assert notes == [("config_decoded_leniently", {"unknown": [], "duplicate": ["scheduler"]})]


@pytest.mark.parametrize("word", ["true", "True", "t", "1"])
def test_switches_are_written_as_in_go(word: str) -> None:
    assert effective({"masquerade_all": word}).masquerade_all is True


def test_host_without_a_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "")
    with pytest.raises(SettingsError, match="the name of the node is blank"):
        effective({})


def test_other_modes_are_told_to_have_no_effect() -> None:
    assert effective({"mode": "nftables"}).notes[0][0] == "mode_ignored"


def test_every_row_reads_its_own_default() -> None:
    for setting in SETTINGS:
        setting.kind.read(setting.default)


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        ({"node_port_addresses": "192.0.2.0/24,fd00::/16"}, "node_port_addresses", 2),
        ({"node_port_addresses": ["192.0.2.0/24", "fd00::/16"]}, "node_port_addresses", 2),
        ({"node_port_addresses": ["primary"]}, "node_port_addresses", "primary"),
        ({"compatible": "kube-proxy"}, "compatible", True),
        ({"detect_local_mode": "NodeCIDR"}, "detect_local_mode", "NodeCIDR"),
        ({}, "detect_local_mode", "ClusterCIDR"),
        (
            {"detect_local_mode": "InterfaceNamePrefix", "interface_name_prefix": "veth"},
            "interface_name_prefix",
            "veth",
        ),
    ],
)
def test_node_ports_and_local_pods(flags: dict[str, object], name: str, value: object) -> None:
    found = getattr(effective(flags | {"hostname_override": "n"}), name)
    assert (len(found) if isinstance(value, int) and not isinstance(value, bool) else found) == value


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        ({"node_port_addresses": ["primary", "secondary"]}, "--nodeport-addresses: 'secondary' is not a CIDR"),
        ({"compatible": "calico"}, "--compat: 'calico' is not kube-proxy"),
        ({"detect_local_mode": "Guess"}, "--detect-local-mode: "),
        (
            {"detect_local_mode": "BridgeInterface"},
            "detectLocal.bridgeInterface: detectLocalMode BridgeInterface needs it",
        ),
        ({"bridge_interface": "a/b"}, "--pod-bridge-interface: 'a/b' is not the name or prefix of a network interface"),
    ],
)
def test_faults_of_node_ports_and_local_pods(flags: dict[str, object], fault: str) -> None:
    with pytest.raises(SettingsError) as caught:
        effective(flags | {"hostname_override": "n"})
    assert fault in str(caught.value)
