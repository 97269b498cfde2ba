"""Reads a ``KubeProxyConfiguration`` (kubeproxy.config.k8s.io/v1alpha1), as kubeadm writes it: YAML or JSON.

Our own settings may follow in a second YAML document (ipvs-proxy.io/v1alpha1). Unknown and duplicate fields are passed
over and named in the log, which is what kube-proxy's lenient decoding does. A section that is no section is an error
with its path. Nothing that a file can hold ends in anything but fields or a SettingsError.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import yaml

from ipvs_proxy.agent.settings import Settings, SettingsError, effective
from ipvs_proxy.agent.settings_table import KUBE_PROXY, OWN, SETTINGS, Document
from ipvs_proxy.agent.settings_values import type_of

DOCUMENTS: Final = (KUBE_PROXY, OWN)
_FIELDS: Final = {setting.path for setting in SETTINGS if setting.field}
_SECTIONS: Final = {path.rpartition(".")[0] for path in _FIELDS} - {document.kind for document in DOCUMENTS}

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


def read_settings(flags: Mapping[str, Any], path: Path | None) -> Settings:
    """Give the effective settings of the flags that were given, and of a file if there is one.

    Raises SettingsError with one line for each fault.
    """
    fields, notes = (None, []) if path is None else read_file(path)
    settings = effective(flags, fields)
    return replace(settings, notes=(*settings.notes, *notes))


def read_file(path: Path) -> tuple[dict[str, Any], Notes]:
    """Read a configuration file; give its fields by path, and what to log about the others.

    Raises SettingsError if it is not there, neither YAML nor JSON, of another kind, or has a section of another type.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"--config {path}: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"--config {path}: neither YAML nor JSON: {error}") from error
    return read_text(text, f"--config {path}")


def read_text(text: str, name: str) -> tuple[dict[str, Any], Notes]:
    """Read what a configuration file holds; ``name`` is what errors call it. Otherwise as ``read_file``."""
    try:
        documents, duplicates = _parse(text)
    except RecursionError as error:
        raise SettingsError(f"{name}: nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError(f"{name}: neither YAML nor JSON: {' '.join(str(error).split())}") from error
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise SettingsError(f"{name}: it holds no {KUBE_PROXY.kind}")
    kinds = [Document(document.pop("apiVersion", None), document.pop("kind", None)) for document in documents]
    for kind in kinds:
        if kind not in DOCUMENTS:
            raise SettingsError(
                f"{name}: its kind is {kind.kind} and its apiVersion {kind.api_version}, "
                f"wanted {KUBE_PROXY.kind} and {KUBE_PROXY.api_version}"
            )
    if KUBE_PROXY not in kinds or len(set(kinds)) < len(kinds):
        raise SettingsError(f"{name}: wanted one {KUBE_PROXY.kind}, and at most one {OWN.kind}")
    return _sort_out(dict(zip(kinds, documents, strict=True)), duplicates)


def _sort_out(documents: Mapping[Document, dict[Any, Any]], duplicates: list[str]) -> tuple[dict[str, Any], Notes]:
    """Tell the fields that there are from unknown ones, which become a note."""
    faults: list[str] = []
    leaves: dict[str, Any] = {}
    for document, content in documents.items():
        for key, value in content.items():
            path = f"{document.kind}.{key}"
            if path not in _SECTIONS:
                leaves[path] = value
            elif isinstance(value or {}, dict):
                leaves |= {f"{path}.{name}": field for name, field in (value or {}).items()}
            else:
                faults.append(f"{path}: is {type_of(value)}, wanted a mapping")
    if faults:
        raise SettingsError("\n".join(sorted(faults)))
    notes: Notes = []
    unknown = sorted(leaves.keys() - _FIELDS)
    if unknown or duplicates:
        notes.append(("config_decoded_leniently", {"unknown": unknown, "duplicate": duplicates}))
    return {path: value for path, value in leaves.items() if path in _FIELDS}, notes


def _parse(text: str) -> tuple[list[Any], list[str]]:
    """Parse a file; give its documents, and the keys that come twice in one mapping."""
    if text.lstrip().startswith("{"):
        # JSON may have tabs, which YAML has not.
        duplicates: list[str] = []

        def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            duplicates.extend(_twice([key for key, _ in pairs]))
            return dict(pairs)

        try:
            return [json.loads(text, object_pairs_hook=mapping)], duplicates
        except json.JSONDecodeError:
            pass  # YAML in braces
    loader = _Loader(text)
    documents = []
    while loader.check_data():  # type: ignore[no-untyped-call]
        documents.append(loader.get_data())
    return [document for document in documents if document is not None], loader.duplicates


def _twice(keys: list[str]) -> list[str]:
    return [key for key, count in Counter(keys).items() if count > 1]
