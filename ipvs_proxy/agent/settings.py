"""What the operator can set: one table from which flags, the file's fields, defaults and checks derive.

Names, defaults and precedence are kube-proxy's: a ``--config`` file replaces every flag that is bound to one of its
fields, except the named few. A row of ``SETTINGS`` is all that a further field needs.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, Final

Network = IPv4Network | IPv6Network

_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_PREFIX: Final = "KubeProxyConfiguration"
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

    ``field`` is where it is in the file (empty: flag only), ``read`` makes a value of text or of what the file holds.
    ``outranks_file`` is for the flags that count although there is a file.
    """

    name: str
    field: str
    flag: str
    read: Callable[[Any], Any]
    default: Any
    help: str
    outranks_file: bool = False
    file_default: Any = None
    is_switch: bool = False


def duration(value: Any) -> float:
    """Read a duration as Go writes it (``1m30s``); 0 is a duration without a unit."""
    text = str(value).strip()
    if text == "0":
        return 0.0
    if not text or _DURATION.sub("", text):
        raise ValueError(f"{text!r} is no duration such as 30s or 1m30s")
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))


def networks(value: Any) -> tuple[Network, ...]:
    """Read CIDRs: a list, or text with commas."""
    parts = value if isinstance(value, list | tuple) else [part for part in str(value or "").split(",") if part]
    return tuple(ip_network(str(part), strict=False) for part in parts)


def cluster_networks(value: Any) -> tuple[Network, ...]:
    """Read ``clusterCIDR``: one CIDR, or one of each family."""
    found = networks(value)
    if len({network.version for network in found}) != len(found):
        raise ValueError(f"{value!r} has two CIDRs of one family; give one, or one for each family")
    return found


def whole_number(low: int, high: int) -> Callable[[Any], int]:
    """Make a reader of integers within bounds."""

    def read(value: Any) -> int:
        number = int(str(value))
        if not low <= number <= high:
            raise ValueError(f"{number} is not between {low} and {high}")
        return number

    return read


def switch(value: Any) -> bool:
    """Read a boolean of a file or of a flag."""
    if isinstance(value, bool):
        return value
    if str(value).lower() in {"true", "false"}:
        return str(value).lower() == "true"
    raise ValueError(f"{value!r} is neither true nor false")


def bind_address(port: int) -> Callable[[Any], str]:
    """Make a reader of ``IP`` or ``IP:port``; nothing stays nothing."""

    def read(value: Any) -> str:
        text = str(value)
        if not text:
            return ""
        host, _, number = text.rpartition(":")
        if not host or (text.count(":") > 1 and not text.startswith("[")):
            host, number = text, str(port)
        ip_address(host.strip("[]"))
        if not 1 <= int(number) <= 65535:
            raise ValueError(f"{number} is no port")
        host = host.strip("[]")
        return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"

    return read


def one_of(*choices: str) -> Callable[[Any], str]:
    """Make a reader of one of some words."""

    def read(value: Any) -> str:
        if str(value) not in choices:
            raise ValueError(f"{value!r} is none of {', '.join(repr(choice) for choice in choices)}")
        return str(value)

    return read


def positive_duration(value: Any) -> float:
    """Read a duration where 0 means the default, 30 s."""
    return duration(value) or 30.0


def any_address(value: Any) -> str:
    """Read an IP address."""
    return str(ip_address(str(value)))


def directory(value: Any) -> Path | None:
    """Read a path; nothing if it is empty."""
    return Path(value) if value else None


