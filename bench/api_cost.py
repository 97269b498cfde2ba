"""What API objects cost the agent: the time of its decoder beside ``json.loads``, and the memory of what it keeps."""

from __future__ import annotations

import json
import os
import platform
import textwrap
import time
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bench import managed
from bench.api_encodings import gzipped
from bench.api_objects import Shape, applications, event_line
from bench.api_survey import Churn, Survey, churn, ordinary_service, ordinary_slice, passed, slice_line
from bench.api_text import percent, table
from ipvs_proxy.kube.decode import Event, decode_event
from ipvs_proxy.kube.lines import LineSplitter
from ipvs_proxy.kube.objects import KubernetesObject
from ipvs_proxy.kube.resources import ENDPOINT_SLICES, SERVICES, Resource

#: Bytes read from a socket at once, and the number of runs of which the fastest counts.
CHUNK, REPEATS = 65_536, 9
#: The least seconds of one measurement, and the pod changes a second for which the load is given.
LEAST, CHANGES = 0.02, 100


def measured_text(cluster: Survey) -> str:
    """Measure on this machine; each ratio is of one run."""
    rows = []
    for endpoints in (1, 100, 1000):
        line = slice_line(endpoints)
        ours, theirs = fastest(partial(decode_event, line, ENDPOINT_SLICES), partial(json.loads, line))
        what = f"event of a slice, {endpoints:,} endpoint{'s' if endpoints > 1 else ''}, {len(line) / 1e3:.1f} kB"
        rows.append(_row(what, ours, theirs, len(line)))
    services, slices = sample()
    first_list = 0.0
    for what, lines, resource, objects in (
        ("Services", services, SERVICES, passed(cluster.services)),
        ("slices", slices, ENDPOINT_SLICES, passed(cluster.slices)),
    ):
        stream = b"".join(lines)
        ours, theirs = fastest(partial(read, stream, resource), partial(loads_all, lines))
        first_list += ours * sum(sent.line for sent in objects) / len(stream)
        rows.append(_row(f"streaming list of {len(lines):,} {what}", ours, theirs, len(stream)))
    times = table((f"decoding on {machine()}", "time", "speed", "`json.loads` takes"), rows)
    whole = f"The whole first list takes about {two(first_list)} s."
    prose = textwrap.fill(f"{whole} {_load(churn(cluster))}", width=120, break_on_hyphens=False)
    return f"{times}\n\n{prose}\n\n{_memory(services, slices)}"


def objects_table() -> str:
    """Return the table of one event of each kind: bytes and time of decoding, with and without managedFields.

    Of a compressed one, which is a gzip member of its own, decompressing is a part of that time.
    """
    rows = []
    for what, item, resource in (
        ("a Service", ordinary_service(), SERVICES),
        *(
            (f"a slice, {count} endpoint{'s' if count > 1 else ''}", ordinary_slice(count), ENDPOINT_SLICES)
            for count in (1, 10, 100)
        ),
    ):
        lines = [event_line(form, resource.kind) for form in (item, managed.without(item))]
        packed = [gzipped(line) for line in lines]
        seconds = fastest(
            *(partial(decode_event, line, resource) for line in lines),
            *(partial(_unpack, member, resource) for member in packed),
        )
        sizes = (f"{len(text):,}" for text in (*lines, *packed))
        rows.append((what, *sizes, *(f"{two(each * 1e6)} us" for each in seconds)))
    head = ("bytes of", "plain", "… less", "gzip", "… less", "decoding: plain", "… less", "gzip", "… less")
    return table(head, rows)


def _unpack(member: bytes, resource: Resource) -> Event:
    return decode_event(zlib.decompress(member, wbits=31), resource)


def _row(what: str, ours: float, theirs: float, amount: int) -> Sequence[str]:
    spent = f"{two(ours * 1e6)} us" if ours < 0.00095 else f"{two(ours * 1e3)} ms"
    return what, spent, f"{two(amount / ours / 1e6)} MB/s", f"{two(theirs / ours)} times that"


def _load(change: Churn) -> str:
    """Return a sentence on what decoding costs a node under churn, measured with a slice of about the mean size."""
    empty, full = len(slice_line(0)), len(slice_line(100))
    line = slice_line(round((change.event_bytes - empty) / (full - empty) * 100))
    (seconds,) = fastest(partial(decode_event, line, ENDPOINT_SLICES))
    busy = seconds * CHANGES * change.events
    mean = f"{change.event_bytes / 1e3:.1f} kB"
    return f"Decoding the events (mean {mean}) of {CHANGES} pod changes a second takes {two(busy * 100)} % of one core."


def loads_all(lines: Sequence[bytes]) -> list[object]:
    """Decode lines with the standard library."""
    return [json.loads(line) for line in lines]


def read(stream: bytes, resource: Resource) -> list[KubernetesObject]:
    """Decode a stream as the reflector does, from pieces to lines to objects."""
    lines = LineSplitter()
    view = memoryview(stream)
    kept = []
    for start in range(0, len(stream), CHUNK):
        for line in lines.feed(bytes(view[start : start + CHUNK])):
            decoded = decode_event(line, resource).object
            assert decoded is not None
            kept.append(decoded)
    return kept


def fastest(*calls: Callable[[], object]) -> list[float]:
    """Return the seconds of each call in its fastest run; the calls alternate, so that other load affects all alike."""
    best = [float("inf")] * len(calls)
    for _ in range(REPEATS):
        for index, call in enumerate(calls):
            times, begun = 0, time.process_time()
            while (passed := time.process_time() - begun) < LEAST:
                call()
                times += 1
            best[index] = min(best[index], passed / times)
    return best


def kept_bytes(lines: Sequence[bytes], resource: Resource) -> float:
    """Return the memory that one decoded object takes, in bytes: the mean of these lines."""
    decode_event(lines[0], resource)
    tracemalloc.start()
    try:
        kept = [decode_event(line, resource).object for line in lines]
        return tracemalloc.get_traced_memory()[0] / len(kept)
    finally:
        tracemalloc.stop()


def sample() -> tuple[list[bytes], list[bytes]]:
    """Return the lines of a tenth of the cluster's Services and of their slices."""
    shape = Shape(services=((15, 250), (165, 30), (820, 5)), headless_every=0, other_proxy_every=0)
    services, slices = [], []
    for application in applications(shape):
        services.append(event_line(application.service, SERVICES.kind))
        slices += [event_line(item, ENDPOINT_SLICES.kind) for item in application.slices]
    return services, slices


def _memory(services: Sequence[bytes], slices: Sequence[bytes]) -> str:
    rows = []
    for label, lines, resource in (
        ("a Service", services, SERVICES),
        ("a slice, as they come", slices, ENDPOINT_SLICES),
        ("a slice with 100 endpoints", [slice_line(100)] * 100, ENDPOINT_SLICES),
    ):
        raw, kept = sum(map(len, lines)) / len(lines), kept_bytes(lines, resource)
        rows.append((label, f"{two(raw / 1e3)} kB", f"{two(kept / 1e3)} kB", percent(kept / raw)))
    return table(("kept in memory", "JSON", "decoded", "of the JSON"), rows)


def two(value: float) -> str:
    """Format a measured value with two significant digits."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:g}" if rounded < 10 else f"{rounded:,.0f}"


def machine() -> str:
    """Return what this runs on: processor, number of CPUs, version of Python."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":")[1].strip()
            break
    return f"{model}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
