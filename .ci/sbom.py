"""Lists what is in a root file system as CycloneDX: the packages of Debian and of Python.

python .ci/sbom.py ROOTFS VERSION > FILE
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

FIELDS = "${db:Status-Status}\t${Package}\t${Version}\t${Architecture}\t${source:Package}\t${source:Version}\n"


def debian_packages(root: Path) -> list[Component]:
    """Return the packages that dpkg has installed there."""
    release = dict(line.split("=", 1) for line in (root / "etc/os-release").read_text().splitlines() if "=" in line)
    distro = "debian-" + release["VERSION_ID"].strip('"')
    command = ["dpkg-query", f"--admindir={root / 'var/lib/dpkg'}", "--show", f"--showformat={FIELDS}"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    components = []
    for line in printed.splitlines():
        status, name, version, architecture, source, source_version = line.split("\t")
        if status == "installed":
            qualifiers = {"arch": architecture, "distro": distro}
            if (source, source_version) != (name, version):
                qualifiers["upstream"] = f"{source}@{source_version}"
            components.append(
                _component(name, version, PackageURL("deb", "debian", name, version, qualifiers=qualifiers))
            )
    return components


def python_packages(root: Path) -> list[Component]:
    """Return the distributions in the virtual environment."""
    folders = [str(folder) for folder in root.glob("opt/ipvs-proxy/lib/python3*/site-packages")]
    return [_python_package(found) for found in distributions(path=folders)]


def _python_package(found: Distribution) -> Component:
    name, version = found.metadata["Name"], found.version
    component = _component(name, version, PackageURL("pypi", None, name.lower().replace("_", "-"), version))
    expression = found.metadata["License-Expression"]
    if expression:
        component.licenses.add(LicenseFactory().make_from_string(expression))
    return component


def _component(name: str, version: str, purl: PackageURL) -> Component:
    return Component(name=name, version=version, purl=purl, bom_ref=purl.to_string(), type=ComponentType.LIBRARY)


def main() -> None:
    """Write the list, once it is valid."""
    root, version = Path(sys.argv[1]), sys.argv[2]
    own = Component(name="ipvs-proxy", version=version, type=ComponentType.CONTAINER, bom_ref="ipvs-proxy-image")
    packages = debian_packages(root) + python_packages(root)
    bom = Bom(components=packages)
    bom.metadata.component = own
    # The same image gives the same list.
    bom.metadata.timestamp = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), UTC)
    bom.serial_number = uuid5(NAMESPACE_URL, "\n".join(sorted(str(package.purl) for package in packages)))
    bom.register_dependency(own, packages)
    text = JsonV1Dot6(bom).output_as_string(indent=2)
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error:
        sys.exit(f"sbom: not valid: {error}")
    print(text)


if __name__ == "__main__":
    main()
