"""What is known of the generations of the rules."""

from __future__ import annotations

import pytest

from ipvs_proxy.kernel.filter.nftables.generation import Generation, following


@pytest.mark.parametrize(
    ("made", "known"),
    [
        ((), 7),
        ((8,), 8),
        ((8, 9, 10), 10),
        ((9,), None),
        ((8, 10), None),
        # Whatever comes afterwards: what somebody else did in between has not been looked at.
        ((8, 10, 11, 12), None),
    ],
    ids=str,
)
def test_only_our_own_transactions_leave_everything_known(made: tuple[int, ...], known: int | None) -> None:
    generation = Generation()
    generation.verified(7)
    for number in made:
        generation.advance(number)
    assert [number for number in range(20) if generation.is_verified(number)] == ([] if known is None else [known])


def test_nothing_is_known_at_first_and_after_an_unknown_outcome() -> None:
    generation = Generation()
    generation.advance(1)
    assert not generation.is_verified(1)
    generation.verified(2)
    generation.forget()
    assert not generation.is_verified(2)


def test_the_generation_is_never_zero() -> None:
    assert (following(1), following(0xFFFF_FFFF)) == (2, 1)
