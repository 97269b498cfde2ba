"""What the operator can set: one table from which flags, the file's fields, defaults and checks derive.

Names, defaults and precedence are kube-proxy's: a ``--config`` file replaces every flag that is bound to one of its
fields, except the named few. A row of ``SETTINGS_BY_GROUP`` is all that a further field needs.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

from ipvs_proxy.agent.settings_values import (
    ADDRESS,
    CLUSTER_NETWORKS,
    DIRECTORY,
    DURATION,
    INTERFACE,
    NETWORKS,
    NODE_PORT_ADDRESSES,
    SWITCH,
    TEXT,
    Kind,
    Network,
    bind_address,
    compatibility,
    duration_or,
    one_of,
    whole_number,
)
from ipvs_proxy.plan.node_addresses import NodePortAddresses

DETECT_LOCAL_MODES: Final = ("ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix")

PREFIX: Final = "KubeProxyConfiguration"
ANY_IPV4: Final = "0.0.0.0"  # noqa: S104  kube-proxy's default


class SettingsError(Exception):
    """Settings that cannot be used: one line for each fault, with the field or flag."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The effective settings. Durations are seconds; a timeout of 0 leaves the kernel's alone."""

    node_name: str
    kubeconfig: str = ""
    master: str = ""
    cluster_cidrs: tuple[Network, ...] = ()
    detect_local_mode: str = "ClusterCIDR"
    bridge_interface: str = ""
    interface_name_prefix: str = ""
    node_port_addresses: NodePortAddresses = ()
    bind_address: str = ANY_IPV4
    compatible: bool = False
    scheduler: str = "rr"
    sync_period: float = 30.0
    min_sync_period: float = 0.0
    exclude_cidrs: tuple[Network, ...] = ()
    strict_arp: bool = False
    tcp_timeout: float = 0.0
    tcp_fin_timeout: float = 0.0
    udp_timeout: float = 0.0
    masquerade_all: bool = False
    masquerade_bit: int = 14
    healthz_bind_address: str = "0.0.0.0:10256"
    metrics_bind_address: str = "127.0.0.1:10249"
    verbosity: int = 0
    logging_format: str = "auto"
    manifests: Path | None = None
    drain_timeout: float = 3600.0
    #: What the operator should be told once: event name and fields.
    notes: tuple[tuple[str, dict[str, Any]], ...] = ()


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table.

    ``field`` is where it is in the file (empty: flag only), ``default`` is written as a flag's value is, and
    ``file_default`` where a file has another one. ``outranks_file`` is for the flags that count although there is a
    file.
    """

    name: str
    field: str
    flag: str
    kind: Kind
    default: str
    help: str
    outranks_file: bool = False
    file_default: str | None = None


# fmt: off
SETTINGS_BY_GROUP: Final[Mapping[str, tuple[Setting, ...]]] = {
    "Where the objects come from": (
        Setting("kubeconfig", "clientConnection.kubeconfig", "--kubeconfig", TEXT, "",
                "How to reach the API server; without it, the pod's service account"),
        Setting("master", "", "--master", TEXT, "",
                "Address of the API server, instead of the kubeconfig's", outranks_file=True),
        Setting("manifests", "", "--manifests", DIRECTORY, "",
                "Read objects from the YAML and JSON files of this directory", outranks_file=True),
        Setting("hostname_override", "hostnameOverride", "--hostname-override", TEXT, "",
                "Name of this node; without it, the host's name", outranks_file=True),
    ),
    "Balancing": (
        Setting("scheduler", "ipvs.scheduler", "--ipvs-scheduler", TEXT, "rr",
                "Scheduler of the kernel: rr, lc, sh, wrr, wlc, mh, ..."),
        Setting("sync_period", "ipvs.syncPeriod", "--ipvs-sync-period", Kind("DURATION", duration_or(30.0)), "30s",
                "How often the kernel is compared with what it should hold"),
        Setting("min_sync_period", "ipvs.minSyncPeriod", "--ipvs-min-sync-period", DURATION, "1s",
                "Pause between two rounds of changes", file_default="0s"),
        Setting("drain_timeout", "", "--drain-timeout", DURATION, "1h",
                "When a removed endpoint loses its last connections; 0s: never", outranks_file=True),
        Setting("node_port_addresses", "nodePortAddresses", "--nodeport-addresses", NODE_PORT_ADDRESSES, "",
                "Serve node ports only on addresses of these CIDRs, or 'primary': on the node IPs"),
        Setting("exclude_cidrs", "ipvs.excludeCIDRs", "--ipvs-exclude-cidrs", NETWORKS, "",
                "Virtual servers with these addresses are never deleted"),
        Setting("strict_arp", "ipvs.strictARP", "--ipvs-strict-arp", SWITCH, "false",
                "Set arp_ignore to 1 and arp_announce to 2"),
        Setting("tcp_timeout", "ipvs.tcpTimeout", "--ipvs-tcp-timeout", DURATION, "0s",
                "IPVS timeout of idle TCP connections; 0s: the kernel's"),
        Setting("tcp_fin_timeout", "ipvs.tcpFinTimeout", "--ipvs-tcpfin-timeout", DURATION, "0s",
                "IPVS timeout of TCP connections after a FIN; 0s: the kernel's"),
        Setting("udp_timeout", "ipvs.udpTimeout", "--ipvs-udp-timeout", DURATION, "0s",
                "IPVS timeout of UDP packets; 0s: the kernel's"),
    ),
    "Masquerading": (
        Setting("cluster_cidrs", "clusterCIDR", "--cluster-cidr", CLUSTER_NETWORKS, "",
                "CIDR of the pods, or one for each family; the rest is masqueraded"),
        Setting("detect_local_mode", "detectLocalMode", "--detect-local-mode",
                Kind("MODE", one_of("", *DETECT_LOCAL_MODES)), "", "How to tell the cluster's pods from other clients: "
                "ClusterCIDR (the default), NodeCIDR, BridgeInterface or InterfaceNamePrefix"),
        Setting("bridge_interface", "detectLocal.bridgeInterface", "--pod-bridge-interface", INTERFACE, "",
                "The bridge that local pods are on, with BridgeInterface"),
        Setting("interface_name_prefix", "detectLocal.interfaceNamePrefix", "--pod-interface-name-prefix", INTERFACE,
                "", "How the names of local pods' interfaces begin, with InterfaceNamePrefix"),
        Setting("masquerade_all", "iptables.masqueradeAll", "--masquerade-all", SWITCH, "false",
                "Masquerade all traffic to cluster IPs"),
        Setting("masquerade_bit", "iptables.masqueradeBit", "--iptables-masquerade-bit",
                Kind("BIT", whole_number(0, 31), int), "14", "Bit of the packet mark that asks for masquerading"),
    ),
    "Health and metrics": (
        Setting("healthz_bind_address", "healthzBindAddress", "--healthz-bind-address",
                Kind("IP[:PORT]", bind_address(10256)), "",
                f"Where /healthz and /livez are served (default {ANY_IPV4}:10256)"),
        Setting("metrics_bind_address", "metricsBindAddress", "--metrics-bind-address",
                Kind("IP[:PORT]", bind_address(10249)), "", "Where /metrics is served (default 127.0.0.1:10249)"),
        Setting("bind_address", "bindAddress", "--bind-address", ADDRESS, ANY_IPV4,
                "Address of this node, instead of the Node's; its family is that of the two defaults above"),
    ),
    "Logs": (
        Setting("verbosity", "logging.verbosity", "--v", Kind("NUMBER", whole_number(0, 100), int), "0",
                "Log verbosity; from 4 on also debug events", outranks_file=True),
        Setting("logging_format", "logging.format", "--logging-format", Kind("FORMAT", one_of("auto", "text", "json")),
                "auto", "text, json, or auto: text on a terminal, else json", outranks_file=True),
    ),
    "Compatibility": (
        Setting("compatible", "", "--compat", Kind("kube-proxy", compatibility), "",
                "Behave as kube-proxy does: one list of endpoints for all clients, also where a policy is Local",
                outranks_file=True),
        Setting("mode", "mode", "--proxy-mode", Kind("MODE", one_of("", "ipvs", "iptables", "nftables")), "",
                "Accepted as kube-proxy's, and always ipvs"),
    ),
}
# fmt: on
SETTINGS: Final = tuple(chain.from_iterable(SETTINGS_BY_GROUP.values()))


def effective(flags: Mapping[str, Any], file: Mapping[str, Any] | None = None) -> Settings:
    """Merge flags with the fields of a file, and check everything.

    ``flags`` are those that were given, by the setting's name; ``file`` has its fields by dotted path. Raises
    SettingsError with one line for each fault.
    """
    values: dict[str, Any] = {}
    faults: list[str] = []
    ignored: list[str] = []
    for setting in SETTINGS:
        if file is not None and setting.field and not setting.outranks_file and setting.name in flags:
            ignored.append(setting.flag)
        where, read, raw = _source(setting, flags, file)
        try:
            values[setting.name] = read(raw)
        except ValueError as error:
            faults.append(f"{where}: {error}")
    return _finish(values, faults, ignored)


def _source(setting: Setting, flags: Mapping[str, Any], file: Mapping[str, Any] | None) -> tuple[str, Any, Any]:
    """Choose where a setting comes from: its name there, its reader, and what it reads.

    Empty text and null are "not set", as kube-proxy takes them.
    """
    if setting.name in flags and (file is None or not setting.field or setting.outranks_file):
        raw = flags[setting.name]
        return setting.flag, setting.kind.read, setting.default if raw == "" else raw
    if file is None or not setting.field:
        return setting.flag, setting.kind.read, setting.default
    where, raw = f"{PREFIX}.{setting.field}", file.get(setting.field)
    if raw in ("", None):
        default = setting.default if setting.file_default is None else setting.file_default
        return where, setting.kind.read, default
    return where, setting.kind.read_from_file, raw


def _finish(values: dict[str, Any], faults: list[str], ignored: list[str]) -> Settings:
    """Resolve what depends on more than one setting."""
    override = str(values.pop("hostname_override", ""))
    node_name = (override or socket.gethostname()).strip().lower()
    if not node_name:
        faults.append("--hostname-override: the name of the node is blank")
    if values.get("min_sync_period", 0.0) > values.get("sync_period", 30.0):
        faults.append(f"{PREFIX}.ipvs.syncPeriod: shorter than ipvs.minSyncPeriod ({values['min_sync_period']:g}s)")
    values["detect_local_mode"] = values.get("detect_local_mode") or "ClusterCIDR"
    faults += _local_faults(values)
    if faults:
        raise SettingsError("\n".join(faults))
    notes: list[tuple[str, dict[str, Any]]] = []
    if ignored:
        notes.append(("flags_ignored", {"flags": ignored, "reason": "--config is given, its file replaces them"}))
    mode = values.pop("mode")
    if mode not in {"", "ipvs"}:
        notes.append(("mode_ignored", {"mode": mode, "reason": "ipvs-proxy always uses IPVS"}))
    any_host, loopback = ("[::]", "[::1]") if ":" in values["bind_address"] else (ANY_IPV4, "127.0.0.1")
    values["healthz_bind_address"] = values["healthz_bind_address"] or f"{any_host}:10256"
    values["metrics_bind_address"] = values["metrics_bind_address"] or f"{loopback}:10249"
    return Settings(node_name=node_name, notes=tuple(notes), **values)


def _local_faults(values: Mapping[str, Any]) -> list[str]:
    """Say what the chosen way of telling local pods lacks."""
    needed = {
        "BridgeInterface": ("bridge_interface", "detectLocal.bridgeInterface"),
        "InterfaceNamePrefix": ("interface_name_prefix", "detectLocal.interfaceNamePrefix"),
    }.get(values["detect_local_mode"])
    if needed is None or values.get(needed[0]):
        return []
    return [f"{PREFIX}.{needed[1]}: detectLocalMode {values['detect_local_mode']} needs it"]
