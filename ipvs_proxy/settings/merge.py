"""The effective settings: flags and the fields of a file, merged and checked.

Precedence is kube-proxy's: a ``--config`` file replaces every flag that is bound to one of its fields, except the named
few. ``settings_table`` says what there is.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from ipvs_proxy.kube.texts import quote
from ipvs_proxy.plan.node_addresses import PRIMARY, NodePortAddresses
from ipvs_proxy.settings.table import ANY_IPV4, KUBE_PROXY, SETTINGS, Setting
from ipvs_proxy.settings.values import GATES, Network, ServiceMetrics, refuse_control_characters


class SettingsError(Exception):
    """Settings that cannot be used: one line for each fault, with the field or flag."""


#: What kubeadm writes for fields that nobody set; the last two are ``logging.options``, before 1.29 and since.
_NOT_SET: Final[tuple[object, ...]] = (
    *(None, "", [], {}, 0, "0s"),
    {"json": {"infoBufferSize": "0"}},
    {"json": {"infoBufferSize": "0"}, "text": {"infoBufferSize": "0"}},
)
#: Characters of what is wrong with a value.
_LONGEST_FAULT: Final = 400
#: The one feature gate that means something here.
EXTERNAL_IPS_GATE: Final = "AllowServiceExternalIPs"


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
    feature_gates: Mapping[str, bool] = field(default_factory=dict)
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
    service_metrics: ServiceMetrics = ServiceMetrics.OFF
    expose_state: bool = False
    bind_address_hard_fail: bool = False
    oom_score_adj: int = -999
    conntrack_max_per_core: int = 32768
    conntrack_min: int = 131072
    conntrack_tcp_established: float = 86400.0
    conntrack_tcp_close_wait: float = 3600.0
    conntrack_tcp_be_liberal: bool = False
    conntrack_udp: float = 0.0
    conntrack_udp_stream: float = 0.0
    #: What the operator should be told once: event name and fields.
    notes: tuple[tuple[str, dict[str, Any]], ...] = ()
    #: Every setting as a file has it, by its path there; also those without effect.
    fields: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def external_ips(self) -> bool:
        """Whether ``externalIPs`` of Services are served."""
        return self.feature_gates.get(EXTERNAL_IPS_GATE, True)


def effective(flags: Mapping[str, Any], file: Mapping[str, Any] | None = None) -> Settings:
    """Merge flags with the fields of a file, and check everything.

    ``flags`` are those that were given, by the setting's name; ``file`` has its fields by path. Raises SettingsError
    with one line for each fault.
    """
    values: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    faults: list[str] = []
    ignored: list[str] = []
    unused: list[str] = []
    for setting in SETTINGS:
        if file is not None and setting.field and not setting.outranks_file and setting.name in flags:
            ignored.append(setting.flag)
        where, read, raw = _source(setting, flags, file)
        try:
            refuse_control_characters(raw)
            value = read(raw)
        except ValueError as error:
            faults.append(f"{where}: {quote(str(error), _LONGEST_FAULT)}")
            continue
        if setting.field:
            fields[setting.path] = setting.kind.show(value)
        if not setting.without_effect:
            values[setting.name] = value
        elif value != setting.kind.read(setting.default) and (value is False or value not in _NOT_SET):
            unused.append(where)
        if setting.kind is GATES and value.keys() - {EXTERNAL_IPS_GATE}:
            unused.append(where)
    if file is not None:
        for name in ("healthz_port", "metrics_port"):
            values.pop(name, None)
    settings = _finish(values, fields, faults)
    notes: list[tuple[str, dict[str, Any]]] = []
    if ignored:
        notes.append(("flags_ignored", {"flags": ignored, "reason": "--config is given, its file replaces them"}))
    if unused:
        notes.append(("settings_without_effect", {"settings": unused}))
    return replace(settings, notes=(*notes, *settings.notes))


def _source(setting: Setting, flags: Mapping[str, Any], file: Mapping[str, Any] | None) -> tuple[str, Any, Any]:
    """Choose where a setting comes from: its name there, its reader, and what it reads.

    Empty text and null are "not set", as kube-proxy takes them.
    """
    if setting.name in flags and (file is None or not setting.field or setting.outranks_file):
        raw = flags[setting.name]
        return setting.flag, setting.kind.read, setting.default if raw == "" else raw
    if file is None or not setting.field:
        return setting.flag or setting.path, setting.kind.read, setting.default
    raw = file.get(setting.path)
    if raw in ("", None):
        default = setting.default if setting.file_default is None else setting.file_default
        return setting.path, setting.kind.read, default
    return setting.path, setting.kind.read_from_file, raw


def _finish(values: dict[str, Any], fields: dict[str, Any], faults: list[str]) -> Settings:
    """Resolve what depends on more than one setting; raise for all faults together."""
    override = str(values.pop("hostname_override", ""))
    node_name = (override or socket.gethostname()).strip().lower()
    if not node_name:
        faults.append("--hostname-override: the name of the node is blank")
    if values.get("min_sync_period", 0.0) > values.get("sync_period", 30.0):
        faults.append(
            f"{KUBE_PROXY.kind}.ipvs.syncPeriod: shorter than ipvs.minSyncPeriod ({values['min_sync_period']:g}s)"
        )
    values["detect_local_mode"] = values.get("detect_local_mode") or "ClusterCIDR"
    faults += _local_faults(values)
    if faults:
        raise SettingsError("\n".join(faults))
    told = _note_on_mode(values.pop("mode")), _note_on_families(values), _note_on_localhost(values)
    notes = [note for note in told if note is not None]
    _choose_addresses(values)
    fields |= {
        f"{KUBE_PROXY.kind}.{name}": value
        for name, value in (
            ("mode", "ipvs"),
            ("hostnameOverride", override),
            ("detectLocalMode", values["detect_local_mode"]),
            ("healthzBindAddress", values["healthz_bind_address"]),
            ("metricsBindAddress", values["metrics_bind_address"]),
        )
    }
    return Settings(node_name=node_name, notes=tuple(notes), fields=fields, **values)


def _choose_addresses(values: dict[str, Any]) -> None:
    """Return the two servers their addresses: of the family of the node's, with the ports of the deprecated flags."""
    any_host, loopback = ("[::]", "[::1]") if ":" in values["bind_address"] else (ANY_IPV4, "127.0.0.1")
    healthz_port, metrics_port = values.pop("healthz_port", 10256), values.pop("metrics_port", 10249)
    values["healthz_bind_address"] = values["healthz_bind_address"] or f"{any_host}:{healthz_port}"
    values["metrics_bind_address"] = values["metrics_bind_address"] or f"{loopback}:{metrics_port}"
    if not healthz_port:
        values["healthz_bind_address"] = ""


