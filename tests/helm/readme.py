"""Makes the table of values in the chart's README: ``python -m tests.helm.readme``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "helm" / "ipvs-proxy"
README = CHART / "README.md"
TABLE = re.compile(r"(<!-- values: [^\n]*-->\n).*(<!-- end of values -->)", re.DOTALL)


def current() -> str:
    """The README as it should be."""
    rows = [f"| `{name}` | `{default}` | {comment} |" for name, default, comment in values()]
    table = "\n".join(["| value | default | what it is |", "|---|---|---|", *rows])
    return TABLE.sub(lambda found: f"{found[1]}{table}\n{found[2]}", README.read_text())


def values() -> Iterator[tuple[str, str, str]]:
    """Each value that has a comment right above it: its path, its default as JSON, and the comment."""
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


if __name__ == "__main__":
    README.write_text(current())
