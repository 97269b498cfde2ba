"""The cache of the test kernel, with a source that compiles in no time: whole, of this configuration, built once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from lab import build

#: What ``make ARCH=um`` of a kernel does, in small: the configuration is what was asked for, and each build leaves a line.
MAKEFILE = """\
allnoconfig:
\tgrep -v '{dropped}' $(KCONFIG_ALLCONFIG) >.config
linux:
\techo built >>{log}
\t@sleep {seconds}
\tcp /bin/true linux
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = Source(tmp_path / "builds")
    monkeypatch.setattr(build, "_fetch", source.fetch)
    monkeypatch.setattr(build, "install", lambda *_: None)
    return source


class Source:
    """Stands in for Debian's kernel source, which takes minutes to fetch and to compile."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.dropped = "nothing"
        self.seconds = 0.0

    def fetch(self, home: Path) -> tuple[str, Path]:
        directory = home / "source"
        directory.mkdir()
        text = MAKEFILE.format(dropped=self.dropped, log=self.log, seconds=self.seconds)
        (directory / "Makefile").write_text(text)
        return "7.2.99-1", directory

    @property
    def builds(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


def test_a_kernel_is_built_once_and_found_from_then_on(source: Source) -> None:
    assert build.built() is None
    kernel = build.build()
    assert kernel.name == "linux"
    assert kernel.parent.name.startswith("7.2.99-1-")
    assert build.built() == kernel
    assert build.build() == kernel
    assert source.builds == 1
    assert sorted(path.name for path in kernel.parent.iterdir()) == ["config", "linux", "linux.sha256"]
    assert sorted(path.name for path in build.cache().iterdir()) == [kernel.parent.name, "lock"]


def test_another_configuration_is_another_kernel(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build.build()
    changed = tmp_path / "kernel.config"
    changed.write_text(build.FRAGMENT.read_text() + "CONFIG_ANOTHER=y\n")
    monkeypatch.setattr(build, "FRAGMENT", changed)
    assert build.built() is None
    assert build.build() != first
    assert source.builds == 2


@pytest.mark.parametrize("damage", ["cut", "without checksum", "gone"])
def test_a_damaged_kernel_is_built_again(damage: str, source: Source) -> None:
    kernel = build.build()
    if damage == "cut":
        kernel.write_bytes(kernel.read_bytes()[:1000])
    else:
        (kernel if damage == "gone" else kernel.with_name("linux.sha256")).unlink()
    assert build.built() is None
    assert build.build() == kernel
    assert build.built() == kernel
    assert source.builds == 2


def test_what_a_build_that_was_killed_left_behind_goes(source: Source) -> None:
    abandoned = build.cache() / "building-abandoned"
    abandoned.mkdir(parents=True)
    (abandoned / "linux").write_text("half")
    build.build()
    assert not abandoned.exists()


def test_two_builds_at_a_time_are_one(source: Source, capfd: pytest.CaptureFixture[str]) -> None:
    source.seconds = 0.5
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(build.build())) for _ in "12"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert len(set(found)) == 1
    assert source.builds == 1
    assert "another build is going on, waiting for it" in capfd.readouterr().err


def test_a_source_that_does_not_know_an_option_is_refused_by_its_name(source: Source) -> None:
    source.dropped = "CONFIG_IP_VS_MH="
    with pytest.raises(SystemExit, match="this source does not take CONFIG_IP_VS_MH=y"):
        build.build()
    assert build.built() is None


def test_a_source_that_does_not_compile_ends_with_makes_last_words(source: Source) -> None:
    source.seconds = "no-number"  # type: ignore[assignment]
    with pytest.raises(SystemExit, match="invalid time interval"):
        build.build()
    assert build.built() is None


def test_it_says_what_it_does(
    source: Source, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "PROGRESS", 0.0)
    kernel = build.build()
    said = capfd.readouterr().err
    assert "kernel: compiling Linux 7.2.99-1 (once for this machine" in said
    assert "% compiled\n" in said
    assert f"s: {kernel.parent}\n" in said
