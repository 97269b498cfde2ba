"""A release from beginning to end in a repository of its own, with the real git, Helm and kustomize; only the image,
whose build takes minutes, is a small one of the same form."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml

from ipvs_proxy import __version__

ROOT = Path(__file__).parents[2]
PARTS = ("CHANGELOG.md", "README.md", "deploy", "docs", "helm", "ipvs_proxy", "release", "tools", ".gitignore")
VERSION = "7.8.9"
COMMITTER = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}


def git(repository: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=repository, env=os.environ | COMMITTER, check=True, capture_output=True, text=True
    ).stdout.strip()


def release(repository: Path, step: str, version: str = VERSION) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "release", step, version],
        cwd=repository,
        env=os.environ | COMMITTER,
        capture_output=True,
        text=True,
        check=False,
    )


def put_image(repository: Path, version: str = VERSION, revision: str | None = None) -> None:
    """Write what ``make image`` leaves, as far as it is looked at."""
    labels = {
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.revision": revision or git(repository, "rev-parse", "HEAD"),
    }
    config = json.dumps({"config": {"Labels": labels}}).encode()
    manifest = json.dumps({"config": {"digest": f"sha256:{hashlib.sha256(config).hexdigest()}"}}).encode()
    digest = hashlib.sha256(manifest).hexdigest()
    files = {
        "index.json": json.dumps({"manifests": [{"digest": f"sha256:{digest}"}]}).encode(),
        f"blobs/sha256/{digest}": manifest,
        f"blobs/sha256/{hashlib.sha256(config).hexdigest()}": config,
    }
    (repository / "dist").mkdir(exist_ok=True)
    with tarfile.open(repository / "dist/ipvs-proxy.tar", "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (repository / "dist/ipvs-proxy.cdx.json").write_text('{"bomFormat": "CycloneDX"}\n')


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working tree as one commit; its changelog has something that no release has yet."""
    path = tmp_path_factory.mktemp("pristine")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, path / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, path / part)
    changelog = path / "CHANGELOG.md"
    head, _, rest = changelog.read_text().partition("\n\n")
    changelog.write_text(
        f"{head}\n\n## Next (unreleased)\n\n* A change: new.\n\n{rest.replace(' (unreleased)', ' (2026-01-01)')}"
    )
    git(path, "init", "--quiet", "--initial-branch=main")
    git(path, "add", "--all")
    git(path, "commit", "--quiet", "--message", "All of it")
    (path / ".cache").symlink_to((ROOT / ".cache").resolve())
    git(path, "config", "core.excludesFile", str(path / ".git/info/more"))
    (path / ".git/info/more").write_text(".cache\ndist\n")
    return path


@pytest.fixture
def repository(pristine: Path, tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    shutil.copytree(pristine, path, symlinks=True)
    git(path, "config", "core.excludesFile", str(path / ".git/info/more"))
    return path


def test_a_release_is_a_commit_its_files_and_a_tag(repository: Path) -> None:
    done = release(repository, "prepare")
    assert done.returncode == 0, done.stderr
    assert git(repository, "log", "-1", "--format=%s") == f"Release {VERSION}"
    assert git(repository, "status", "--porcelain") == ""
    put_image(repository)
    done = release(repository, "finish")
    assert done.returncode == 0, done.stderr
    assert git(repository, "rev-parse", f"v{VERSION}^{{commit}}") == git(repository, "rev-parse", "HEAD")

    into = repository / f"dist/release-{VERSION}"
    assert sorted(path.name for path in into.iterdir()) == [
        "NOTES.md",
        "SHA256SUMS",
        f"ipvs-proxy-{VERSION}.cdx.json",
        f"ipvs-proxy-{VERSION}.tar",
        f"ipvs-proxy-{VERSION}.tgz",
        f"ipvs-proxy-{VERSION}.yaml",
        f"ipvs-proxy-chart-{VERSION}.tar",
    ]
    assert (into / "NOTES.md").read_text() == "* A change: new.\n"
    sums = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=into, capture_output=True, check=False
    )
    assert sums.returncode == 0, sums.stdout
    (chart,) = yaml.safe_load_all(helm("show", "chart", into / f"ipvs-proxy-{VERSION}.tgz"))
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)
    assert yaml.safe_load(chart["annotations"]["artifacthub.io/changes"]) == ["A change: new."]
    manifests = list(yaml.safe_load_all((into / f"ipvs-proxy-{VERSION}.yaml").read_text()))
    (agents,) = [document for document in manifests if document["kind"] == "DaemonSet"]
    assert agents["spec"]["template"]["spec"]["containers"][0]["image"] == f"ipvs-proxy:{VERSION}"


