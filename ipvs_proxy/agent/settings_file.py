"""Reads a ``KubeProxyConfiguration`` (kubeproxy.config.k8s.io/v1alpha1), as kubeadm writes it.

All fields that kube-proxy knows are accepted. Those that have no effect here (yet) are named once in the log; unknown
and duplicate ones are passed over and named as well, which is what kube-proxy's lenient decoding does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from ipvs_proxy.agent.settings import SETTINGS, SettingsError

API_VERSION: Final = "kubeproxy.config.k8s.io/v1alpha1"
KIND: Final = "KubeProxyConfiguration"

#: Fields of kube-proxy 1.36 that have no row in ``SETTINGS`` yet, or no meaning for IPVS.
WITHOUT_EFFECT: Final = frozenset(
    (
        "featureGates",
        "clientConnection.acceptContentTypes",
        "clientConnection.contentType",
        "clientConnection.qps",
        "clientConnection.burst",
        "logging.flushFrequency",
        "logging.vmodule",
        "logging.options",
        "bindAddressHardFail",
        "enableProfiling",
        "showHiddenMetricsForVersion",
        "iptables.localhostNodePorts",
        "iptables.syncPeriod",
        "iptables.minSyncPeriod",
        "nftables.masqueradeBit",
        "nftables.masqueradeAll",
        "nftables.syncPeriod",
        "nftables.minSyncPeriod",
        "winkernel",
        "windowsRunAsService",
        "detectLocalMode",
        "detectLocal",
        "nodePortAddresses",
        "oomScoreAdj",
        "conntrack",
        "configSyncPeriod",
        "portRange",
    )
)


class _Loader(yaml.SafeLoader):
    """Remembers keys that come twice in one mapping; the last one counts."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.duplicates: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, and note keys that come twice."""
        keys = [str(key.value) for key, _ in node.value]
        self.duplicates += [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
        return super().construct_mapping(node, deep)


def read_file(path: Path) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    """Read a configuration file; give its fields by dotted path, and what to log about the others.

    Raises SettingsError if it is not there, no YAML, or of another kind.
    """
    try:
        loader = _Loader(path.read_text())
        document = loader.get_single_data()
    except OSError as error:
        raise SettingsError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise SettingsError(f"--config {path}: it holds no {KIND}")
    kind, version = document.pop("kind", None), document.pop("apiVersion", None)
    if (kind, version) != (KIND, API_VERSION):
        raise SettingsError(f"--config {path}: it is {version} {kind}, wanted {API_VERSION} {KIND}")
    known = {setting.field for setting in SETTINGS if setting.field}
    fields: dict[str, Any] = {}
    without_effect: list[str] = []
    unknown: list[str] = []
    for name, value in _leaves(document, known | WITHOUT_EFFECT):
        if name in known:
            fields[name] = value
        elif value not in (None, "", [], {}):
            (without_effect if name in WITHOUT_EFFECT else unknown).append(name)
    notes: list[tuple[str, dict[str, Any]]] = []
    if without_effect:
        notes.append(("config_fields_without_effect", {"fields": sorted(without_effect)}))
    if unknown or loader.duplicates:
        notes.append(("config_decoded_leniently", {"unknown": sorted(unknown), "duplicate": loader.duplicates}))
    return fields, notes


def _leaves(mapping: dict[Any, Any], known: frozenset[str] | set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give the fields by dotted path, going no deeper than the known ones do."""
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in known and any(field.startswith(f"{name}.") for field in known):
            yield from _leaves(value, known, f"{name}.")
        else:
            yield name, value
