"""How the agent quotes what others wrote."""

from __future__ import annotations

import pytest

from ipvs_proxy.kube.texts import QUOTED, control_character, quote


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("shop/web", "shop/web"),
        ("naïve ☃", "naïve ☃"),
        ("a\nb\t\0\x1b[31m", "a\\nb\\t\\x00\\x1b[31m"),
        ("\ud800", "\\ud800"),
        ("\u202eabc", "\\u202eabc"),
        ("x" * QUOTED, "x" * QUOTED),
        ("x" * 250_000, "x" * QUOTED + "... (250,000 characters)"),
        ("\0" * 100, "\\x00" * 50 + "... (100 characters)"),
    ],
    ids=range(9),
)
def test_a_text_is_quoted_in_one_bounded_line_of_utf8(text: str, shown: str) -> None:
    assert quote(text) == shown
    quote(text).encode()


@pytest.mark.parametrize("character", ["\0", "\n", "\r", "\t", "\x1b", "\x7f", "\x85", "\u2028", "\ud800"])
def test_control_characters_are_found(character: str) -> None:
    assert control_character(f"veth{character}") == character.encode("unicode_escape").decode()


@pytest.mark.parametrize("text", ["", "veth", "naïve ☃", "a b\u00a0c"])
def test_other_characters_are_none(text: str) -> None:
    assert control_character(text) == ""
