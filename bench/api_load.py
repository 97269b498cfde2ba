"""What agents on every node ask of an API server: bytes and events, by simulation, without a network.

The objects are those of ``bench.api_objects``; what the server sends of them follows from the agent's own selectors,
what they cost the agent from its real decoder, how a restart of the API server spreads from its real reflector on a
clock of its own. All tables but the last two are the same on every machine.

    python -m bench.api_load     prints them; ``python -m tools scale`` writes them to docs/scale.md
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.api_cost import measured_text, objects_table
from bench.api_objects import SLICE_SIZE, Shape, bookmark_line
from bench.api_outage import Outage, reconnects
from bench.api_rollout import Controller, Rollout, rolling_update
from bench.api_survey import MODIFIED_MORE, Sent, Survey, churn, passed, slice_line, survey
from bench.api_text import bits, percent, rate, size, table
from ipvs_proxy.kube.reflector import DEFAULT_TIMING
from ipvs_proxy.kube.resources import ENDPOINT_SLICES, SERVICES, own_node

AGENTS = 5_000
KINDS = (SERVICES, ENDPOINT_SLICES, own_node("any"))
#: Seconds between bookmarks (the API server's watch cache) and between two reports of a Node that does not change (the
#: kubelet's nodeStatusReportFrequency).
BOOKMARK_SECONDS, NODE_STATUS_SECONDS = 60, 300
CHANGES_PER_SECOND = (1, 10, 100)
#: Seconds of outages, and the number of agents in their simulation, which stand for all.
OUTAGES, OUTAGE_AGENTS = (0, 10, 60), 500
LINK_BITS = 10e9


def fan_out(amount: float) -> float:
    """Return what all agents receive together: the server sends everything to each of them."""
    return amount * AGENTS


def initial_table(cluster: Survey) -> str:
    """Return the table of what one agent reads at its start, and all agents together."""
    rows: list[Sequence[str]] = []
    total = [0, 0, 0]
    for label, objects in (
        ("Services", passed(cluster.services)),
        ("EndpointSlices", passed(cluster.slices)),
        ("own Node", [cluster.node]),
    ):
        sums = [len(objects), sum(sent.item for sent in objects), sum(sent.line for sent in objects)]
        total = [whole + part for whole, part in zip(total, sums, strict=True)]
        rows.append((label, *_initial_cells(sums)))
    rows.append(("together", *_initial_cells(total)))
    everybody = f"{AGENTS:,} agents"
    return table(("", "objects", "as a list", "as a streaming list", f"{everybody}: events", "bytes"), rows)


def _initial_cells(sums: Sequence[int]) -> tuple[str, ...]:
    count, items, lines = sums
    return f"{count:,}", size(items), size(lines), f"{fan_out(count):,.0f}", size(fan_out(lines))


def selectors_table(cluster: Survey) -> str:
    """Return the table of what the selectors keep off the wire."""
    others, reports = cluster.shape.nodes - 1, (cluster.shape.nodes - 1) / NODE_STATUS_SECONDS
    watched = passed(cluster.slices)
    kept = sum(sent.line for sent in watched)
    still_sent = sum(sent.line for sent in watched if sent.other_proxy)
    rows = [
        _selector_row("headless Services, Services of another proxy", cluster.services),
        _selector_row("slices of headless Services", cluster.slices),
        (
            f"the {others:,} other Nodes",
            size(others * cluster.node.line),
            percent(1),
            f"{reports:.1f} events/s, {rate(reports * cluster.node.line)}",
        ),
        (
            "*not kept off:* slices of Services of another proxy",
            f"({size(still_sent)})",
            percent(still_sent / kept),
            "",
        ),
    ]
    return table(("kept off by a selector", "at a start", "of its kind", "at rest"), rows)


def _selector_row(label: str, objects: Sequence[Sent]) -> tuple[str, ...]:
    everything = sum(sent.line for sent in objects)
    saved = everything - sum(sent.line for sent in passed(objects))
    return label, size(saved), percent(saved / everything), "all their changes"


def churn_table(cluster: Survey) -> str:
    """Return the table of what pod changes across the whole cluster cost, each of which writes one slice."""
    one = churn(cluster)
    rows = []
    for changes in CHANGES_PER_SECOND:
        events = changes * one.events
        amount = events * one.event_bytes
        rows.append(
            (f"{changes}", f"{events:.1f}", rate(amount), f"{fan_out(events):,.0f}", *_everybody(fan_out(amount)))
        )
    head = ("pod changes/s", "one agent: events/s", "bytes", f"{AGENTS:,} agents: events/s", "bytes", "on the wire")
    return table(head, rows)


def _everybody(amount: float) -> tuple[str, str]:
    return rate(amount), bits(amount)


def rollout_table() -> str:
    """Return the table of what a rolling update of a large Service costs, by the controller's batching."""
    rows = []
    for label, controller in (
        ("defaults (no batching period, 20 writes/s)", Controller()),
        ("100 writes/s", Controller(writes_per_second=100)),
        ("100 writes/s, batching period 1 s", Controller(period=1, writes_per_second=100)),
        ("100 writes/s, batching period 10 s", Controller(period=10, writes_per_second=100)),
        ("100 writes/s, 25 endpoints in a slice", Controller(writes_per_second=100, slice_size=25)),
        ("100 writes/s, 1,000 endpoints in a slice", Controller(writes_per_second=100, slice_size=1000)),
    ):
        rollout = rolling_update(controller)
        amount = rollout_bytes(rollout)
        wire = bits(fan_out(amount) / rollout.seconds)
        rows.append(
            (label, f"{rollout.writes:,}", size(amount), size(fan_out(amount)), f"{rollout.seconds:.0f} s", wire)
        )
    head = (
        "kube-controller-manager",
        "one agent: events",
        "bytes",
        f"{AGENTS:,} agents: bytes",
        "takes",
        "on the wire",
    )
    return table(head, rows)


