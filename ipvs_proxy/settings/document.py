"""Writes the effective settings as the documents of a configuration file: for ``--write-config-to`` and ``/configz``.

They contain no secret: credentials are in the kubeconfig, of which only the path is a setting.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from ipvs_proxy.settings.model import Note, Settings, SettingsError
from ipvs_proxy.settings.row import KUBE_PROXY, OWN, DocumentKind


def document(settings: Settings, kind: DocumentKind) -> dict[str, object]:
    """Return one document of the effective settings, with its apiVersion and kind."""
    found: dict[str, object] = {"apiVersion": kind.api_version, "kind": kind.kind}
    sections: dict[str, dict[str, object]] = {}
    for path, value in sorted(settings.fields.items()):
        name, _, field = path.partition(".")
        if name != kind.kind:
            continue
        section, _, leaf = field.rpartition(".")
        target = sections.setdefault(section, {}) if section else found
        target[leaf] = value
        if section:
            found[section] = target
    return found


def configz(settings: Settings) -> dict[str, dict[str, object]]:
    """Return what ``/configz`` answers: each document by its API group, as kube-proxy does."""
    return {kind.api_version.partition("/")[0]: document(settings, kind) for kind in (KUBE_PROXY, OWN)}


def write_file(settings: Settings, path: Path) -> None:
    """Write both documents as YAML over what is at ``path``.

    Raises:
        SettingsError: the file cannot be written.

    """
    text = yaml.safe_dump_all([document(settings, kind) for kind in (KUBE_PROXY, OWN)], sort_keys=False)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"--write-config-to {path}: {error.strerror}") from error


def note_lines(settings: Settings) -> list[str]:
    """Return what the operator should be told of the settings, one line for each note."""
    return [f"{note.event.replace('_', ' ')}: {_words(note)}" for note in settings.notes]


def _words(note: Note) -> str:
    told = {name: value if isinstance(value, str) else ", ".join(value) for name, value in note.fields.items()}
    return "; ".join(f"{name} {value}" for name, value in told.items() if value)
