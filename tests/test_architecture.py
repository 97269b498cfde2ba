"""``docs/architecture.md`` and its picture name rooms and files that exist, and leave no room out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PACKAGE = CHECKOUT / "ipvs_proxy"
DOCUMENT = (CHECKOUT / "docs" / "architecture.md").read_text()
PICTURE = (CHECKOUT / "docs" / "architecture.svg").read_text()
#: A kernel's table, and what is below it, is one room in the picture.
ROOMS = {
    f"{path.parent.relative_to(PACKAGE)}/"
    for path in PACKAGE.rglob("__init__.py")
    if len(path.relative_to(PACKAGE).parts) in {2, 3}
}
MOST_FILES = 4


def test_picture_names_every_room_and_only_those_that_exist():
    assert set(re.findall(r'class="room"[^>]*>([^<]+/)<', PICTURE)) == ROOMS


def test_files_that_the_document_names_exist():
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", DOCUMENT))
    assert len(named) > 30, "the pattern finds the names"
    missing = {name for name in named if not (PACKAGE / name).exists() and not (CHECKOUT / name).exists()}
    assert not missing


@pytest.mark.parametrize("row", re.findall(r"^\| (?:a|an) .*$", DOCUMENT, re.MULTILINE))
def test_what_is_new_goes_into_few_files(row: str):
    _, what, files, *_ = row.split("|")
    assert 1 <= len(re.findall(r"`[\w/]+(?:\.py|/)`", files)) <= MOST_FILES, what
