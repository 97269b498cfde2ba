"""The tables in ``docs/configuration.md``, and the JSON schema of our own document: settings and annotations."""

from __future__ import annotations

import json
from typing import Any

from ipvs_proxy.kube.objects import SLICE_WEIGHTS
from ipvs_proxy.plan.annotations import ANNOTATIONS
from ipvs_proxy.plan.weights import MAX_WEIGHT
from ipvs_proxy.settings.row import OWN, Setting
from ipvs_proxy.settings.table import SETTINGS, SETTINGS_BY_GROUP
from tools.documents import DOCS, Texts, filled

DOCUMENT = DOCS / "configuration.md"
SCHEMA = DOCS / "ipvs-proxy-configuration.schema.json"
#: The schema of a field of our own, by the name of its kind.
_PATTERNS: dict[str, dict[str, Any]] = {
    "DURATION": {"type": "string", "pattern": r"^(0|([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))+)?$"},
    "off|all|endpoints": {"type": "string", "enum": ["off", "all", "endpoints"]},
    "auto|iptables|nftables": {"type": "string", "enum": ["auto", "iptables", "nftables"]},
    "[true|false]": {"type": "boolean", "default": False},
    "LABEL": {"type": "string", "pattern": r"^([a-z0-9A-Z]([-a-z0-9A-Z_.]*[a-z0-9A-Z])?)?$", "maxLength": 63},
    "kube-proxy": {"type": "string", "enum": ["", "kube-proxy"]},
}


def table() -> str:
    """Return every setting, group by group, as Markdown."""
    lines = []
    for group, settings in SETTINGS_BY_GROUP.items():
        lines += [f"### {group}", "", "| field | flag | default | meaning | a changed file |", "|---|---|---|---|---|"]
        lines += [_row(setting) for setting in settings]
        lines.append("")
    return "\n".join(lines)


def _row(setting: Setting) -> str:
    own = " (own document)" if setting.document is OWN else ""
    field = f"`{setting.field}`{own}" if setting.field else ""
    flag = f"`{setting.flag}`{' (wins over a file)' if setting.outranks_file and setting.field else ''}"
    default = f"`{setting.default}`" if setting.default else ""
    if setting.file_default is not None:
        default += f"; in a file `{setting.file_default}`"
    follows = "" if setting.without_effect or not setting.field else "applied" if setting.live else "needs a restart"
    return f"| {field} | {flag if setting.flag else ''} | {default} | {setting.help.replace('|', '/')} | {follows} |"


def annotation_table() -> str:
    """Return the annotations of a Service, and of an EndpointSlice, as Markdown."""
    lines = ["| annotation | on | values and meaning |", "|---|---|---|"]
    lines += [f"| `{annotation.name}` | Service | {annotation.help} |" for annotation in ANNOTATIONS]
    ours, cilium = SLICE_WEIGHTS
    lines.append(f"| `{ours}` | EndpointSlice | `90`: the weight of its endpoints, from 0 to {MAX_WEIGHT} |")
    lines.append(f"| `{cilium}` | EndpointSlice | the same, where ours is missing |")
    return "\n".join(lines)


def schema() -> dict[str, Any]:
    """Return the JSON schema (2020-12) of our own document."""
    fields = {
        setting.field: {"description": setting.help, "default": setting.default, **_PATTERNS[setting.kind.name]}
        for setting in SETTINGS
        if setting.document is OWN
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": OWN.kind,
        "description": "ipvs-proxy's own settings: a second YAML document beside a KubeProxyConfiguration",
        "type": "object",
        "required": ["apiVersion", "kind"],
        "additionalProperties": False,
        "properties": {"apiVersion": {"const": OWN.api_version}, "kind": {"const": OWN.kind}, **fields},
    }


def written() -> Texts:
    """Return the document and the schema."""
    return {
        DOCUMENT: filled(DOCUMENT.read_text(), [("annotations", annotation_table()), ("table", table())]),
        SCHEMA: json.dumps(schema(), indent=2) + "\n",
    }
