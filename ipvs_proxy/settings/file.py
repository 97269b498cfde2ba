"""Reads a ``KubeProxyConfiguration`` (kubeproxy.config.k8s.io/v1alpha1), as kubeadm writes it: YAML or JSON.

Our own settings may follow in a second YAML document (ipvs-proxy.io/v1alpha1). Unknown and duplicate fields are passed
over and named in the log, which is what kube-proxy's lenient decoding does; so are documents of other API groups, as
kubeadm's own file has them. A section that is no section is an error with its path. Nothing that a file can hold ends
in anything but fields or a SettingsError.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ipvs_proxy.kube.documents import Parsed, ParseError, parse_json, parse_yaml
from ipvs_proxy.kube.documents import read_file as read_bytes
from ipvs_proxy.kube.texts import quote
from ipvs_proxy.settings.merge import Settings, SettingsError, effective
from ipvs_proxy.settings.table import KUBE_PROXY, OWN, SETTINGS, Document
from ipvs_proxy.settings.values import type_of

DOCUMENTS: Final = (KUBE_PROXY, OWN)
#: Bytes of a configuration file. A ConfigMap has 1 MiB at most.
MAX_SIZE: Final = 2**20
#: So many unknown fields are named.
_NAMED: Final = 50
_GROUPS: Final = {document.api_version.partition("/")[0] for document in DOCUMENTS}
_FIELDS: Final = {setting.path for setting in SETTINGS if setting.field}
_SECTIONS: Final = {path.rpartition(".")[0] for path in _FIELDS} - {document.kind for document in DOCUMENTS}

Notes = list[tuple[str, dict[str, Any]]]


def read_settings(flags: Mapping[str, Any], path: Path | None) -> Settings:
    """Return the effective settings of the flags that were given, and of a file if there is one.

    Raises SettingsError with one line for each fault.
    """
    fields, notes = (None, []) if path is None else read_file(path)
    settings = effective(flags, fields)
    return replace(settings, notes=(*settings.notes, *notes))


def read_file(path: Path) -> tuple[dict[str, Any], Notes]:
    """Read a configuration file; return its fields by path, and what to log about the others.

    Raises SettingsError if it is not there, neither YAML nor JSON, of another kind, or has a section of another type.
    """
    try:
        return read_text(read_bytes(path, MAX_SIZE).decode("utf-8-sig"), f"--config {path}")
    except OSError as error:
        raise SettingsError(f"--config {path}: {error.strerror}") from error
    except UnicodeError as error:
        raise SettingsError(f"--config {path}: neither YAML nor JSON: {error}") from error


def read_text(text: str, name: str) -> tuple[dict[str, Any], Notes]:
    """Read what a configuration file holds; ``name`` is what errors call it. Otherwise as ``read_file``."""
    try:
        parsed = _parse(text)
    except ParseError as error:
        where = f" (line {error.line})" if error.line else ""
        raise SettingsError(f"{name}: neither YAML nor JSON: {error}{where}") from error
    documents = [document for document in parsed.documents if document is not None]
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise SettingsError(f"{name}: it holds no {KUBE_PROXY.kind}")
    found: dict[Document, dict[Any, Any]] = {}
    others: list[str] = []
    for document in documents:
        kind = Document(document.pop("apiVersion", None), document.pop("kind", None))
        if _is_others(kind, len(documents)):
            others.append(quote(f"{kind.kind} ({kind.api_version})"))
        elif kind not in DOCUMENTS:
            raise SettingsError(
                f"{name}: its kind is {quote(str(kind.kind))} and its apiVersion {quote(str(kind.api_version))}, "
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
        notes.append(("config_documents_ignored", {"documents": others[:_NAMED]}))
    return fields, notes


def _is_others(kind: Document, documents: int) -> bool:
    """Return whether a document is one of several and another program's, by its API group."""
    group, _, version = str(kind.api_version).partition("/")
    return documents > 1 and bool(version) and "." in group and group not in _GROUPS


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
        fields = {"unknown": unknown, "duplicate": duplicates}
        notes.append(("config_decoded_leniently", {name: _named(names) for name, names in fields.items()}))
    return {path: value for path, value in leaves.items() if path in _FIELDS}, notes


def _named(names: list[str]) -> list[str]:
    more = [f"and {len(names) - _NAMED:,} others"] if len(names) > _NAMED else []
    return [*map(quote, names[:_NAMED]), *more]


def _parse(text: str) -> Parsed:
    """Parse a file. What looks like JSON and is none may be YAML in braces; JSON may have tabs, which YAML has not."""
    if text.lstrip().startswith("{"):
        try:
            return parse_json(text)
        except ParseError:
            pass
    return parse_yaml(text)
