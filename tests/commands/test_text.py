"""Tables and numbers on a terminal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ipvs_proxy.commands.text import age, count, several, table

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_columns_are_aligned_and_lines_end_without_spaces() -> None:
    text = table(("NAME", "N"), [("a", "1"), ("longer", "100"), ("b", "")], right=("N",), indent=2)
    assert text == "  NAME      N\n  a         1\n  longer  100\n  b\n"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1.0k"),
        (1_000, "1.0k"),
        (9_949, "9.9k"),
        (9_960, "10k"),
        (999_499, "999k"),
        (999_600, "1.0M"),
        (1.5e18, "1.5E"),
        (2**64, "18E"),
    ],
)
def test_numbers_have_three_digits_at_most(number: float, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (7_199, "119m"), (7_200, "2h"), (172_800, "2d")],
)
def test_age_is_short(seconds: int, text: str) -> None:
    assert age(NOW - timedelta(seconds=seconds), NOW) == text


def test_nouns_follow_their_number() -> None:
    assert [several(number, "drain") for number in (0, 1, 12_000)] == ["0 drains", "1 drain", "12,000 drains"]
    assert [several(number, "address", "es") for number in (1, 2)] == ["1 address", "2 addresses"]
