"""The workflow for GitHub, which does not run here: what it runs exists, and it has no more rights than it needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
#: What somebody who opens a pull request writes.
WRITTEN_BY_ANYBODY = r"\$\{\{[^}]*(github\.event|head_ref|github\.ref_name|github\.actor)[^}]*\}\}"


def jobs() -> list[tuple[str, dict[str, Any]]]:
    return [job for path in WORKFLOWS for job in yaml.safe_load(path.read_text())["jobs"].items()]


def test_there_is_one() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_it_may_only_read(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    assert document["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in document["jobs"].values())
    # YAML 1.1 takes "on" for true.
    assert "pull_request_target" not in document[True]
    assert "secrets." not in path.read_text()


@pytest.mark.parametrize(("name", "job"), jobs(), ids=lambda part: part if isinstance(part, str) else "")
def test_a_job_ends_and_runs_what_there_is(name: str, job: dict[str, Any]) -> None:
    assert job["timeout-minutes"] <= 120
    for step in job["steps"]:
        assert ("run" in step) != ("uses" in step)
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]), step["uses"]
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
        command = step.get("run", "")
        assert not re.search(WRITTEN_BY_ANYBODY, command), command
        for script in re.findall(r"(?<!\S)(\.ci/\w+)", command):
            assert (ROOT / script).stat().st_mode & 0o100, script
        for words in re.findall(r"\bmake ((?:[a-z]+(?: |$))+)", command):
            if "apt-get" not in command:
                assert set(words.split()) <= TARGETS, command


def test_it_runs_what_a_change_has_to_pass_and_builds() -> None:
    commands = [step["run"] for _, job in jobs() for step in job["steps"] if "run" in step]
    assert ".ci/run" in commands
    assert "make image chart" in commands
    assert 'make release VERSION="${GITHUB_REF_NAME#v}"' in commands
