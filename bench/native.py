"""What Python alone costs at this machine's own speed: the same path, with a kernel that accepts everything.

``python -m bench.native SERVICES ENDPOINTS`` prints the figures. As Markdown, ``rolling`` prints what an event of a
large Service costs, ``scraping`` what a scrape and a change cost each other, ``looking`` the same with all
pages, and ``churn`` the memory in a day of changes.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench import cluster
from bench.looking import InMemory, looked_at, served
from bench.rig import NoKernel, Rig, percentile
from ipvs_proxy.agent.observe.service_traffic import ServiceTraffic
from ipvs_proxy.settings.values import ServiceMetrics

CHANGES = 500
#: Seconds between two changes while somebody reads the pages, so that changes meet every page in every state.
PAUSE = 0.02
ROLLING = (1_000, 10_000, 50_000)
#: A day with a change of endpoints every two seconds.
DAY = 43_200


def measure_python(services: int, endpoints: int) -> dict[str, Any]:
    """Measure in a process of its own; return the figures of one size."""
    command = [sys.executable, "-m", "bench.native", str(services), str(endpoints)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)  # type: ignore[no-any-return]


def growth() -> str:
    """Measure what grows with time or size, each in a process of its own; return the tables."""
    tables = []
    for what in ("rolling", "scraping", "looking", "churn"):
        command = [sys.executable, "-m", "bench.native", what]
        tables.append(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    return "".join(f"\n{text}" for text in tables)


async def changes(services: int, endpoints: int) -> dict[str, float]:
    """Start, then add an endpoint to one Service after another."""
    rig = Rig(cluster.objects(services, endpoints), NoKernel())
    begun = time.perf_counter()
    seconds = []
    async with rig.running():
        started = time.perf_counter() - begun
        for number in range(CHANGES):
            index = 2 + number % (services - 2)
            pods = [*cluster.pods_of(index, endpoints), f"10.200.{number // 250}.{number % 250 + 1}"]
            seconds.append(await rig.change(cluster.endpoint_slice(index, 0, pods, version=2 + number)))
    return {
        "python_cold_start": started,
        "python_change_median": percentile(seconds, 0.5),
        "python_change_p99": percentile(seconds, 0.99),
    }


async def rolling(endpoints: int) -> float:
    """Replace ten endpoints in one slice after another of one Service; return the median seconds of an event."""
    rig = Rig([cluster.service(0), *cluster.slices(0, cluster.pods_of(0, endpoints)), cluster.node()], NoKernel())
    seconds = []
    async with rig.running():
        for number in range(50):
            piece = number % max(1, endpoints // cluster.SLICE_SIZE)
            pods = cluster.pods_of(0, endpoints)[piece * cluster.SLICE_SIZE : (piece + 1) * cluster.SLICE_SIZE]
            pods[:10] = [f"10.201.{number}.{replaced}" for replaced in range(10)]
            seconds.append(await rig.change(cluster.endpoint_slice(0, piece, pods, version=2 + number)))
    return percentile(seconds, 0.5)


async def scraping(services: int) -> tuple[list[float], list[float], list[float]]:
    """Change endpoints while somebody scrapes the traffic of every Service all the time.

    Gives the seconds of the scrapes, of changes before them and of changes beside them.
    """
    rig = Rig(cluster.objects(services, 10), NoKernel())
    table = InMemory(lambda: rig.programmer.actual.virtual_servers)
    stop = threading.Event()
    scrapes: list[float] = []

    def scrape() -> None:
        while not stop.is_set():
            begun = time.perf_counter()
            rig.metrics.render("")
            scrapes.append(time.perf_counter() - begun)

    async with rig.running():
        rig.metrics.service_traffic = ServiceTraffic(
            rig.programmer.desired, lambda: table, detail=ServiceMetrics.ALL
        ).expose
        alone = [await _add_endpoint(rig, number) for number in range(CHANGES)]
        thread = threading.Thread(target=scrape)
        thread.start()
        beside = [await _add_endpoint(rig, CHANGES + number) for number in range(CHANGES)]
        stop.set()
        thread.join()
    return scrapes, alone, beside


async def looking(services: int) -> tuple[dict[str, list[float]], list[float], list[float]]:
    """Change endpoints while somebody looks at everything that the agent shows, all the time.

    Gives the seconds of the answers by page, of changes before them and of changes beside them.
    """
    rig = Rig(cluster.objects(services, 10), NoKernel())
    answers: dict[str, list[float]] = {}
    async with rig.running(), served(rig) as port:
        alone = [await _add_endpoint(rig, number) for number in range(CHANGES)]
        async with looked_at(port, answers):
            beside = []
            for number in range(CHANGES):
                beside.append(await _add_endpoint(rig, CHANGES + number))
                await asyncio.sleep(PAUSE)
    return answers, alone, beside


async def _add_endpoint(rig: Rig, number: int) -> float:
    pods = [*cluster.pods_of(2 + number, 10), "10.200.0.1"]
    return await rig.change(cluster.endpoint_slice(2 + number, 0, pods, version=2))


async def churn(events: int) -> list[tuple[int, float]]:
    """Let endpoints come and go in 1,000 Services for a day; return (changes, MiB of memory) along the way."""
    rig = Rig(cluster.objects(1_000, 10), NoKernel())
    sizes = []
    async with rig.running():
        drains = asyncio.create_task(rig.end_drains())
        for number in range(events):
            index = 2 + number % 998
            pods = cluster.pods_of(index, 10)
            pods[number % 10] = f"10.{200 + number % 50}.{number // 250 % 250}.{number % 250 + 1}"
            await rig.change(cluster.endpoint_slice(index, 0, pods, version=2 + number))
            if (number + 1) % (events // 8) == 0:
                gc.collect()
                sizes.append((number + 1, resident_mib()))
        drains.cancel()
        with suppress(asyncio.CancelledError):
            await drains
    return sizes


def resident_mib() -> float:
    """Return this process's resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def spread(measured: dict[str, list[float]]) -> str:
    """Return a table of medians, 99th percentiles and maxima, in milliseconds."""
    lines = ["| | median | 99 % | longest |\n|---|--:|--:|--:|\n"]
    for label, seconds in measured.items():
        parts = (percentile(seconds, 0.5), percentile(seconds, 0.99), max(seconds))
        lines.append(f"| {label} | " + " | ".join(f"{part * 1000:.1f} ms" for part in parts) + " |\n")
    return "".join(lines)


