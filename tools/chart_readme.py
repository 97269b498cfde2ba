"""The table of values in the chart's README, from the comments in ``values.yaml``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from tools.documents import ROOT, Texts, filled

CHART = ROOT / "helm" / "ipvs-proxy"
README = CHART / "README.md"


def written() -> Texts:
    """Return the README."""
    rows = [f"| `{name}` | `{default}` | {comment} |" for name, default, comment in values()]
    table = "\n".join(["| value | default | what it is |", "|---|---|---|", *rows])
    return {README: filled(README.read_text(), [("values", table)])}


def values() -> Iterator[tuple[str, str, str]]:
    """Yield each value with a comment right above it: its path, its default as JSON, and the comment."""
    text = (CHART / "values.yaml").read_text()
    defaults = yaml.safe_load(text)
    path: list[str] = []
    comment: list[str] = []
    for line in text.splitlines():
        if found := re.match(r" *# (.*)", line):
            comment.append(found[1])
            continue
        if found := re.match(r"( *)(\w+):", line):
            path = [*path[: len(found[1]) // 2], found[2]]
            if comment:
                yield ".".join(path), json.dumps(_at(defaults, path)), " ".join(comment)
        comment = []


def _at(defaults: Any, path: list[str]) -> Any:
    for name in path:
        defaults = defaults[name]
    return defaults
