"""The figures as one table, each beside its target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

Figures = dict[str, Any]


class Targets(NamedTuple):
    """What one size must meet: cold start / ``ipvsadm -R``, seconds with TLS, idle share of a core, resident MiB."""

    cold_start: float
    tls_cold_start: float | None
    idle: float
    resident_mib: float


#: By size (Services and endpoints of each); other targets hold for any size, or for ``TARGET_SIZE``.
TARGETS = {
    (10_000, 10): Targets(cold_start=0.2, tls_cold_start=5.0, idle=0.01, resident_mib=200),
    (50_000, 2): Targets(cold_start=0.3, tls_cold_start=None, idle=0.02, resident_mib=250),
}
TARGET_SIZE = (10_000, 10)
#: How a row names them.
LARGER = "50,000 x 2"


class Row(NamedTuple):
    """One line: label, target in words, text of the cell, and whether the target is met (``None``: there is none)."""

    label: str
    target: str
    cell: str
    met: bool | None = None


def rows(found: Figures, smallest: Figures) -> list[Row]:
    """Return the lines of one size; ``smallest`` has the figures of the smallest size, for what must not grow."""
    return [
        *_fill_rows(found),
        *_start_rows(found),
        *_change_rows(found, smallest),
        *_restart_rows(found),
        *_memory_rows(found, smallest),
        *_idle_rows(found),
    ]


def _fill_rows(found: Figures) -> list[Row]:
    restore = found["ipvsadm"]
    return [
        Row("`ipvsadm -R`, IPVS alone", "", f"{restore:.2f} s"),
        _ratio(found, "c_program", restore, None, "", "C program, 256 messages a call"),
        _ratio(found, "fill", found["c_program"], 3.0, "<= 3x of C", "cold fill: operations in memory -> kernel"),
        Row("… of it in the kernel", "", f"{found['fill_kernel']:.2f} s"),
    ]


def _start_rows(found: Figures) -> list[Row]:
    restore, first = found["ipvsadm"], found["first_programmed"]
    return [
        _cold_start(found, restore),
        _ratio(found, "cold_start_objects_known", restore, None, "", "… of it after all objects are known"),
        Row("… of it in Python, at this machine's own speed", "", f"{found['python_cold_start']:.2f} s"),
        _tls_row(found),
        Row(
            "API server and DNS after the lists",
            "<= 50 ms natively",
            f"{first * 1000:.0f} ms",
            None if found["emulated"] else first <= 0.05,
        ),
    ]


def _cold_start(found: Figures, restore: float) -> Row:
    words = f"<= 0.2x of ipvsadm; {LARGER}: 0.3x"
    ratio, targets = found["cold_start"] / restore, _targets(found)
    label = "cold start: process -> everything programmed"
    met = None if targets is None else ratio <= targets.cold_start
    return Row(label, words, f"{found['cold_start']:.2f} s, {ratio:.2f}x", met)


def _tls_row(found: Figures) -> Row:
    seconds, targets = found["tls_cold_start"], _targets(found)
    limit = targets.tls_cold_start if targets else None
    met = None if limit is None else seconds <= limit
    return Row("cold start with TLS", "10,000 x 10: <= 5 s", f"{seconds:.2f} s", met)


def _change_rows(found: Figures, smallest: Figures) -> list[Row]:
    # A slice of more endpoints is a larger event.
    is_alike = found["endpoints"] == smallest["endpoints"]
    grown = found["change_median"] / smallest["change_median"]
    python_grown = found["python_change_median"] / smallest["python_change_median"]
    spread = found["change_p99"] / found["change_median"]
    return [
        Row(
            "one endpoint added: event's bytes -> kernel's answer",
            "+20 % at most",
            f"{found['change_median'] * 1000:.2f} ms, {grown:.2f}x",
            grown <= 1.2 if is_alike else None,
        ),
        Row("… p99", "<= 5x median", f"{found['change_p99'] * 1000:.2f} ms, {spread:.1f}x", spread <= 5),
        Row("… netlink messages", "<= 4", str(found["change_messages"]), found["change_messages"] <= 4),
        Row(
            "… Python alone, natively",
            "+20 % at most",
            f"{found['python_change_median'] * 1000:.2f} ms, {python_grown:.2f}x",
            python_grown <= 1.2 if is_alike else None,
        ),
    ]


def _restart_rows(found: Figures) -> list[Row]:
    writes = found["restart_writes"]
    return [
        Row("restart, correct kernel: messages written", "0", str(writes), not writes),
        Row("… process -> started", "", f"{found['restart']:.2f} s"),
        Row("… reading the tables", "", f"{found['read']:.2f} s"),
        _ratio(found, "restart_objects_known", found["read"], 1.5, "<= 1.5x of reading", "… objects known -> started"),
    ]


def _memory_rows(found: Figures, smallest: Figures) -> list[Row]:
    resident = found["resident_mib"]
    more = real_servers(found) - real_servers(smallest)
    targets = _targets(found)
    growth = (resident - smallest["resident_mib"]) * 2**20 / more if more else None
    return [
        Row(
            "resident memory",
            f"<= 200 MiB; {LARGER}: 250",
            f"{resident:.0f} MiB",
            resident <= targets.resident_mib if targets else None,
        ),
        Row("… at its peak", "", f"{found['peak_mib']:.0f} MiB"),
        Row(
            "… growth per real server, with its share of a Service",
            "",
            "" if growth is None else f"{growth:,.0f} bytes",
        ),
    ]


def _idle_rows(found: Figures) -> list[Row]:
    if "idle" not in found:
        return []
    idle, delay, targets = found["idle"], found["loop_delay"], _targets(found)
    return [
        Row(
            "idle with audits, share of one core",
            f"< 1 % natively; {LARGER}: < 2 %",
            f"{idle:.1%}",
            idle < targets.idle if targets else None,
        ),
        Row(
            "… event loop kept for at most",
            "50 ms",
            f"{delay * 1000:.0f} ms",
            delay <= 0.05 if targets else None,
        ),
    ]


def _ratio(found: Figures, name: str, to: float, target: float | None, words: str, label: str) -> Row:
    value = found[name] / to
    met = value <= target if target is not None and _is_judged(found) else None
    return Row(label, words, f"{found[name]:.2f} s, {value:.2f}x", met)


def _is_judged(found: Figures) -> bool:
    """Return whether these figures are of the size and at the speed that targets are for."""
    return (found["services"], found["endpoints"]) == TARGET_SIZE and not found["emulated"]


def _targets(found: Figures) -> Targets | None:
    return None if found["emulated"] else TARGETS.get((found["services"], found["endpoints"]))


def smallest(found: Sequence[Figures], figures: Figures) -> Figures:
    """Return the figures of the smallest size on the same kernel."""
    return next(other for other in found if other["emulated"] == figures["emulated"])


def real_servers(found: Figures) -> int:
    """Return the number of real servers of one size."""
    return int(found["services"]) * int(found["endpoints"])


def table(found: Sequence[Figures], machine: str) -> str:
    """Return all sizes side by side as a Markdown table; a figure that misses its target is marked with ``(!)``."""
    columns = [rows(figures, smallest(found, figures)) for figures in found]
    sizes = [
        f"{figures['services']:,} x {figures['endpoints']}{', emulated' if figures['emulated'] else ''}"
        for figures in found
    ]
    kernels = dict.fromkeys(f"{figures['kernel']}{' (emulated)' if figures['emulated'] else ''}" for figures in found)
    agents = dict.fromkeys(figures["agent"] for figures in found)
    lines = [
        f"Linux {' and '.join(kernels)}, {machine}; the agent in {' and '.join(agents)}.",
        "`(!)` marks what misses its target.",
        "",
        "| | target | " + " | ".join(sizes) + " |",
        "|---|---|" + "--:|" * len(sizes),
    ]
    for parts in zip(*columns, strict=False):
        cells = [part.cell + (" (!)" if part.met is False else "") for part in parts]
        lines.append(f"| {parts[0].label} | {parts[0].target} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
