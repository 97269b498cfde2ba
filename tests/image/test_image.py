"""The image that ``make image`` built: what is in it, what is not, and that it runs from a read-only root."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from packaging.requirements import Requirement

from ipvs_proxy import __version__

ROOT = Path(__file__).parents[2]
ROOTFS = ROOT / "dist/rootfs"
SBOM = ROOT / "dist/ipvs-proxy.cdx.json"
ARCHIVE = ROOT / "dist/ipvs-proxy.tar"
#: In MiB: the README states what it is.
LARGEST_ROOTFS, LARGEST_ARCHIVE = 220, 90


@pytest.fixture(autouse=True, scope="module")
def built() -> None:
    assert ROOTFS.is_dir(), f"{ROOTFS} is missing, run: make image"


def inside(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the image as its root, which it cannot write, and a memory file system for /tmp."""
    script = (
        'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && mount -t proc none "$0/proc" && '
        'mount -t tmpfs none "$0/tmp" && exec chroot "$0" "$@"'
    )
    return subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "sh", "-c", script, str(ROOTFS), *command],
        env={"PATH": "/opt/ipvs-proxy/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def files() -> Iterator[Path]:
    """Return everything in the image, as its own paths."""
    for folder, _, names in os.walk(ROOTFS):
        for name in names:
            yield Path("/") / Path(folder, name).relative_to(ROOTFS)


def test_it_says_its_version_and_its_flags() -> None:
    assert inside("ipvs-proxy", "--version").stdout == f"ipvs-proxy {__version__}\n"
    assert "--ipvs-scheduler" in inside("ipvs-proxy", "run", "--help").stdout


def test_it_asks_an_agent_as_nobody() -> None:
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all")
    done = inside(*nobody, "ipvs-proxy", "status", "--agent=127.0.0.1:1")
    assert (done.returncode, "no agent answers at 127.0.0.1:1" in done.stderr) == (1, True), done.stderr


def test_everything_of_the_agent_can_be_imported() -> None:
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "ipvs_proxy").rglob("*.py")
        if path.name not in {"__main__.py", "__init__.py"}
    )
    code = "import importlib\n" + "".join(f"importlib.import_module({name!r})\n" for name in modules)
    code += "from kubernetes_asyncio.config import load_kube_config\n"
    done = inside("/opt/ipvs-proxy/bin/python", "-c", code)
    assert done.returncode == 0, done.stderr


def test_byte_code_is_there_for_all_of_it() -> None:
    package = next(ROOTFS.glob("opt/ipvs-proxy/lib/python3*/site-packages/ipvs_proxy"))
    for source in package.rglob("*.py"):
        assert list((source.parent / "__pycache__").glob(f"{source.stem}.*.pyc")), source


def test_both_variants_of_iptables_are_there() -> None:
    for program in ("iptables-nft-restore", "iptables-legacy-restore", "ip6tables-nft-save", "ip6tables-legacy-save"):
        variant = "legacy" if "legacy" in program else "nf_tables"
        assert f"({variant})" in inside(program, "--version").stdout
    assert inside("modprobe", "--version").returncode == 0


def test_program_of_nftables_is_there() -> None:
    assert inside("nft", "--version").stdout.startswith("nftables v")


def test_nothing_to_build_or_install_with_and_no_other_programs_of_ours() -> None:
    names = {path.name for path in files()}
    assert names.isdisjoint({"gcc", "cc", "ld", "make", "pip", "pip3", "easy_install", "uv", "curl", "wget"})
    packages = {path.parts[-2] for path in files() if path.match("*.dist-info/METADATA")}
    assert not [name for name in packages if re.match(r"(pip|setuptools|wheel|hatchling|pytest|mypy)-", name)]
    programs = {path.name for path in files() if path.parent == Path("/opt/ipvs-proxy/bin")}
    assert programs <= {"ipvs-proxy", "python", "python3"} | {f"python3.{minor}" for minor in range(11, 20)}