def test_the_version_is_wherever_the_old_one_was(repository: Path) -> None:
    release(repository, "prepare")
    for name in ("README.md", "docs/migration.md", "docs/troubleshooting.md"):
        assert f"ipvs-proxy {__version__}" not in (text := (repository / name).read_text()), name
        assert f"ipvs-proxy:{__version__}" not in text, name
        assert VERSION in text, name
    found = subprocess.run(
        [sys.executable, "-m", "ipvs_proxy", "--version"], cwd=repository, capture_output=True, text=True, check=True
    )
    assert found.stdout == f"ipvs-proxy {VERSION}\n"
    base = (repository / "deploy/base/daemonset.yaml").read_text()
    assert f"ipvs-proxy:{VERSION}" in base
    assert __version__ not in base


def test_it_can_be_repeated(repository: Path) -> None:
    assert release(repository, "prepare").returncode == 0
    put_image(repository)
    release(repository, "finish")
    head = git(repository, "rev-parse", "HEAD")
    # So make release does not build another image, which would have another digest.
    assert release(repository, "built").returncode == 0
    into = repository / f"dist/release-{VERSION}"
    sums = (into / "SHA256SUMS").read_text()
    shutil.rmtree(into)
    for path in (repository / "helm").rglob("*"):
        os.utime(path)
    done = release(repository, "prepare")
    assert (done.returncode, f"is {VERSION} already" in done.stdout) == (0, True), done.stderr
    assert release(repository, "finish").returncode == 0
    assert git(repository, "rev-parse", "HEAD") == head
    assert (into / "SHA256SUMS").read_text() == sums


@pytest.mark.parametrize("name", ["README.md", "a file that git does not know"])
def test_a_tree_with_changes_is_refused(repository: Path, name: str) -> None:
    (repository / name).write_text("changed")
    done = release(repository, "prepare")
    assert (done.returncode, "changes that are not committed" in done.stderr) == (1, True), done.stderr
    assert git(repository, "log", "-1", "--format=%s") == "All of it"


def test_a_version_that_there_is_is_refused(repository: Path) -> None:
    git(repository, "tag", f"v{VERSION}")
    done = release(repository, "prepare")
    assert (done.returncode, f"v{VERSION} is another commit" in done.stderr) == (1, True), done.stderr
    # Without its tag, as in a shallow clone, the changelog still knows it.
    done = release(repository, "prepare", __version__)
    assert (done.returncode, f"a section of {__version__} already" in done.stderr) == (1, True), done.stderr
    assert git(repository, "status", "--porcelain") == ""


@pytest.mark.parametrize(("version", "revision"), [("7.8.8", None), (VERSION, "0" * 40), (VERSION, "-dirty")], ids=str)
def test_an_image_of_another_commit_is_refused(repository: Path, version: str, revision: str | None) -> None:
    release(repository, "prepare")
    head = git(repository, "rev-parse", "HEAD")
    put_image(repository, version, head + revision if revision == "-dirty" else revision)
    for step in ("built", "finish"):
        done = release(repository, step)
        assert (done.returncode, "run make image" in done.stderr) == (1, True), done.stderr
    assert git(repository, "tag") == ""


def test_nothing_is_finished_that_is_not_prepared(repository: Path) -> None:
    put_image(repository)
    done = release(repository, "finish")
    assert (done.returncode, "is not the commit of" in done.stderr) == (1, True), done.stderr
    assert release(repository, "prepare", "1.2").returncode == 1


def helm(*arguments: object) -> str:
    command = [ROOT / ".cache/helm", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def registry(layout: Path) -> Iterator[int]:
    """A registry that has one OCI layout under any name, as far as pulling goes (OCI distribution specification)."""
    with tarfile.open(layout) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    (named,) = json.loads(files["index.json"])["manifests"]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, _, reference = self.path.removeprefix("/v2/").rpartition("/")
            if kind.endswith("/manifests") and not reference.startswith("sha256:"):
                assert reference == named["annotations"]["org.opencontainers.image.ref.name"]
                reference = named["digest"]
            body = files.get(f"blobs/{reference.replace(':', '/')}", b"")
            self.send_response(200 if body or self.path == "/v2/" else 404)
            kind = named["mediaType"] if kind.endswith("/manifests") else "application/octet-stream"
            self.send_header("Content-Type", kind)
            self.send_header("Docker-Content-Digest", reference)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_helm_pulls_the_chart_from_a_registry_with_the_layout(repository: Path, tmp_path: Path) -> None:
    release(repository, "prepare")
    put_image(repository)
    release(repository, "finish")
    into = repository / f"dist/release-{VERSION}"
    with registry(into / f"ipvs-proxy-chart-{VERSION}.tar") as port:
        where = f"oci://127.0.0.1:{port}/charts/ipvs-proxy"
        helm("pull", where, "--version", VERSION, "--plain-http", "--destination", tmp_path)
    package = f"ipvs-proxy-{VERSION}.tgz"
    assert (tmp_path / package).read_bytes() == (into / package).read_bytes()
