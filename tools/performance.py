"""The table and the picture of ``docs/performance.md``, from a run of the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

from bench.__main__ import SIZES, figures, tables
from bench.report import Figures
from tools.documents import DOCS, Texts, filled

DOCUMENT = DOCS / "performance.md"
PICTURE = DOCUMENT.with_name("performance.png")


def measured() -> Texts:
    """Measure all sizes, which takes an hour; draw the picture and return the document."""
    found = figures(SIZES)
    draw(found)
    return {DOCUMENT: filled(DOCUMENT.read_text(), [("table", tables(found))])}


def draw(found: Sequence[Figures]) -> None:
    """Draw cold start, latency of a change and memory against the number of Services."""
    import matplotlib as mpl  # noqa: PLC0415  only `make bench` installs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    found = [figures for figures in found if figures["endpoints"] == 10 and not figures["emulated"]]
    services = [figures["services"] for figures in found]
    figure, (start, change, memory) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for name, label in (
        ("ipvsadm", "ipvsadm -R (IPVS alone)"),
        ("cold_start", "agent, process start to everything"),
        ("fill", "agent, IPVS alone"),
        ("c_program", "C program, IPVS alone"),
    ):
        start.plot(services, [figures[name] for figures in found], marker="o", label=label)
    start.set(title="Filling an empty kernel", ylabel="seconds", xscale="log", yscale="log")
    # Place for the legend above the lines.
    start.set_ylim(top=100 * start.get_ylim()[1])
    for name, label in (("change_median", "median"), ("change_p99", "99th percentile")):
        change.plot(services, [figures[name] * 1000 for figures in found], marker="o", label=label)
    change.set(title="One endpoint added", ylabel="milliseconds", xscale="log")
    change.set_ylim(bottom=0)
    memory.plot(services, [figures["resident_mib"] for figures in found], marker="o", label="resident")
    memory.set(title="Memory of the agent", ylabel="MiB", xscale="log")
    memory.set_ylim(bottom=0)
    for axes in (start, change, memory):
        axes.set_xlabel("Services of 10 endpoints")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(PICTURE, dpi=110)
