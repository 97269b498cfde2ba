"""Delays and rates, with the clock as an argument."""

from __future__ import annotations

import pytest

from ipvs_proxy.pacing import Backoff, TokenBucket


@pytest.mark.parametrize(
    ("backoff", "delays"),
    [
        (Backoff(0.5, 30.0), [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]),
        (Backoff(1.0, 1.0), [1.0, 1.0, 1.0]),
        (Backoff(2.0, 0.5), [0.5, 0.5]),
    ],
)
def test_delays_double_up_to_the_longest(backoff: Backoff, delays: list[float]) -> None:
    assert [backoff.delay(failures) for failures in range(len(delays))] == delays


def test_no_number_of_failures_is_too_many() -> None:
    assert Backoff(0.5, 30.0).delay(1_000_000) == 30.0


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(2, 0.5, now=0.0)
    assert [bucket.take(0.0), bucket.take(0.0), bucket.take(0.0)] == [0.0, 0.0, 2.0]
    assert bucket.take(1.0) == pytest.approx(1.0)
    assert bucket.take(2.0) == 0.0
    assert [bucket.take(1e6), bucket.take(1e6), bucket.take(1e6)] == [0.0, 0.0, 2.0]


def test_who_waits_as_long_as_told_gets_the_token_also_with_rounding() -> None:
    bucket = TokenBucket(1, 0.3, now=0.1)
    assert bucket.take(0.1) == 0.0
    assert bucket.take(0.1 + bucket.take(0.1)) == 0.0
