"""The chart's README: its commands work, and every value is described."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import yaml

from tests.helm.helm import CHART, ROOT, helm
from tools.chart_readme import README, values

COMMANDS = [
    shlex.split(command.replace("\\\n", " "))
    for command in re.findall(r"^helm install (?:[^\n]*\\\n)*[^\n]*", README.read_text(), re.MULTILINE)
]


def test_every_value_has_a_comment_and_a_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]
    described = set()
    for name, of in schema.items():
        nested = of.get("properties", {}) if of.get("required") else {}
        described |= {f"{name}.{inner}" for inner in nested} or {name}
    assert {name for name, *_ in values()} == described


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_command_works(command: list[str]) -> None:
    chart = str(ROOT / "helm/ipvs-proxy")
    done = helm("template", *[chart if word == "helm/ipvs-proxy" else word for word in command[2:]])
    assert done.returncode == 0, done.stderr


def test_there_are_commands() -> None:
    assert len(COMMANDS) == 2


def test_commands_of_the_projects_readme_install_what_they_say() -> None:
    text = (ROOT / "README.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("helm install ")]
    _, _, name, package, *arguments = shlex.split(line)
    assert package == f"dist/{name}-{yaml.safe_load((CHART / 'Chart.yaml').read_text())['version']}.tgz"
    done = helm("template", name, str(CHART), *arguments)
    assert done.returncode == 0, done.stderr
    for part in ('image: "REGISTRY/ipvs-proxy:', "clusterCIDR: 10.244.0.0/16", "value: 10.0.0.10"):
        assert part.replace('"', "") in done.stdout.replace('"', "")
    for setting in re.findall(r"`--set (\S+?)`", text):
        replaced = "clusterCIDR=" if setting.startswith("existingKubeProxyConfigMap=") else "-"
        given = [setting if word.startswith(replaced) and "=" in replaced else word for word in arguments]
        done = helm("template", name, str(CHART), *given, "--set", setting)
        assert done.returncode == 0, done.stderr


def test_targets_that_the_readme_names_are_in_the_makefile() -> None:
    text = (ROOT / "README.md").read_text()
    targets = {word for words in re.findall(r"\bmake ((?:[a-z]+ ?)+)", text) for word in words.split()}
    known = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "bench", "image", "chart"} <= targets & known
