"""The table of all settings: those of ``Settings``, and those of kube-proxy that mean nothing here.

The latter are accepted, so that kube-proxy's file and command line work as they are: their values are checked, and
those that are set are named in the log. Their names and defaults are those of Kubernetes 1.36.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from ipvs_proxy.settings.model import Settings
from ipvs_proxy.settings.row import ROW, Group, Setting
from ipvs_proxy.settings.values import ANYTHING, COUNT, DURATION, NUMBER, SWITCH, TEXT, Kind

_OTHER_MODE: Final = "IPVS is the only mode here"
_WINDOWS: Final = "Windows only"
_ONE_LOG: Final = "all lines go to standard error"
_AT_ONCE: Final = "every line is written at once"


def _used() -> tuple[Setting, ...]:
    """Return the rows of the fields of ``Settings``, with the names of the fields."""
    declared = ((field.name, field.metadata.get(ROW)) for field in dataclasses.fields(Settings))
    return tuple(dataclasses.replace(row, name=name) for name, row in declared if isinstance(row, Setting))


def _accepted(
    field: str, flag: str, kind: Kind[object], default: str, why: str, *, zero_is_default: bool = False
) -> Setting:
    """Return the row of a setting of kube-proxy that means nothing here."""
    return Setting(
        name=(field or flag.removeprefix("--")).replace(".", "_").replace("-", "_").lower(),
        group=Group.ACCEPTED,
        field=field,
        flag=flag,
        kind=kind,
        default=default,
        help=f"Accepted: {why}",
        zero_is_default=zero_is_default,
        without_effect=why,
    )


# fmt: off
SETTINGS: Final = (
    *_used(),
    _accepted("clientConnection.acceptContentTypes", "", TEXT, "", "the agent reads JSON"),
    _accepted("clientConnection.contentType", "--kube-api-content-type", TEXT, "application/vnd.kubernetes.protobuf",
              "the agent reads JSON"),
    _accepted("clientConnection.qps", "--kube-api-qps", NUMBER, "5", "three watches need no limit"),
    _accepted("clientConnection.burst", "--kube-api-burst", COUNT, "10", "three watches need no limit"),
    _accepted("configSyncPeriod", "--config-sync-period", DURATION, "15m", "watches are followed, not listed again",
              zero_is_default=True),
    _accepted("enableProfiling", "--profiling", SWITCH, "false", "there is no Go runtime to profile"),
    _accepted("showHiddenMetricsForVersion", "--show-hidden-metrics-for-version", TEXT, "", "no metric is hidden"),
    _accepted("portRange", "", TEXT, "", "kube-proxy has no use for it either"),
    _accepted("iptables.localhostNodePorts", "--iptables-localhost-nodeports", SWITCH, "true", _OTHER_MODE),
    _accepted("iptables.syncPeriod", "--iptables-sync-period", DURATION, "30s", _OTHER_MODE),
    _accepted("iptables.minSyncPeriod", "--iptables-min-sync-period", DURATION, "1s", _OTHER_MODE),
    _accepted("nftables.masqueradeBit", "", COUNT, "14", _OTHER_MODE),
    _accepted("nftables.masqueradeAll", "", SWITCH, "false", _OTHER_MODE),
    _accepted("nftables.syncPeriod", "", DURATION, "30s", _OTHER_MODE),
    _accepted("nftables.minSyncPeriod", "", DURATION, "1s", _OTHER_MODE),
    _accepted("winkernel.networkName", "", TEXT, "", _WINDOWS),
    _accepted("winkernel.sourceVip", "", TEXT, "", _WINDOWS),
    _accepted("winkernel.enableDSR", "", SWITCH, "false", _WINDOWS),
    _accepted("winkernel.rootHnsEndpointName", "", TEXT, "", _WINDOWS),
    _accepted("winkernel.forwardHealthCheckVip", "", SWITCH, "false", _WINDOWS),
    _accepted("windowsRunAsService", "", SWITCH, "false", _WINDOWS),
    _accepted("logging.flushFrequency", "--log-flush-frequency", ANYTHING, "5s", _AT_ONCE),
    _accepted("logging.vmodule", "--vmodule", ANYTHING, "", "one verbosity holds for all modules"),
    _accepted("logging.options", "", ANYTHING, "", f"{_ONE_LOG} at once"),
    _accepted("", "--log-text-split-stream", SWITCH, "false", _ONE_LOG),
    _accepted("", "--log-text-info-buffer-size", TEXT, "0", _AT_ONCE),
    _accepted("", "--log-json-split-stream", SWITCH, "false", _ONE_LOG),
    _accepted("", "--log-json-info-buffer-size", TEXT, "0", _AT_ONCE),
    _accepted("", "--boot-id-file", TEXT, "/proc/sys/kernel/random/boot_id", "nothing reads it"),
    _accepted("", "--machine-id-file", TEXT, "/etc/machine-id,/var/lib/dbus/machine-id", "nothing reads it"),
)
# fmt: on
SETTINGS_BY_GROUP: Final = {group: tuple(row for row in SETTINGS if row.group is group) for group in Group}
