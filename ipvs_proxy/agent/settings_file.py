"""Reads a ``KubeProxyConfiguration`` (kubeproxy.config.k8s.io/v1alpha1), as kubeadm writes it: YAML or JSON.

All fields that kube-proxy knows are accepted. Those that are set and have no effect here (yet) are named once in the
log; unknown and duplicate ones are passed over and named as well, which is what kube-proxy's lenient decoding does. A
section that is no section is an error with its path. Nothing that a file can hold ends in anything but fields or a
SettingsError.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from ipvs_proxy.agent.settings import PREFIX, SETTINGS, SettingsError
from ipvs_proxy.agent.settings_values import type_of

API_VERSION: Final = "kubeproxy.config.k8s.io/v1alpha1"
KIND: Final = "KubeProxyConfiguration"

_FIELDS: Final = {setting.field for setting in SETTINGS if setting.field}
#: Fields of kube-proxy 1.36 that have no row in ``SETTINGS`` yet, or no meaning for IPVS.
WITHOUT_EFFECT: Final = frozenset(
    """
    featureGates bindAddressHardFail enableProfiling showHiddenMetricsForVersion windowsRunAsService detectLocalMode
    nodePortAddresses oomScoreAdj configSyncPeriod portRange
    clientConnection.acceptContentTypes clientConnection.contentType clientConnection.qps clientConnection.burst
    logging.flushFrequency logging.vmodule logging.options
    iptables.localhostNodePorts iptables.syncPeriod iptables.minSyncPeriod
    nftables.masqueradeBit nftables.masqueradeAll nftables.syncPeriod nftables.minSyncPeriod
    winkernel.networkName winkernel.sourceVip winkernel.enableDSR winkernel.rootHnsEndpointName
    winkernel.forwardHealthCheckVip
    detectLocal.bridgeInterface detectLocal.interfaceNamePrefix
    conntrack.maxPerCore conntrack.min conntrack.tcpEstablishedTimeout conntrack.tcpCloseWaitTimeout
    conntrack.tcpBeLiberal conntrack.udpTimeout conntrack.udpStreamTimeout
    """.split()  # noqa: SIM905  names read best as words
)
_SECTIONS: Final = {field.partition(".")[0] for field in _FIELDS | WITHOUT_EFFECT if "." in field}
#: What kubeadm writes for fields that nobody set.
_NOT_SET: Final[tuple[object, ...]] = (None, "", [], {}, 0, False, "0s")

Notes = list[tuple[str, dict[str, Any]]]


class _Loader(yaml.SafeLoader):
    """Remembers keys that come twice in one mapping; the last one counts."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.duplicates: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, and note keys that come twice."""
        self.duplicates += _twice([str(key.value) for key, _ in node.value])
        return super().construct_mapping(node, deep)


def read_file(path: Path) -> tuple[dict[str, Any], Notes]:
    """Read a configuration file; give its fields by dotted path, and what to log about the others.

    Raises SettingsError if it is not there, neither YAML nor JSON, of another kind, or has a section of another type.
    """
    try:
        document, duplicates = _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"--config {path}: {error.strerror}") from error
    except RecursionError as error:
        raise SettingsError(f"--config {path}: nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError(f"--config {path}: neither YAML nor JSON: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise SettingsError(f"--config {path}: it holds no {KIND}")
    kind, version = document.pop("kind", None), document.pop("apiVersion", None)
    if (kind, version) != (KIND, API_VERSION):
        raise SettingsError(
            f"--config {path}: its kind is {kind} and its apiVersion {version}, wanted {KIND} and {API_VERSION}"
        )
    return _sort_out(document, duplicates)


def _sort_out(document: dict[Any, Any], duplicates: list[str]) -> tuple[dict[str, Any], Notes]:
    """Tell the fields that have an effect from the others, which become notes."""
    faults = [
        f"{PREFIX}.{section}: is {type_of(document[section])}, wanted a mapping"
        for section in sorted(_SECTIONS)
        if not isinstance(document.get(section) or {}, dict)
    ]
    if faults:
        raise SettingsError("\n".join(faults))
    leaves = dict(_leaves(document))
    notes: Notes = []
    without_effect = sorted(name for name, value in leaves.items() if name in WITHOUT_EFFECT and value not in _NOT_SET)
    if without_effect:
        notes.append(("config_fields_without_effect", {"fields": without_effect}))
    unknown = sorted(leaves.keys() - _FIELDS - WITHOUT_EFFECT)
    if unknown or duplicates:
        notes.append(("config_decoded_leniently", {"unknown": unknown, "duplicate": duplicates}))
    return {name: value for name, value in leaves.items() if name in _FIELDS}, notes


def _parse(text: str) -> tuple[Any, list[str]]:
    """Parse a document; give it, and the keys that come twice in one mapping."""
    if text.lstrip().startswith("{"):
        # JSON may have tabs, which YAML has not.
        duplicates: list[str] = []

        def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            duplicates.extend(_twice([key for key, _ in pairs]))
            return dict(pairs)

        try:
            return json.loads(text, object_pairs_hook=mapping), duplicates
        except json.JSONDecodeError:
            pass  # YAML in braces
    loader = _Loader(text)
    return loader.get_single_data(), loader.duplicates


def _twice(keys: list[str]) -> list[str]:
    return [key for key, count in Counter(keys).items() if count > 1]


def _leaves(document: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Give the fields by dotted path; sections are one level deep."""
    for key, value in document.items():
        if key not in _SECTIONS:
            yield str(key), value
            continue
        for name, field in (value or {}).items():
            yield f"{key}.{name}", field
