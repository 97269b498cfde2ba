"""What a release changes in the texts of the repository."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from release.version import (
    VERSION,
    CannotReleaseError,
    changelog_text,
    changes,
    chart_text,
    document_text,
    notes,
    package_text,
    version_of,
)

ROOT = Path(__file__).parents[2]
CHANGELOG = """\
# Changelog

## 0.2.0 (unreleased)

* The first, which
  has two lines.
* "Quoted": a colon.

## 0.1.0 (2026-01-02)

* Older.
"""


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("0.1.0", True), ("1.20.3", True), ("1.2", False), ("v1.2.3", False), ("01.2.3", False), ("1.2.3-rc1", False)],
)
def test_a_version_is_one_that_chart_image_and_package_can_have(text: str, is_one: bool) -> None:
    assert bool(VERSION.fullmatch(text)) is is_one


def test_the_unreleased_section_gets_the_version_and_the_date() -> None:
    dated = changelog_text(CHANGELOG, "0.3.0", "2026-11-30")
    assert dated == CHANGELOG.replace("## 0.2.0 (unreleased)", "## 0.3.0 (2026-11-30)")
    assert notes(dated, "0.3.0").splitlines()[0] == "* The first, which"
    assert changes(dated, "0.3.0") == ["The first, which has two lines.", '"Quoted": a colon.']
    assert changes(dated, "0.1.0") == ["Older."]
    assert changes(dated, "0.3") == []


@pytest.mark.parametrize(
    ("changelog", "version", "says"),
    [
        (CHANGELOG, "0.1.0", "a section of 0.1.0 already"),
        (CHANGELOG.replace(" (unreleased)", " (2026-11-29)"), "0.3.0", "does not begin with a section"),
        ("# Changelog\n", "0.3.0", "does not begin with a section"),
        ("## 1.0.0 (2026-11-29)\n\n* One.\n\n## 0.9.0 (unreleased)\n\n* Old.\n", "0.3.0", "does not begin with"),
        ("# Changelog\n\n## Next (unreleased)\n\n## 0.1.0 (2026-01-02)\n\n* Older.\n", "0.3.0", "no change in it"),
    ],
    ids=["released", "nothing unreleased", "no section", "not the first", "empty"],
)
def test_there_is_no_release_without_new_changes(changelog: str, version: str, says: str) -> None:
    with pytest.raises(CannotReleaseError, match=says):
        changelog_text(changelog, version, "2026-11-30")


def test_the_chart_has_the_version_the_image_and_the_changes() -> None:
    chart = (ROOT / "helm/ipvs-proxy/Chart.yaml").read_text()
    once = chart_text(chart, "0.3.0", ["One: two", 'and "three"'])
    twice = chart_text(once, "0.3.0", ["Four"])
    for text, expected in ((once, ["One: two", 'and "three"']), (twice, ["Four"])):
        found = yaml.safe_load(text)
        assert (found["version"], found["appVersion"]) == ("0.3.0", "0.3.0")
        annotations = found["annotations"]
        assert yaml.safe_load(annotations["artifacthub.io/changes"]) == expected
        assert yaml.safe_load(annotations["artifacthub.io/images"])[0]["image"] == "ipvs-proxy:0.3.0"
        assert annotations["artifacthub.io/license"] == "Apache-2.0"


def test_the_package_states_the_version() -> None:
    package = (ROOT / "ipvs_proxy/__init__.py").read_text()
    assert version_of(package_text(package, "0.3.0")) == "0.3.0"
    assert package_text(package_text(package, "0.3.0"), version_of(package)) == package


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dist/ipvs-proxy-0.1.0.tgz", "dist/ipvs-proxy-0.3.0.tgz"),
        ("REGISTRY/ipvs-proxy:0.1.0`", "REGISTRY/ipvs-proxy:0.3.0`"),
        ("agent  ipvs-proxy 0.1.0 on node", "agent  ipvs-proxy 0.3.0 on node"),
        ("ipvs-proxy 0.1.0.", "ipvs-proxy 0.3.0."),
        ("10.1.0.0/16 and 0.1.0", "10.1.0.0/16 and 0.1.0"),
        ("ipvs-proxy 0.1.01", "ipvs-proxy 0.1.01"),
        ("ipvs-proxy 0.1.0.7", "ipvs-proxy 0.1.0.7"),
        ("ipvs-proxy 0.1.0-rc", "ipvs-proxy 0.1.0-rc"),
    ],
)
def test_documents_name_the_version_where_they_named_the_old_one(text: str, expected: str) -> None:
    assert document_text(text, "0.1.0", "0.3.0") == expected
