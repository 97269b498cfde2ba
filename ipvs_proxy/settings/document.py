"""Writes the effective settings as the documents of a configuration file: for ``--write-config-to`` and ``/configz``.

There is no secret among them: credentials are in the kubeconfig, of which only the path is a setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ipvs_proxy.settings.merge import Settings, SettingsError
from ipvs_proxy.settings.table import KUBE_PROXY, OWN, Document


def document(settings: Settings, kind: Document) -> dict[str, Any]:
    """Return one document of the effective settings, with its apiVersion and kind."""
    found: dict[str, Any] = {"apiVersion": kind.api_version, "kind": kind.kind}
    for path, value in sorted(settings.fields.items()):
        name, *parts = path.split(".")
        if name == kind.kind:
            section = found
            for part in parts[:-1]:
                section = section.setdefault(part, {})
            section[parts[-1]] = value
    return found


def configz(settings: Settings) -> dict[str, Any]:
    """Return what ``/configz`` answers: each document by its API group, as kube-proxy does."""
    return {kind.api_version.partition("/")[0]: document(settings, kind) for kind in (KUBE_PROXY, OWN)}


def write_file(settings: Settings, path: Path) -> None:
    """Write both documents as YAML; what is there is replaced. Raises SettingsError if that fails."""
    text = yaml.safe_dump_all([document(settings, kind) for kind in (KUBE_PROXY, OWN)], sort_keys=False)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"--write-config-to {path}: {error.strerror}") from error


def note_lines(settings: Settings) -> list[str]:
    """Return what the operator should be told of the settings, a line for each note."""
    return [f"{event.replace('_', ' ')}: {_words(fields)}" for event, fields in settings.notes]


def _words(fields: Mapping[str, Any]) -> str:
    told = {name: ", ".join(map(str, value)) if isinstance(value, list) else value for name, value in fields.items()}
    return "; ".join(f"{name} {value}" for name, value in told.items() if value)


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    """Return the paths of the settings that differ."""
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
