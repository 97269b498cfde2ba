"""The files of a release, in ``dist/release-VERSION``, each made from the commit that is checked out."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import yaml

from release.chart_layout import archive, layout
from release.repository import ROOT
from release.version import CannotReleaseError, notes

DIST: Final = ROOT / "dist"
#: What ``make image`` leaves, with the list of its contents beside it.
IMAGE: Final = DIST / "ipvs-proxy.tar"
_HELM: Final = ROOT / ".cache" / "helm"
_KUBECTL: Final = ROOT / ".cache" / "kubectl"


def directory(version: str) -> Path:
    """Return where the files of a version are."""
    return DIST / f"release-{version}"


def write(version: str, revision: str, time: int) -> list[Path]:
    """Write the files of a release anew, with their checksums; return their paths.

    ``time`` is that of the commit, in seconds since 1970: the same commit gives the same chart, layout and manifests.

    Raises:
        CannotReleaseError: if the image or its list of contents is missing, or was not built from this commit.

    """
    check_image(IMAGE, version, revision)
    into = directory(version)
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    for suffix in (".tar", ".cdx.json"):
        shutil.copy(IMAGE.with_suffix(suffix), into / f"ipvs-proxy-{version}{suffix}")
    _write_chart(into, version, revision, time)
    (into / f"ipvs-proxy-{version}.yaml").write_text(_run(_KUBECTL, "kustomize", str(ROOT / "deploy" / "base")))
    (into / "NOTES.md").write_text(notes((ROOT / "CHANGELOG.md").read_text(), version) + "\n")
    files = sorted(into.iterdir())
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
    (into / "SHA256SUMS").write_text(sums)
    return [*files, into / "SHA256SUMS"]


def check_image(path: Path, version: str, revision: str) -> None:
    """Make sure that an image's archive is that of a version and a commit, and that its contents are listed beside it.

    Raises:
        CannotReleaseError: if it is not.

    """
    if not path.exists() or not path.with_suffix(".cdx.json").exists():
        raise CannotReleaseError(f"{path.name} or its list of contents is not in dist: run make image")
    labels = image_labels(path)
    found = labels.get("org.opencontainers.image.version"), labels.get("org.opencontainers.image.revision")
    if found != (version, revision):
        raise CannotReleaseError(
            f"dist/{path.name} is version {found[0]} of commit {found[1]}, not {version} of {revision}: run make image"
        )


def image_labels(path: Path) -> dict[str, str]:
    """Return the labels of the only image in an OCI archive."""
    with tarfile.open(path) as tar:

        def blob(name: str) -> Any:
            member = tar.extractfile(name)
            assert member is not None
            return json.loads(member.read())

        (image,) = blob("index.json")["manifests"]
        manifest = blob(f"blobs/{image['digest'].replace(':', '/')}")
        config = blob(f"blobs/{manifest['config']['digest'].replace(':', '/')}")
    return dict(config.get("config", {}).get("Labels") or {})


def _write_chart(into: Path, version: str, revision: str, time: int) -> None:
    """Pack the chart, and the package as an OCI layout. Helm keeps the times of the files."""
    with TemporaryDirectory() as scratch:
        chart = shutil.copytree(ROOT / "helm" / "ipvs-proxy", Path(scratch, "ipvs-proxy"))
        for path in (chart, *chart.rglob("*")):
            os.utime(path, (time, time))
        _run(_HELM, "package", str(chart), "--destination", str(into))
    package = (into / f"ipvs-proxy-{version}.tgz").read_bytes()
    metadata = yaml.safe_load((ROOT / "helm" / "ipvs-proxy" / "Chart.yaml").read_text())
    created = datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    files = layout(package, metadata, created, revision)
    (into / f"ipvs-proxy-chart-{version}.tar").write_bytes(archive(files, time))


def _run(program: Path, *arguments: str) -> str:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotReleaseError(f"{program.name} {arguments[0]}: {done.stderr.strip()}")
    return done.stdout
