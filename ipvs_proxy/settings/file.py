"""Reads a ``KubeProxyConfiguration`` (kubeproxy.config.k8s.io/v1alpha1), as kubeadm writes it: YAML or JSON.

Invariant: whatever a file holds, reading it ends in fields or a SettingsError. Our own settings may follow in a second
YAML document (ipvs-proxy.io/v1alpha1). Unknown and duplicate fields are skipped and named in a note, as kube-proxy's
lenient decoding does; so are documents of other API groups, which kubeadm's own file has. A section that is not a
mapping is an error with its path. Values are not looked at here: ``merge`` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from ipvs_proxy.kube.documents import Parsed, ParseError, parse_json, parse_yaml
from ipvs_proxy.kube.documents import read_file as read_bytes
from ipvs_proxy.kube.texts import quote
from ipvs_proxy.settings.merge import effective
from ipvs_proxy.settings.model import Note, Settings, SettingsError
from ipvs_proxy.settings.row import KUBE_PROXY, OWN, DocumentKind
from ipvs_proxy.settings.table import SETTINGS
from ipvs_proxy.settings.values import type_of

DOCUMENTS: Final = (KUBE_PROXY, OWN)
#: Bytes of a configuration file: a ConfigMap has at most 1 MiB.
MAX_SIZE: Final = 2**20
#: How many unknown fields and documents are named.
_NAMED: Final = 50
_GROUPS: Final = {document.api_version.partition("/")[0] for document in DOCUMENTS}
_FIELDS: Final = {setting.path for setting in SETTINGS if setting.field}
_SECTIONS: Final = {path.rpartition(".")[0] for path in _FIELDS} - {document.kind for document in DOCUMENTS}


def read_settings(flags: Mapping[str, object], path: Path | None) -> Settings:
    """Return the effective settings of the flags that were given, by name, and of a file if there is one.

    Raises:
        SettingsError: with one line for each fault.

    """
    fields, notes = (None, []) if path is None else read_file(path)
    settings = effective(flags, fields)
    return replace(settings, notes=(*settings.notes, *notes))


def read_file(path: Path) -> tuple[dict[str, object], list[Note]]:
    """Return the fields of a configuration file by path, and what to log about the others.

    Raises:
        SettingsError: the file cannot be read, is neither YAML nor JSON or of another kind, or a section is not a
            mapping.

    """
    try:
        return read_text(read_bytes(path, MAX_SIZE).decode("utf-8-sig"), f"--config {path}")
    except OSError as error:
        raise SettingsError(f"--config {path}: {error.strerror}") from error
    except UnicodeError as error:
        raise SettingsError(f"--config {path}: neither YAML nor JSON: {error}") from error


def read_text(text: str, name: str) -> tuple[dict[str, object], list[Note]]:
    """Do as ``read_file`` with the text of a file, which errors call ``name``."""
    try:
        parsed = _parse(text)
    except ParseError as error:
        where = f" (line {error.line})" if error.line else ""
        raise SettingsError(f"{name}: neither YAML nor JSON: {error}{where}") from error
    documents = [document for document in parsed.documents if document is not None]
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise SettingsError(f"{name}: it holds no {KUBE_PROXY.kind}")
    found: dict[DocumentKind, dict[str, object]] = {}
    others: list[str] = []
    for document in documents:
        kind = DocumentKind(str(document.pop("apiVersion", None)), str(document.pop("kind", None)))
        if len(documents) > 1 and _is_others(kind):
            others.append(quote(f"{kind.kind} ({kind.api_version})"))
        elif kind not in DOCUMENTS:
            raise SettingsError(
                f"{name}: its kind is {quote(kind.kind)} and its apiVersion {quote(kind.api_version)}, "
                f"wanted {KUBE_PROXY.kind} and {KUBE_PROXY.api_version}"
            )
        elif kind in found:
            raise SettingsError(f"{name}: wanted one {KUBE_PROXY.kind}, and at most one {OWN.kind}")
        else:
            found[kind] = document
    if KUBE_PROXY not in found:
        raise SettingsError(f"{name}: wanted one {KUBE_PROXY.kind}, and at most one {OWN.kind}")
    fields, notes = _sort_out(found, parsed.duplicates)
    if others:
        notes.append(Note("config_documents_ignored", {"documents": others[:_NAMED]}))
    return fields, notes


def _is_others(kind: DocumentKind) -> bool:
    """Return whether a document is another program's, by its API group."""
    group, _, version = kind.api_version.partition("/")
    return bool(version) and "." in group and group not in _GROUPS


def _sort_out(
    documents: Mapping[DocumentKind, dict[str, object]], duplicates: list[str]
) -> tuple[dict[str, object], list[Note]]:
    """Return the known fields of documents by path, and a note on the others."""
    faults: list[str] = []
    leaves: dict[str, object] = {}
    for document, content in documents.items():
        for key, value in content.items():
            path = f"{document.kind}.{key}"
            if path not in _SECTIONS:
                leaves[path] = value
            elif isinstance(value, dict):
                leaves |= {f"{path}.{name}": field for name, field in value.items()}
            elif value:
                faults.append(f"{path}: must be a mapping, not {type_of(value)}")
    if faults:
        raise SettingsError("\n".join(sorted(faults)))
    notes: list[Note] = []
    unknown = sorted(leaves.keys() - _FIELDS)
    if unknown or duplicates:
        fields = {"unknown": _named(unknown), "duplicate": _named(duplicates)}
        notes.append(Note("config_decoded_leniently", fields))
    return {path: value for path, value in leaves.items() if path in _FIELDS}, notes


def _named(names: list[str]) -> list[str]:
    more = [f"and {len(names) - _NAMED:,} others"] if len(names) > _NAMED else []
    return [*map(quote, names[:_NAMED]), *more]


def _parse(text: str) -> Parsed:
    """Parse the text of a file.

    What looks like JSON may be YAML in braces. JSON is tried first, as it may be indented with tabs and YAML may not.
    """
    if text.lstrip().startswith("{"):
        try:
            return parse_json(text)
        except ParseError:
            pass
    return parse_yaml(text)
