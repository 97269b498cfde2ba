"""A chart's package as an OCI image layout, in one archive: what ``helm push`` would send to a registry.

Media types are Helm's (HIP-6), the rest is the OCI image layout and image manifest specification, 1.0. The same package
gives the same bytes. ``skopeo copy oci-archive:FILE docker://REGISTRY/PATH/ipvs-proxy:VERSION`` sends it.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from typing import Any, Final

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG: Final = "application/vnd.cncf.helm.config.v1+json"
CHART: Final = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"


def layout(package: bytes, metadata: Mapping[str, Any], created: str, revision: str) -> dict[str, bytes]:
    """Return the files of the layout by their paths.

    ``metadata`` is the chart's ``Chart.yaml``, ``created`` an RFC 3339 time, ``revision`` a commit.
    """
    config = json.dumps(metadata, separators=(",", ":")).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": _descriptor(config, CONFIG),
            "layers": [_descriptor(package, CHART)],
            "annotations": {
                "org.opencontainers.image.created": created,
                "org.opencontainers.image.description": metadata["description"],
                "org.opencontainers.image.revision": revision,
                "org.opencontainers.image.title": metadata["name"],
                "org.opencontainers.image.version": metadata["version"],
            },
        }
    ).encode()
    named = _descriptor(manifest, MANIFEST) | {
        "annotations": {"org.opencontainers.image.ref.name": metadata["version"]}
    }
    index = {"schemaVersion": 2, "manifests": [named]}
    files = {
        "oci-layout": json.dumps({"imageLayoutVersion": "1.0.0"}).encode(),
        "index.json": json.dumps(index).encode(),
    }
    return files | {f"blobs/{_digest(blob).replace(':', '/')}": blob for blob in (config, package, manifest)}


def archive(files: Mapping[str, bytes], time: int) -> bytes:
    """Return a tar archive of files, all of one time (seconds since 1970) and nobody's."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.mode = len(content), time, 0o644
            tar.addfile(member, io.BytesIO(content))
    return written.getvalue()


def _descriptor(blob: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"