def main(words: list[str]) -> None:
    """Measure what the arguments ask for."""
    write = sys.stdout.write
    if words == ["rolling"]:
        write("Rolling update of one Service: an event brings a slice of 1,000 endpoints, ten of them new.\n\n")
        write("| endpoints of the Service | Python time of an event |\n|--:|--:|\n")
        for size in ROLLING:
            write(f"| {size:,} | {asyncio.run(rolling(size)) * 1000:.1f} ms |\n")
    elif words == ["scraping"]:
        scrapes, alone, beside = asyncio.run(scraping(10_000))
        write("Somebody scrapes the traffic of 10,000 Services all the time; the kernel's dump is left out.\n\n")
        write(spread({"scrape": scrapes, "change, nobody scrapes": alone, "change, beside a scrape": beside}))
    elif words == ["looking"]:
        answers, alone, beside = asyncio.run(looking(10_000))
        write("Somebody looks at 10,000 Services of 10 endpoints in one page after the other; the kernel's reads are ")
        write("left out.\n\n")
        write(spread({**answers, "change, nobody looks": alone, "change, beside somebody who looks": beside}))
    elif words == ["churn"]:
        write("A day in 1,000 Services of 10 endpoints, one endpoint replaced every two seconds.\n\n")
        write("| changes | resident memory |\n|--:|--:|\n")
        for changed, size_in_mib in asyncio.run(churn(DAY)):
            write(f"| {changed:,} | {size_in_mib:.1f} MiB |\n")
    else:
        write(json.dumps(asyncio.run(changes(int(words[0]), int(words[1])))))


if __name__ == "__main__":
    main(sys.argv[1:])
