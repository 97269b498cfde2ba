"""The weight of an endpoint while it warms up: how a slow start takes it from 1 to its full weight.

The weights of a Service with a slow start are all multiplied by ``STEPS``, whether anybody warms up or not, so that
there are steps below a weight of 1 and nobody else's weight has to change for them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from ipvs_proxy.plan.tables import RealServer

#: Steps from nothing to the full weight.
STEPS: Final = 10


def step_of(elapsed: float, duration: float) -> int:
    """Return the step that a slow start of ``duration`` seconds has reached after ``elapsed``; ``STEPS`` is the end."""
    return min(STEPS, int(elapsed * STEPS / duration))


@lru_cache(maxsize=1024)
def warming(full: RealServer, step: int) -> RealServer:
    """Return the settings of a real server at a step: that share of its weight, but never 0 of something."""
    return full._replace(weight=min(full.weight, max(1, full.weight * step // STEPS)))
