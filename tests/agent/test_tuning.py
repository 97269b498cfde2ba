"""What the process is set to: a start is not followed by a look through all that it has made."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Iterator

import pytest

from ipvs_proxy.agent.tuning import GC_THRESHOLD, prepare_for_start, settle_after

MADE = 100_000


@pytest.fixture
def restored() -> Iterator[None]:
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("restored")
async def test_what_a_start_has_made_is_never_looked_through() -> None:
    looks: list[str] = []

    def note(phase: str, _: dict[str, int]) -> None:
        looks.append(phase)

    prepare_for_start()
    started = asyncio.Event()
    gc.callbacks.append(note)
    try:
        made = [[number] for number in range(MADE)]
        started.set()
        await settle_after(started)
    finally:
        gc.callbacks.remove(note)
    assert looks == []
    assert gc.get_freeze_count() >= len(made)
    assert gc.get_threshold()[0] == GC_THRESHOLD
