"""The name that ``make image`` writes into its archive."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci/name_archive.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)


def archive(path: Path, *manifests: dict[str, object]) -> dict[str, str]:
    """Write an archive as buildah does; return the digests of what is in it beside the index."""
    files = {
        "blobs/sha256/00": b"layer" * 50_000,
        "index.json": json.dumps({"schemaVersion": 2, "manifests": manifests}).encode(),
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
    }
    with tarfile.open(path, "w") as written:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            written.addfile(member, io.BytesIO(content))
    return digests(path)


def digests(path: Path) -> dict[str, str]:
    with tarfile.open(path) as read:
        contents = {member.name: read.extractfile(member).read() for member in read}  # type: ignore[union-attr]
    del contents["index.json"]
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


@pytest.mark.parametrize(
    "name",
    ["docker.io/library/ipvs-proxy:0.1.0", "registry.example:5000/net/ipvs-proxy:0.1.0", "localhost/ipvs-proxy:1"],
)
def test_full_name_is_written_for_containerd_and_for_others_and_the_rest_stays(tmp_path: Path, name: str) -> None:
    path = tmp_path / "image.tar"
    before = archive(path, {"digest": "sha256:00", "size": 1, "annotations": {"kept": "yes"}})
    done = run(name, path)
    assert (done.returncode, done.stderr) == (0, "")
    with tarfile.open(path) as read:
        (image,) = json.loads(read.extractfile("index.json").read())["manifests"]  # type: ignore[union-attr]
    names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
    assert image == {"digest": "sha256:00", "size": 1, "annotations": {"kept": "yes", **names}}
    assert digests(path) == before
    assert [found.name for found in tmp_path.iterdir()] == ["image.tar"]


@pytest.mark.parametrize(
    "name", ["ipvs-proxy:0.1.0", "library/ipvs-proxy:0.1.0", "docker.io/library/ipvs-proxy", "x/y:"]
)
def test_name_that_a_node_would_not_find_is_refused(name: str) -> None:
    done = run(name)
    assert done.returncode == 1
    assert done.stderr == f"image: {name!r} is not REGISTRY/PATH:TAG, such as registry.example/net/ipvs-proxy:1.0\n"
