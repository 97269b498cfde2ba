"""The table of values in the chart's README, from the comments in ``values.yaml``, and the icon in ``Chart.yaml``."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from tools.documents import ROOT, Texts, filled

CHART = ROOT / "helm" / "ipvs-proxy"
README = CHART / "README.md"


def written() -> Texts:
    """Return the README and ``Chart.yaml``."""
    rows = [f"| `{name}` | `{default}` | {comment} |" for name, default, comment in values()]
    table = "\n".join(["| value | default | what it is |", "|---|---|---|", *rows])
    icon = base64.b64encode((CHART / "icon.svg").read_bytes()).decode()
    chart = (CHART / "Chart.yaml").read_text()
    with_icon = re.sub(r"^icon: .*$", f"icon: data:image/svg+xml;base64,{icon}", chart, flags=re.MULTILINE)
    return {README: filled(README.read_text(), [("values", table)]), CHART / "Chart.yaml": with_icon}


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
