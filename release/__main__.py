"""``python -m release prepare|built|finish VERSION``: what comes before and after the build of the image.

``prepare`` refuses a tree with changes and a version that there is already, writes the version and the changelog's
date, and commits. ``built`` ends well if the image of that commit is there. ``finish`` writes the files of the release
and tags the commit. All can be repeated: on the commit of the release ``prepare`` does nothing, and ``finish`` writes
the same files.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from release import artefacts, repository
from release.repository import ROOT
from release.version import (
    VERSION,
    CannotReleaseError,
    changelog_text,
    changes,
    chart_text,
    document_text,
    package_text,
    version_of,
)
from tools import kustomize


def main(arguments: list[str]) -> None:
    """Do one of the three."""
    steps = {"prepare": prepare, "built": built, "finish": finish}
    if len(arguments) != 2 or arguments[0] not in steps:
        sys.exit((__doc__ or "").strip())
    step, version = arguments
    if not VERSION.fullmatch(version):
        sys.exit(f"release: {version!r} is no version, wanted X.Y.Z: make release VERSION=1.2.3")
    try:
        steps[step](version)
    except CannotReleaseError as error:
        sys.exit(f"release: {error}")


def prepare(version: str) -> None:
    """Commit the version, unless the commit that is checked out is its release."""
    if not repository.is_clean():
        raise CannotReleaseError("there are changes that are not committed, see git status")
    if is_released(version):
        print(f"release: this commit is {version} already")
        return
    if repository.tagged(version) is not None:
        raise CannotReleaseError(f"{repository.tag(version)} is another commit: choose another version")
    texts = dict(written(version, datetime.now(UTC).strftime("%Y-%m-%d")))
    _write(texts)
    # The base follows from the chart, as it is now.
    base = kustomize.written()
    _write(base)
    repository.commit(version, [*texts, *base])
    print(f"release: {version} is committed as {repository.head()[:12]}")


def is_released(version: str) -> bool:
    """Return whether the commit that is checked out is the release of a version."""
    tagged = repository.tagged(version)
    return repository.head_subject() == repository.subject(version) and tagged in {None, repository.head()}


def built(version: str) -> None:
    """Raise CannotReleaseError unless the image of this commit is there: a second one has another digest."""
    artefacts.check_image(artefacts.IMAGE, version, repository.head())


def finish(version: str) -> None:
    """Write the files of the release and tag it."""
    if not is_released(version) or not repository.is_clean():
        raise CannotReleaseError(f"this is not the commit of {version}: run make release VERSION={version}")
    for path in artefacts.write(version, repository.head(), repository.head_time()):
        print(f"release: {path.relative_to(ROOT)} ({path.stat().st_size:,} bytes)")
    if repository.tagged(version) is None:
        repository.set_tag(version)
    print(f"release: {repository.tag(version)} is {repository.head()[:12]}; nothing has been pushed")


def written(version: str, date: str) -> Mapping[Path, str]:
    """Return the texts that a version changes."""
    package, changelog, chart = (
        ROOT / name for name in ("ipvs_proxy/__init__.py", "CHANGELOG.md", "helm/ipvs-proxy/Chart.yaml")
    )
    old = version_of(package.read_text())
    dated = changelog_text(changelog.read_text(), version, date)
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return {
        package: package_text(package.read_text(), version),
        changelog: dated,
        chart: chart_text(chart.read_text(), version, changes(dated, version)),
        **{path: document_text(path.read_text(), old, version) for path in documents},
    }


def _write(texts: Mapping[Path, str]) -> None:
    for path, text in texts.items():
        path.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
