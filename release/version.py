"""What a release changes in the texts of the repository. Pure: texts in, texts out.

The version stands in the package, in the chart, and in commands and outputs of documents; the changes that no release
has yet are the first section of ``CHANGELOG.md``, whose heading ends in ``(unreleased)``.
"""

from __future__ import annotations

import json
import re
from typing import Final

#: As the chart, the image's tag and the Python package can all have it (Semantic Versioning 2.0.0, without suffixes).
VERSION: Final = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
_UNRELEASED: Final = re.compile(r"^## .*\(unreleased\)$", re.MULTILINE)
_SECTION: Final = re.compile(r"^## ", re.MULTILINE)


class CannotReleaseError(Exception):
    """Why there can be no release; the text says what to do."""


def version_of(package: str) -> str:
    """Return the version that the text of ``ipvs_proxy/__init__.py`` states."""
    found = re.search(r'^__version__ = "(.*)"$', package, re.MULTILINE)
    if found is None:
        raise CannotReleaseError("ipvs_proxy/__init__.py states no __version__")
    return found[1]


def package_text(package: str, version: str) -> str:
    """Return the text of ``ipvs_proxy/__init__.py`` with a version."""
    return re.sub(r'^(__version__ = ").*(")$', rf"\g<1>{version}\g<2>", package, flags=re.MULTILINE)


def changelog_text(changelog: str, version: str, date: str) -> str:
    """Return the changelog with its unreleased section as that of a version.

    Raises:
        CannotReleaseError: if there is no such section, nothing in it, or one of this version already.

    """
    if released(changelog, version):
        raise CannotReleaseError(f"CHANGELOG.md has a section of {version} already: choose another version")
    first = _SECTION.search(changelog)
    heading = _UNRELEASED.search(changelog)
    if heading is None or first is None or heading.start() != first.start():
        raise CannotReleaseError("CHANGELOG.md does not begin with a section whose heading ends in (unreleased)")
    dated = f"{changelog[: heading.start()]}## {version} ({date}){changelog[heading.end() :]}"
    if not changes(dated, version):
        raise CannotReleaseError("the unreleased section of CHANGELOG.md has no change in it")
    return dated


def released(changelog: str, version: str) -> bool:
    """Return whether a changelog has the section of a version with its date."""
    return re.search(rf"^## {re.escape(version)} \(\d", changelog, re.MULTILINE) is not None


def notes(changelog: str, version: str) -> str:
    """Return the section of a version, without its heading; empty if there is none."""
    found = re.search(rf"^## {re.escape(version)} [^\n]*\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else ""


def changes(changelog: str, version: str) -> list[str]:
    """Return the changes in the section of a version, each on one line."""
    points = re.split(r"^\* ", notes(changelog, version), flags=re.MULTILINE)[1:]
    return [" ".join(point.split()) for point in points]


def chart_text(chart: str, version: str, changed: list[str]) -> str:
    """Return the text of ``Chart.yaml`` with a version, and what changed as Artifact Hub reads it."""
    text = re.sub(r"^(version|appVersion): .*$", rf"\1: {version}", chart, flags=re.MULTILINE)
    text = re.sub(r"^( +image: ipvs-proxy:).*$", rf"\g<1>{version}", text, flags=re.MULTILINE)
    text = re.sub(r"^  artifacthub\.io/changes: \|\n(    .*\n)*", "", text, flags=re.MULTILINE)
    # A JSON string is one of YAML too.
    lines = "".join(f"    - {json.dumps(change, ensure_ascii=False)}\n" for change in changed)
    return text.replace("annotations:\n", f"annotations:\n  artifacthub.io/changes: |\n{lines}", 1)


def document_text(document: str, old: str, version: str) -> str:
    """Return a document whose commands and outputs name a version: ``ipvs-proxy:X``, ``ipvs-proxy-X.tgz``."""
    return re.sub(rf"(\bipvs-proxy[ :-]){re.escape(old)}(?![\d-])(?!\.\d)", rf"\g<1>{version}", document)
