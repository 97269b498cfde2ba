"""Merges flags with the fields of a file into the effective settings, and checks them.

Precedence is kube-proxy's: where a file is given, it replaces every flag that is bound to one of its fields, except the
few that outrank it. All faults are reported together. Each value is read by the kind in its row; what depends on more
than one setting is resolved afterwards, on ``Settings``.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from ipvs_proxy.kube.texts import quote
from ipvs_proxy.plan.node_addresses import PRIMARY
from ipvs_proxy.settings.model import (
    ANY_IPV4,
    EXTERNAL_IPS_GATE,
    HEALTHZ_PORT,
    HEALTHZ_PORT_BESIDE,
    METRICS_PORT,
    METRICS_PORT_BESIDE,
    Note,
    Settings,
    SettingsError,
)
from ipvs_proxy.settings.row import KUBE_PROXY, Group, Setting
from ipvs_proxy.settings.table import SETTINGS
from ipvs_proxy.settings.values import GATES, SWITCH, refuse_control_characters

#: What kubeadm writes for fields that nobody set; the last two are ``logging.options``, before 1.29 and since.
_NOT_SET: Final[tuple[object, ...]] = (
    *(None, "", [], {}, 0, "0s"),
    {"json": {"infoBufferSize": "0"}},
    {"json": {"infoBufferSize": "0"}, "text": {"infoBufferSize": "0"}},
)
#: Characters of what is wrong with a value.
_LONGEST_FAULT: Final = 400
#: The deprecated flags that mean nothing beside a file.
_PORTS: Final = ("healthz_port", "metrics_port")


@dataclass(slots=True)
class _Reading:
    """What was read, setting by setting.

    ``values`` are by the setting's name and ``fields`` by the path in a file; ``written`` are the names of the settings
    that a flag or the file sets. The rest is what to tell: flags that the file replaces (``ignored``), flags and fields
    without effect (``unused``), and ``faults``.
    """

    values: dict[str, object] = field(default_factory=dict)
    fields: dict[str, object] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    ignored: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def effective(flags: Mapping[str, object], file: Mapping[str, object] | None = None) -> Settings:
    """Return the effective settings of the flags that were given, by name, and the fields of a file, by path.

    Raises:
        SettingsError: with one line for each fault.

    """
    reading = _Reading()
    for setting in SETTINGS:
        _read(setting, flags, file, reading)
    values = {name: value for name, value in reading.values.items() if file is None or name not in _PORTS}
    # Each was read by the kind of its field's row, whose type mypy compares with the field's.
    found = Settings("", **values)  # type: ignore[arg-type]
    node_name = (found.hostname_override or socket.gethostname()).strip().lower()
    faults = [*reading.faults, *_faults(found, node_name, reading.values.keys())]
    if faults:
        raise SettingsError("\n".join(faults))
    found = replace(found, node_name=node_name)
    beside = _beside_kube_proxy(found, reading.written)
    # As above: each value was read by the setting's own kind.
    found = replace(found, **{setting.name: value for setting, value in beside})  # type: ignore[arg-type]
    found = _with_addresses(found, reading.written)
    fields = {
        **{setting.path: setting.kind.show(value) for setting, value in beside if setting.field},
        f"{KUBE_PROXY.kind}.mode": "ipvs",
        f"{KUBE_PROXY.kind}.healthzBindAddress": found.healthz_bind_address,
        f"{KUBE_PROXY.kind}.metricsBindAddress": found.metrics_bind_address,
    }
    return replace(found, mode="ipvs", notes=tuple(_notes(found, reading)), fields=reading.fields | fields)


class _Source(NamedTuple):
    """Where a setting comes from: its name there, what is written, its reader, and the default if nothing is."""

    where: str
    raw: object
    read: Callable[[object], object]
    default: str


def _read(setting: Setting, flags: Mapping[str, object], file: Mapping[str, object] | None, reading: _Reading) -> None:
    """Read one setting from where it counts, and take down what there is to tell of it."""
    is_replaced = file is not None and bool(setting.field) and not setting.outranks_file
    if is_replaced and setting.name in flags:
        reading.ignored.append(setting.flag)
    where, raw, read, default = _source(setting, {} if is_replaced else flags, file)
    # kube-proxy takes null and empty text for "not set".
    is_written = raw not in (None, "")
    try:
        refuse_control_characters(raw)
        value = read(raw if is_written else default)
    except ValueError as error:
        reading.faults.append(f"{where}: {quote(str(error), _LONGEST_FAULT)}")
        return
    if setting.zero_is_default and value == 0:
        value = setting.kind.read(default)
    if is_written:
        reading.written.add(setting.name)
    if setting.field:
        reading.fields[setting.path] = setting.kind.show(value)
    if not setting.without_effect:
        reading.values[setting.name] = value
    if _is_unused(setting, value):
        reading.unused.append(where)


def _source(setting: Setting, flags: Mapping[str, object], file: Mapping[str, object] | None) -> _Source:
    """Return where a setting comes from: ``flags`` are those that count."""
    if setting.name in flags:
        return _Source(setting.flag, flags[setting.name], setting.kind.read, setting.default)
    if file is None or not setting.field:
        return _Source(setting.flag or setting.path, None, setting.kind.read, setting.default)
    raw = file.get(setting.path)
    if raw in (None, ""):
        default = setting.default if setting.file_default is None else setting.file_default
        return _Source(setting.path, None, setting.kind.read, default)
    return _Source(setting.path, raw, setting.kind.read_from_file, setting.default)


def _is_unused(setting: Setting, value: object) -> bool:
    """Return whether a value is set and has no effect."""
    if setting.kind is GATES:
        return isinstance(value, Mapping) and bool(value.keys() - {EXTERNAL_IPS_GATE})
    if not setting.without_effect or value == setting.kind.read(setting.default):
        return False
    return value is False or value not in _NOT_SET


def _faults(found: Settings, node_name: str, read: Collection[str]) -> Iterator[str]:
    """Yield what is wrong with settings together; ``read`` are the names of those that could be read."""
    if not node_name:
        yield "--hostname-override: the name of the node is blank"
    if found.min_sync_period > found.sync_period and {"min_sync_period", "sync_period"} <= set(read):
        yield f"{KUBE_PROXY.kind}.ipvs.syncPeriod: shorter than ipvs.minSyncPeriod ({found.min_sync_period:g}s)"
    match found.detect_local_mode:
        case "BridgeInterface" if not found.bridge_interface:
            yield f"{KUBE_PROXY.kind}.detectLocal.bridgeInterface: detectLocalMode BridgeInterface needs it"
        case "InterfaceNamePrefix" if not found.interface_name_prefix:
            yield f"{KUBE_PROXY.kind}.detectLocal.interfaceNamePrefix: detectLocalMode InterfaceNamePrefix needs it"


def _beside_kube_proxy(found: Settings, written: Collection[str]) -> list[tuple[Setting, object]]:
    """Return what is the default only where kube-proxy runs on the node too: other ports, and no limits of conntrack.

    Those limits are the kernel's, not one program's: kube-proxy sets them there.
    """
    if not found.service_proxy_name:
        return []
    kept: dict[str, object] = {"healthz_port": HEALTHZ_PORT_BESIDE, "metrics_port": METRICS_PORT_BESIDE}
    for setting in SETTINGS:
        if setting.group is Group.CONNECTION_TRACKING and not setting.without_effect:
            kept[setting.name] = setting.kind.read("false" if setting.kind is SWITCH else "0")
    return [(one, kept[one.name]) for one in SETTINGS if one.name in kept and one.name not in written]


def _with_addresses(found: Settings, written: Collection[str]) -> Settings:
    """Return the settings with the addresses of the two servers.

    Those that are not written are of the family of the bind address and have the ports of the deprecated flags.
    """
    is_ipv6 = ":" in found.bind_address
    healthz, metrics = found.healthz_bind_address, found.metrics_bind_address
    if "healthz_bind_address" not in written:
        healthz = f"{'[::]' if is_ipv6 else ANY_IPV4}:{found.healthz_port}"
    if "metrics_bind_address" not in written:
        metrics = f"{'[::1]' if is_ipv6 else '127.0.0.1'}:{found.metrics_port}"
    return replace(found, healthz_bind_address=healthz if found.healthz_port else "", metrics_bind_address=metrics)


def _notes(found: Settings, reading: _Reading) -> Iterator[Note]:
    if reading.ignored:
        reason = "--config is given, its file replaces them"
        yield Note("flags_ignored", {"flags": reading.ignored, "reason": reason})
    if reading.unused:
        yield Note("settings_without_effect", {"settings": reading.unused})
    if found.mode != "ipvs":
        yield Note("mode_ignored", {"mode": found.mode, "reason": "ipvs-proxy always uses IPVS"})
    if taken := _ports_of_kube_proxy(found):
        remedy = "set healthzBindAddress and metricsBindAddress (or the flags) to other ports than kube-proxy has"
        yield Note("ports_may_be_those_of_kube_proxy", {"addresses": taken, "remedy": remedy})
    if hint := _forgotten(found):
        yield Note("configuration_may_be_incomplete", {"hint": hint})
    if loopback := _loopback(found):
        reason = "IPVS cannot serve node ports on loopback addresses; connect to an address of the node instead"
        yield Note("node_port_addresses_not_served", {"addresses": loopback, "reason": reason})


def _ports_of_kube_proxy(found: Settings) -> list[str]:
    """Return the addresses that are configured with the ports which kube-proxy has, where that runs here too."""
    if not found.service_proxy_name:
        return []
    usual = ((found.healthz_bind_address, HEALTHZ_PORT), (found.metrics_bind_address, METRICS_PORT))
    return [address for address, port in usual if address.endswith(f":{port}")]


def _forgotten(found: Settings) -> str:
    """Say what looks forgotten: a restriction for one family where the configuration is for both."""
    families = {network.version for network in found.cluster_cidrs}
    node_ports = found.node_port_addresses
    if PRIMARY in node_ports or not node_ports or len(families) < 2:
        return ""
    missing = families - {network.version for network in node_ports if not isinstance(network, str)}
    if not missing:
        return ""
    return f"nodePortAddresses has no CIDR of IPv{missing.pop()}: node ports of that family are served on all addresses"


def _loopback(found: Settings) -> list[str]:
    """Return the loopback addresses that node ports are asked for on: answers from them are not routed."""
    return [str(one) for one in found.node_port_addresses if not isinstance(one, str) and one.is_loopback]