SETTINGS: Final = (
    Setting(
        "kubeconfig",
        "clientConnection.kubeconfig",
        "--kubeconfig",
        str,
        "",
        "How to reach the API server; without it, the pod's service account",
    ),
    Setting(
        "master", "", "--master", str, "", "Address of the API server, instead of the kubeconfig's", outranks_file=True
    ),
    Setting(
        "manifests",
        "",
        "--manifests",
        directory,
        "",
        "Read objects from the YAML and JSON files of this directory",
        outranks_file=True,
    ),
    Setting(
        "hostname_override",
        "hostnameOverride",
        "--hostname-override",
        str,
        "",
        "Name of this node; without it, the host's name",
        outranks_file=True,
    ),
    Setting(
        "cluster_cidrs",
        "clusterCIDR",
        "--cluster-cidr",
        cluster_networks,
        "",
        "CIDR of the pods, or one for each family; the rest is masqueraded",
    ),
    Setting(
        "scheduler",
        "ipvs.scheduler",
        "--ipvs-scheduler",
        str,
        "rr",
        "Scheduler of the kernel: rr, lc, sh, wrr, wlc, mh, ...",
    ),
    Setting(
        "sync_period",
        "ipvs.syncPeriod",
        "--ipvs-sync-period",
        positive_duration,
        "30s",
        "How often the kernel is compared with what it should hold",
    ),
    Setting(
        "min_sync_period",
        "ipvs.minSyncPeriod",
        "--ipvs-min-sync-period",
        duration,
        "1s",
        "Pause between two rounds of changes",
        file_default="0s",
    ),
    Setting(
        "exclude_cidrs",
        "ipvs.excludeCIDRs",
        "--ipvs-exclude-cidrs",
        networks,
        "",
        "Virtual servers with these addresses are never deleted",
    ),
    Setting(
        "strict_arp",
        "ipvs.strictARP",
        "--ipvs-strict-arp",
        switch,
        False,
        "Set arp_ignore to 1 and arp_announce to 2",
        is_switch=True,
    ),
    Setting(
        "tcp_timeout",
        "ipvs.tcpTimeout",
        "--ipvs-tcp-timeout",
        duration,
        "0s",
        "IPVS timeout of idle TCP connections; 0: the kernel's",
    ),
    Setting(
        "tcp_fin_timeout",
        "ipvs.tcpFinTimeout",
        "--ipvs-tcpfin-timeout",
        duration,
        "0s",
        "IPVS timeout of TCP connections after a FIN; 0: the kernel's",
    ),
    Setting(
        "udp_timeout",
        "ipvs.udpTimeout",
        "--ipvs-udp-timeout",
        duration,
        "0s",
        "IPVS timeout of UDP packets; 0: the kernel's",
    ),
    Setting(
        "masquerade_all",
        "iptables.masqueradeAll",
        "--masquerade-all",
        switch,
        False,
        "Masquerade all traffic to cluster IPs",
        is_switch=True,
    ),
    Setting(
        "masquerade_bit",
        "iptables.masqueradeBit",
        "--iptables-masquerade-bit",
        whole_number(0, 31),
        "14",
        "Bit of the packet mark that asks for masquerading",
    ),
    Setting(
        "bind_address",
        "bindAddress",
        "--bind-address",
        any_address,
        ANY_IPV4,
        "Its family is that of the default health and metrics addresses",
    ),
    Setting(
        "healthz_bind_address",
        "healthzBindAddress",
        "--healthz-bind-address",
        bind_address(10256),
        "",
        "Where /healthz and /livez are served (default 0.0.0.0:10256)",
    ),
    Setting(
        "metrics_bind_address",
        "metricsBindAddress",
        "--metrics-bind-address",
        bind_address(10249),
        "",
        "Where /metrics is served (default 127.0.0.1:10249)",
    ),
    Setting(
        "mode",
        "mode",
        "--proxy-mode",
        one_of("", "ipvs", "iptables", "nftables"),
        "",
        "Accepted for compatibility: always ipvs",
    ),
    Setting(
        "drain_timeout",
        "",
        "--drain-timeout",
        duration,
        "1h",
        "When a removed endpoint loses its last connections; 0s: never",
        outranks_file=True,
    ),
    Setting(
        "verbosity",
        "logging.verbosity",
        "--v",
        whole_number(0, 100),
        "0",
        "Log verbosity; from 4 on also debug events",
        outranks_file=True,
    ),
    Setting(
        "logging_format",
        "logging.format",
        "--logging-format",
        one_of("auto", "text", "json"),
        "auto",
        "text, json, or auto: text on a terminal, else json",
        outranks_file=True,
    ),
)


def effective(flags: Mapping[str, Any], file: Mapping[str, Any] | None = None) -> Settings:
    """Merge flags with the fields of a file, and check everything.

    ``flags`` are those that were given, by the setting's name; ``file`` has its fields by dotted path. Raises
    SettingsError with one line for each fault.
    """
    values: dict[str, Any] = {}
    faults: list[str] = []
    ignored: list[str] = []
    for setting in SETTINGS:
        raw, where = setting.default, setting.flag
        if file is not None and setting.field:
            raw = setting.default if setting.file_default is None else setting.file_default
            if setting.field in file:
                raw, where = file[setting.field], f"{_PREFIX}.{setting.field}"
        if setting.name in flags:
            if file is not None and setting.field and not setting.outranks_file:
                ignored.append(setting.flag)
            else:
                raw, where = flags[setting.name], setting.flag
        try:
            # An empty text is "not set", as kube-proxy takes it.
            values[setting.name] = setting.read(setting.default if raw in ("", None) else raw)
        except (ValueError, TypeError) as error:
            faults.append(f"{where}: {error}")
    return _finish(values, faults, ignored)


def _finish(values: dict[str, Any], faults: list[str], ignored: list[str]) -> Settings:
    """Resolve what depends on more than one setting."""
    override = str(values.pop("hostname_override", ""))
    if override and not override.strip():
        faults.append("--hostname-override: the name is blank")
    if values.get("min_sync_period", 0.0) > values.get("sync_period", 30.0):
        faults.append(f"{_PREFIX}.ipvs.syncPeriod: shorter than ipvs.minSyncPeriod ({values['min_sync_period']} s)")
    if faults:
        raise SettingsError("\n".join(faults))
    notes: list[tuple[str, dict[str, Any]]] = []
    if ignored:
        notes.append(("flags_ignored", {"flags": ignored, "reason": "--config is given, its file replaces them"}))
    mode = values.pop("mode")
    if mode not in {"", "ipvs"}:
        notes.append(("mode_ignored", {"mode": mode, "reason": "ipvs-proxy always uses IPVS"}))
    any_host, loopback = ("[::]", "[::1]") if ":" in values.pop("bind_address") else (ANY_IPV4, "127.0.0.1")
    values["healthz_bind_address"] = values["healthz_bind_address"] or f"{any_host}:10256"
    values["metrics_bind_address"] = values["metrics_bind_address"] or f"{loopback}:10249"
    node_name = (override or socket.gethostname()).strip().lower()
    return Settings(node_name=node_name, notes=tuple(notes), **values)
