"""The chart's README: its table is that of the values, and its commands work."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from tests.helm.helm import CHART, ROOT, helm
from tests.helm.readme import README, current, values

COMMANDS = [
    shlex.split(command.replace("\\\n", " "))
    for command in re.findall(r"^helm install (?:[^\n]*\\\n)*[^\n]*", README.read_text(), re.MULTILINE)
]


def test_table_is_current() -> None:
    assert README.read_text() == current(), "run python -m tests.helm.readme"


def test_every_value_has_a_comment_and_a_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]
    described = set()
    for name, of in schema.items():
        nested = of.get("properties", {}) if of.get("required") else {}
        described |= {f"{name}.{inner}" for inner in nested} or {name}
    assert {name for name, *_ in values()} == described - {"global"}


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_command_works(command: list[str]) -> None:
    chart = str(ROOT / "helm/ipvs-proxy")
    done = helm("template", *[chart if word == "helm/ipvs-proxy" else word for word in command[2:]])
    assert done.returncode == 0, done.stderr


def test_there_are_commands() -> None:
    assert len(COMMANDS) == 2