def _note_on_mode(mode: str) -> tuple[str, dict[str, Any]] | None:
    if mode in {"", "ipvs"}:
        return None
    return "mode_ignored", {"mode": mode, "reason": "ipvs-proxy always uses IPVS"}


def _note_on_families(values: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Say what looks forgotten: a restriction for one family where the configuration is for both."""
    cluster = {network.version for network in values["cluster_cidrs"]}
    node_ports = values["node_port_addresses"]
    if PRIMARY in node_ports or not node_ports or len(cluster) < 2:
        return None
    missing = cluster - {network.version for network in node_ports}
    if not missing:
        return None
    hint = f"nodePortAddresses has no CIDR of IPv{missing.pop()}: node ports of that family are served on all addresses"
    return "configuration_may_be_incomplete", {"hint": hint}


def _note_on_localhost(values: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Say that IPVS cannot serve node ports on loopback addresses: answers to them are not routed."""
    loopback = [str(one) for one in values["node_port_addresses"] if not isinstance(one, str) and one.is_loopback]
    if isinstance(values["node_port_addresses"], str) or not loopback:
        return None
    reason = "IPVS cannot serve node ports on loopback addresses; connect to an address of the node instead"
    return "node_port_addresses_not_served", {"addresses": loopback, "reason": reason}


def _local_faults(values: Mapping[str, Any]) -> list[str]:
    """Say what the chosen way of telling local pods lacks."""
    needed = {
        "BridgeInterface": ("bridge_interface", "detectLocal.bridgeInterface"),
        "InterfaceNamePrefix": ("interface_name_prefix", "detectLocal.interfaceNamePrefix"),
    }.get(values["detect_local_mode"])
    if needed is None or values.get(needed[0]):
        return []
    return [f"{KUBE_PROXY.kind}.{needed[1]}: detectLocalMode {values['detect_local_mode']} needs it"]
