"""The table of the benchmarks: which figures of which size have a target, and whether it is met."""

from __future__ import annotations

import pytest

from bench.__main__ import SIZES
from bench.report import TARGETS, Figures, rows, table

MET: Figures = {
    "emulated": False,
    "kernel": "7.2",
    "agent": "python3.13",
    "ipvsadm": 10.0,
    "c_program": 0.1,
    "fill": 0.2,
    "fill_kernel": 0.1,
    "cold_start": 1.9,
    "cold_start_objects_known": 1.0,
    "python_cold_start": 1.0,
    "tls_cold_start": 4.9,
    "first_programmed": 0.01,
    "change_median": 0.001,
    "change_p99": 0.002,
    "change_messages": 1,
    "python_change_median": 0.001,
    "restart": 3.0,
    "read": 1.0,
    "restart_objects_known": 1.0,
    "restart_writes": 0,
    "resident_mib": 199.0,
    "peak_mib": 199.0,
    "idle": 0.009,
    "loop_delay": 0.05,
}


def met(services: int, endpoints: int, **figures: object) -> dict[str, bool | None]:
    """Return by label whether each row's target is met; ``None`` where there is none."""
    smallest = MET | {"services": 100, "endpoints": 10}
    found = MET | {"services": services, "endpoints": endpoints} | figures
    return {row.label: row.met for row in rows(found, smallest)}


COLD, TLS = "cold start: process -> everything programmed", "cold start with TLS"
MEMORY, IDLE, LOOP = "resident memory", "idle with audits, share of one core", "… event loop kept for at most"


@pytest.mark.parametrize(
    ("label", "figure", "size", "limit", "over"),
    [
        (COLD, "cold_start", (10_000, 10), 2.0, 2.1),
        (COLD, "cold_start", (50_000, 2), 3.0, 3.1),
        (TLS, "tls_cold_start", (10_000, 10), 5.0, 5.1),
        (MEMORY, "resident_mib", (10_000, 10), 200, 201),
        (MEMORY, "resident_mib", (50_000, 2), 250, 251),
        (IDLE, "idle", (10_000, 10), 0.0099, 0.01),
        (IDLE, "idle", (50_000, 2), 0.0199, 0.02),
        (LOOP, "loop_delay", (10_000, 10), 0.05, 0.1),
        (LOOP, "loop_delay", (50_000, 2), 0.05, 0.1),
    ],
)
def test_a_target_is_that_of_the_size(
    label: str, figure: str, size: tuple[int, int], limit: float, over: float
) -> None:
    assert met(*size, **{figure: limit})[label] is True, f"{limit} of {size} meets it"
    assert met(*size, **{figure: over})[label] is False, f"{over} of {size} misses it"
    assert met(*size, **{figure: over}, emulated=True)[label] is None, "emulated, it is not judged"
    assert met(1_000, 10, **{figure: over})[label] is None, "another size has no target"


def test_with_tls_the_larger_size_has_no_target() -> None:
    assert met(50_000, 2, tls_cold_start=99.0)[TLS] is None


def test_what_misses_its_target_is_marked() -> None:
    found = MET | {"services": 10_000, "endpoints": 10, "tls_cold_start": 8.2}
    (line,) = (line for line in table([found], "x86").splitlines() if line.startswith(f"| {TLS} |"))
    assert line == f"| {TLS} | 10,000 x 10: <= 5 s | 8.20 s (!) |"


def test_every_size_with_a_target_is_measured_by_default() -> None:
    assert {f"{services}x{endpoints}" for services, endpoints in TARGETS} <= set(SIZES)
