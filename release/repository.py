"""What a release asks of git, and does with it. Nothing is pushed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from release.version import CannotReleaseError

ROOT: Final = Path(__file__).parents[1]


def tag(version: str) -> str:
    """Return the name of a version's tag."""
    return f"v{version}"


def subject(version: str) -> str:
    """Return the subject of the commit that is a release."""
    return f"Release {version}"


def is_clean() -> bool:
    """Return whether the tree is that of the commit, and has no file that git does not know."""
    return not _git("status", "--porcelain")


def head() -> str:
    """Return the commit that is checked out."""
    return _git("rev-parse", "HEAD")


def head_subject() -> str:
    """Return the first line of what that commit says."""
    return _git("log", "-1", "--format=%s")


def head_time() -> int:
    """Return when it was committed, in seconds since 1970."""
    return int(_git("log", "-1", "--format=%ct"))


def tagged(version: str) -> str | None:
    """Return the commit that has the tag of a version, or None."""
    found = _git("tag", "--list", tag(version))
    return _git("rev-parse", f"{tag(version)}^{{commit}}") if found else None


def commit(version: str, paths: Iterable[Path]) -> None:
    """Commit the release."""
    _git("add", "--", *map(str, paths))
    _git("commit", "--quiet", "--message", subject(version))


def set_tag(version: str) -> None:
    """Tag the commit that is checked out."""
    _git("tag", "--annotate", "--message", subject(version), tag(version))


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CannotReleaseError(f"git {arguments[0]}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()