def test_no_file_is_writable_by_others() -> None:
    loose = [
        path
        for path in files()
        if (mode := (ROOTFS / path.relative_to("/")).lstat().st_mode) & 0o2 and not mode & 0o20000
    ]
    assert [path for path in loose if not (ROOTFS / path.relative_to("/")).is_symlink()] == []


def test_it_is_as_small_as_stated() -> None:
    size = sum((ROOTFS / path.relative_to("/")).lstat().st_size for path in files()) / 2**20
    assert size < LARGEST_ROOTFS
    assert ARCHIVE.stat().st_size / 2**20 < LARGEST_ARCHIVE


def test_list_of_contents_is_what_dpkg_and_python_say() -> None:
    components = json.loads(SBOM.read_text())["components"]
    listed = {unquote(component["purl"]).partition("?")[0] for component in components}
    lines = inside("dpkg-query", "--show", "--showformat=${Package} ${Version}\n").stdout.splitlines()
    code = (
        "from importlib.metadata import distributions\nfor d in distributions(): print(d.metadata['Name'], d.version)"
    )
    python = inside("/opt/ipvs-proxy/bin/python", "-c", code).stdout.splitlines()
    found = {f"pkg:deb/debian/{name}" for name, _ in map(str.split, lines)}
    assert len(found) > 50
    assert {purl.partition("@")[0] for purl in listed if purl.startswith("pkg:deb")} == found
    ours = {f"pkg:pypi/{name.lower().replace('_', '-')}@{version}" for name, version in map(str.split, python)}
    assert {purl for purl in listed if purl.startswith("pkg:pypi")} == ours
    assert f"pkg:pypi/ipvs-proxy@{__version__}" in ours


def test_archive_has_the_name_that_a_node_looks_for() -> None:
    with tarfile.open(ARCHIVE) as archive:
        index = archive.extractfile("index.json")
        assert index is not None
        (image,) = json.loads(index.read())["manifests"]
    name = image["annotations"]["io.containerd.image.name"]
    assert name == image["annotations"]["org.opencontainers.image.ref.name"]
    assert re.fullmatch(rf"[^/]*[.:][^/]*/\S+:{re.escape(__version__)}", name), f"{name} has no registry or version"


def test_labels_and_annotations_say_where_it_comes_from() -> None:
    with tarfile.open(ARCHIVE) as archive:

        def blob(name: str) -> Any:
            member = archive.extractfile(name)
            assert member is not None
            return json.loads(member.read())

        (image,) = blob("index.json")["manifests"]
        manifest = blob(f"blobs/{image['digest'].replace(':', '/')}")
        config = blob(f"blobs/{manifest['config']['digest'].replace(':', '/')}")
    prefix = "org.opencontainers.image."
    labels = {name.removeprefix(prefix): text for name, text in config["config"]["Labels"].items()}
    annotations = {name.removeprefix(prefix): text for name, text in manifest["annotations"].items()}
    assert labels["version"] == annotations["version"] == __version__
    assert labels["revision"] == annotations["revision"]
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", labels["revision"])
    assert labels["created"] == annotations["created"] == config["created"]
    assert labels.keys() >= {"title", "description", "licenses"}
    assert annotations["base.name"]
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", annotations["base.digest"])


def locked(name: str) -> dict[str, tuple[str, int]]:
    """Return version and number of hashes of each distribution in a lock file."""
    found = {}
    for block in re.split(r"\n(?=\S)", (ROOT / name).read_text()):
        match = re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", block)
        if match:
            found[match[1].lower().replace("_", "-")] = (match[2], block.count("--hash=sha256:"))
    return found


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-build.lock"])
def test_every_version_is_locked_with_hashes(name: str) -> None:
    distributions = locked(name)
    assert distributions
    assert all(hashes for _, hashes in distributions.values())


def test_lock_has_what_the_project_needs_in_versions_that_it_takes() -> None:
    distributions = locked("requirements.lock")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"]:
        requirement = Requirement(text)
        version, _ = distributions[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(version), text