def rollout_bytes(rollout: Rollout) -> float:
    """Return the bytes of an update's events, from the size of a real slice."""
    empty, full = (len(slice_line(count)) for count in (0, SLICE_SIZE))
    return rollout.writes * (empty + MODIFIED_MORE) + rollout.endpoints * (full - empty) / SLICE_SIZE


def upkeep_table(cluster: Survey) -> str:
    """Return the table of what idle watches cost."""
    bookmarks = sum(len(bookmark_line(resource.kind, "1234567890")) for resource in KINDS)
    mean_watch = DEFAULT_TIMING.watch * 1.5
    rows = []
    for label, period, events, amount in (
        ("bookmarks, one a minute and watch", BOOKMARK_SECONDS, len(KINDS), bookmarks),
        ("status of the own Node, every 5 minutes", NODE_STATUS_SECONDS, 1, cluster.node.line),
        ("watches asked for again, every 5 to 10 minutes", mean_watch, len(KINDS), 0),
    ):
        cells = (rate(amount / period), rate(fan_out(amount / period))) if amount else ("headers", "headers")
        rows.append((label, f"{events / period:.3f}", cells[0], f"{fan_out(events / period):,.0f}", cells[1]))
    return table(("at rest", "one agent: each second", "bytes", f"{AGENTS:,} agents: each second", "bytes"), rows)


def outage_table() -> str:
    """Return the table of how the watches of all agents come back after an outage of the API."""
    rows = []
    for seconds in OUTAGES:
        moments = sorted(reconnects(Outage(seconds, OUTAGE_AGENTS)))
        requests = busiest(moments) * len(KINDS) * AGENTS // OUTAGE_AGENTS
        label = f"away for {seconds} s" if seconds else "connections cut, other servers take over"
        half = moments[len(moments) // 2]
        rows.append((label, f"{moments[0]:.1f} s", f"{half:.1f} s", f"{moments[-1]:.1f} s", f"{requests:,}"))
    return table(("the API is", "first agent back after", "half", "last", "requests in the busiest second"), rows)


def busiest(moments: Sequence[float]) -> int:
    """Return the largest number of the moments, which are sorted, within one second."""
    most = first = 0
    for index, moment in enumerate(moments):
        while moment - moments[first] >= 1:
            first += 1
        most = max(most, index - first + 1)
    return most


def encodings_table(cluster: Survey) -> str:
    """Return the table of what the first list costs in each encoding."""
    assert cluster.encodings is not None
    sizes = cluster.encodings
    rows = []
    for label, sent, plain in (
        ("list in pages, plain", sizes.items, sizes.items),
        ("list in pages, gzip", sizes.items_gzip, sizes.items),
        ("streaming list, plain (up to 1.36)", sizes.lines, sizes.lines),
        ("streaming list, gzip, each event by itself (1.37, at worst)", sizes.members_gzip, sizes.lines),
        ("streaming list, gzip in one piece (1.37, at best)", sizes.lines_gzip, sizes.lines),
        ("the same without managedFields: plain (1.38, gate)", sizes.bare, sizes.lines),
        ("… gzip, each event by itself", sizes.bare_members_gzip, sizes.lines),
        ("… gzip in one piece", sizes.bare_gzip, sizes.lines),
        ("streaming list, protobuf, plain (not asked for)", sizes.protobuf, sizes.lines),
    ):
        seconds = fan_out(sent) * 8 / LINK_BITS
        rows.append((label, f"{sent / 1e6:.0f} MB", f"{plain / sent:.1f}", f"{seconds:.0f} s"))
    return table(("first list of one agent", "bytes", "times smaller", f"{AGENTS:,} agents over 10 Gbit/s"), rows)


def exact_tables(cluster: Survey) -> Iterator[tuple[str, str]]:
    """Return the tables that are the same on every machine, by name."""
    yield "initial", initial_table(cluster)
    yield "selectors", selectors_table(cluster)
    yield "churn", churn_table(cluster)
    yield "rollout", rollout_table()
    yield "upkeep", upkeep_table(cluster)
    yield "outage", outage_table()


def measured_tables(cluster: Survey) -> Iterator[tuple[str, str]]:
    """Return the tables that depend on this machine, by name; the survey must be one with encodings."""
    yield "encodings", encodings_table(cluster)
    yield "objects", objects_table()
    yield "measured", measured_text(cluster)


def main() -> None:
    """Print all tables."""
    cluster = survey(Shape(), encodings=True)
    for name, text in (*exact_tables(cluster), *measured_tables(cluster)):
        print(f"{name}\n{text}\n")


if __name__ == "__main__":
    main()
