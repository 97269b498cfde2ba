"""Tables and numbers on a terminal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ipvs_proxy.commands.text import age, count, several, table, wrapped

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_columns_are_aligned_and_lines_end_without_spaces() -> None:
    text = table(("NAME", "N"), [("a", "1"), ("longer", "100"), ("b", "")], right=("N",), indent=2)
    assert text == "  NAME      N\n  a         1\n  longer  100\n  b\n"


HEADER = ("NAME", "PORTS", "RATE", "STATE")
ROW = ("a-long-name-of-something", "80/TCP", "1.2k", "ok")


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (0, ["NAME                      PORTS   RATE  STATE", "a-long-name-of-something  80/TCP  1.2k  ok"]),
        (45, ["NAME                      PORTS   RATE  STATE", "a-long-name-of-something  80/TCP  1.2k  ok"]),
        (44, ["NAME                      RATE  STATE", "a-long-name-of-something  1.2k  ok"]),
        (30, ["NAME               RATE  STATE", "a-long-name-of-s…  1.2k  ok"]),
        (10, ["NAME        RATE  STATE", "a-long-na…  1.2k  ok"]),
    ],
)
def test_table_that_is_too_wide_loses_what_can_be_spared_and_then_its_widest_column(
    width: int, lines: list[str]
) -> None:
    assert table(HEADER, [ROW], right=("RATE",), spare=("PORTS",), width=width).splitlines() == lines


def test_sentence_is_wrapped_beside_its_start() -> None:
    assert (
        wrapped("the client keeps its address", start="  1. ", width=20)
        == "  1. the client\n     keeps its\n     address\n"
    )
    assert wrapped("the client keeps its address", start="  1. ", width=0) == "  1. the client keeps its address\n"


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
