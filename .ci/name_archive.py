"""Writes the full name of an image into an OCI archive: ``name_archive.py REGISTRY/PATH:TAG [ARCHIVE]``.

Without an archive the name is only checked. containerd names what it imports after the annotation
``io.containerd.image.name``, podman and skopeo after ``org.opencontainers.image.ref.name`` (OCI image specification,
annotations). Nothing else in the archive changes.
"""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
from pathlib import Path
from typing import Final

INDEX: Final = "index.json"
#: A registry is told from a path by a dot, a port, or by being localhost (distribution/reference).
_NAME: Final = re.compile(
    r"(localhost|[\w-]+(\.[\w-]+)+|[\w-]+(?=:\d))(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+:[\w][\w.-]{0,127}"
)


def check_name(name: str) -> None:
    """Make sure that a name has a registry, a path and a tag.

    Raises:
        ValueError: if it does not.

    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not REGISTRY/PATH:TAG, such as registry.example/net/ipvs-proxy:1.0")


def name_archive(name: str, archive: Path) -> None:
    """Set the annotations of the only image in an archive.

    Raises:
        ValueError: if there is not one image.

    """
    scratch = archive.with_suffix(".new")
    with tarfile.open(archive) as source, tarfile.open(scratch, "w") as target:
        for member in source:
            content = source.extractfile(member)
            if member.name == INDEX and content is not None:
                named = _named(content.read(), name)
                member.size, content = len(named), io.BytesIO(named)
            target.addfile(member, content)
    scratch.replace(archive)


def _named(text: bytes, name: str) -> bytes:
    index = json.loads(text)
    (image,) = index["manifests"]
    image["annotations"] = image.get("annotations", {}) | {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name,
    }
    return json.dumps(index).encode()


if __name__ == "__main__":
    try:
        check_name(sys.argv[1])
        for archive in sys.argv[2:]:
            name_archive(sys.argv[1], Path(archive))
    except ValueError as error:
        sys.exit(f"image: {error}")
