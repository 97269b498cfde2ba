"""The archive for finding faults."""

from __future__ import annotations

import stat
import tarfile
from pathlib import Path

import pytest

from ipvs_proxy.commands import bundle
from ipvs_proxy.commands.doctor import Diagnosis, Level
from ipvs_proxy.state.documents import Differences
from tests.support.answering_agent import NODE, agent, run


def members(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        found = {}
        for entry in archive.getmembers():
            content = archive.extractfile(entry)
            assert content is not None
            found[entry.name.partition("/")[2]] = content.read().decode()
        return found


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bundle, "examine", lambda _: [Diagnosis(Level.OK, "kernel", "fine")])
    monkeypatch.setattr(bundle, "installed_variants", list)
    root = tmp_path / "proc"
    for name, text in {"net/ip_vs": "IPVS", "sys/net/ipv4/vs/conntrack": "1\n", "modules": "ip_vs 1\n"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_bundle_has_what_there_is_and_names_what_is_not(tmp_path: Path, proc: Path) -> None:
    pages = {"state": NODE, "state_differences": Differences(2, []), "configz": b'{"a": 1}', "metrics": b"up 1\n"}
    with agent(**pages) as (address, _):
        path = bundle.write_bundle(address, tmp_path / "b.tar.gz", proc)
    found = members(path)
    assert found["state.json"].count('"name": "web"') == 1
    assert found["configz.json"] == '{"a": 1}'
    assert found["sysctl/net.ipv4.vs.txt"] == "conntrack = 1\n"
    assert found["proc/net/ip_vs.txt"] == "IPVS"
    assert '"fine"' in found["doctor.json"]
    missing = {line.partition(":")[0] for line in found["missing.txt"].splitlines()}
    assert {"flagz.txt", "statusz.txt", "proc/version.txt"} <= missing
    assert not missing & found.keys()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_bundle_is_written_without_an_agent_and_never_over_a_file(tmp_path: Path, proc: Path) -> None:
    path = bundle.write_bundle("127.0.0.1:1", tmp_path / "b.tar.gz", proc)
    assert "metrics.txt: no agent answers at 127.0.0.1:1" in members(path)["missing.txt"]
    done = run("debug-bundle", str(path))
    assert done.exit_code == 1
    assert "File exists" in done.output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abcdef0123456789", "Bearer abcdef"),
        ('{"token": "s3cr3t"}', "s3cr3t"),
        ("password=hunter2 ", "hunter2"),
        ("https://user:hunter2@host/", "hunter2"),
        ("x eyJhbGciOi.eyJzdWIi.c2lnbmF0dXJl y", "eyJzdWIi"),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, expected: str) -> None:
    assert expected not in bundle.masked(text)
    assert "(masked)" in bundle.masked(text)


def test_what_is_no_secret_stays() -> None:
    text = 'service="token-service" 10.96.0.1:443 http://10.0.0.1/path?a@b detectLocalMode: ClusterCIDR\n'
    assert bundle.masked(text) == text
