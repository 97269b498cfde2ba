"""``ipvs-proxy migrate check``: says what it means for this node that ipvs-proxy takes the place of kube-proxy.

A report has one line for each fact, in four standings: what was found, what will change, what is not supported, and
what stands in the way, the last two with what to do. Judging is pure; what is judged comes from ``node.inventory``.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from select import select
from typing import Final, NamedTuple

from ipvs_proxy import __version__
from ipvs_proxy.kernel.links.addresses import LINK
from ipvs_proxy.kube.documents import ParseError, parse_yaml, read_file
from ipvs_proxy.node.inventory import Survey, survey
from ipvs_proxy.node.processes import KUBE_PROXY, Process
from ipvs_proxy.settings import row
from ipvs_proxy.settings.file import MAX_SIZE, read_text
from ipvs_proxy.settings.merge import effective
from ipvs_proxy.settings.model import Note, Settings, SettingsError

READY, ERROR, OBSTRUCTED = 0, 1, 2
#: So many foreign virtual servers are named.
_NAMED: Final = 5
#: A ConfigMap has a MiB at most.
LONGEST: Final = 4 << 20
#: Seconds until a standard input that neither ends nor goes on is given up.
SILENCE: Final = 30.0
_DOTS: Final = b"\n...\n"
_WIDTH: Final = 100
_DEFAULTS: Final = Settings(node_name="node")
_LEAVES: Final = "take it off this node before the agent starts there (see docs/migration.md)"


class Standing(Enum):
    """What a finding means for the migration."""

    FOUND = "found"
    CHANGE = "will change"
    UNSUPPORTED = "unsupported"
    OBSTACLE = "in the way"


class Finding(NamedTuple):
    """A fact about the node or its configuration, and what to do about it if anything is."""

    standing: Standing
    topic: str
    text: str
    remedy: str = ""


def check(config: Path | None, *, as_json: bool) -> int:
    """Print the report; return the exit status: READY, OBSTRUCTED, or ERROR with one line on standard error.

    ``config`` is kube-proxy's configuration, or the manifest of a ConfigMap that has it; ``-`` for standard input.
    """
    try:
        settings, findings = (_DEFAULTS, []) if config is None else judge_configuration(*_read(config))
        ports = {
            name: int(address.rpartition(":")[2])
            for name, address in (("health", settings.healthz_bind_address), ("metrics", settings.metrics_bind_address))
        }
        found = survey(scheduler=settings.scheduler, strict_arp=settings.strict_arp, ports=ports.values())
    except (OSError, ValueError) as error:
        sys.stderr.write(f"ipvs-proxy: error: {error}\n")
        return ERROR
    findings = [*judge_node(found, settings, ports), *findings]
    sys.stdout.write(_as_json(findings) if as_json else report(findings))
    return OBSTRUCTED if any(finding.standing is Standing.OBSTACLE for finding in findings) else READY


def judge_configuration(text: str, name: str) -> tuple[Settings, list[Finding]]:
    """Read a configuration; return its settings (the defaults if it cannot be used) and what there is to say of it."""
    try:
        settings, notes = _load(text, name)
    except SettingsError as error:
        remedy = "correct it, as the agent would refuse it too"
        faults = [Finding(Standing.OBSTACLE, "configuration", line, remedy) for line in str(error).splitlines()]
        return _DEFAULTS, faults
    findings = [Finding(Standing.FOUND, "configuration", f"{name} can be used as it is")]
    for event, fields in notes:
        values = "; ".join(_words(value) for value in fields.values() if value)
        findings.append(Finding(Standing.UNSUPPORTED, "configuration", f"{event.replace('_', ' ')}: {values}"))
    return settings, findings


def judge_node(found: Survey, settings: Settings, ports: dict[str, int]) -> list[Finding]:
    """Say what a node is like, and what that means."""
    if found.agent:
        done = Finding(Standing.FOUND, "ipvs-proxy", "an agent is at work on this node: there is nothing to migrate")
        return [*_judge_kernel(found), done]
    return [
        *_judge_kernel(found),
        *_judge_traces(found, settings),
        *_judge_others(found),
        *_judge_processes(found, ports),
    ]


def report(findings: list[Finding]) -> str:
    """Return the findings as aligned text, and the verdict."""
    width = max(len(finding.topic) for finding in findings) + 2
    lines = [f"ipvs-proxy {__version__}: migration of this node", ""]
    for standing in Standing:
        for finding in (finding for finding in findings if finding.standing is standing):
            start = f"  {standing.value:<13}{finding.topic:<{width}}"
            indent = " " * len(start)
            parts = [finding.text, *([f"-> {finding.remedy}"] if finding.remedy else [])]
            for part in parts:
                lines += textwrap.wrap(
                    part, _WIDTH, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False
                )
                start = indent
    obstacles = sum(finding.standing is Standing.OBSTACLE for finding in findings)
    things = "1 thing stands" if obstacles == 1 else f"{obstacles} things stand"
    verdict = f"Not ready: {things} in the way." if obstacles else "Ready: nothing stands in the way."
    return "\n".join([*lines, "", verdict]) + "\n"


def _as_json(findings: list[Finding]) -> str:
    ready = all(finding.standing is not Standing.OBSTACLE for finding in findings)
    facts = [finding._asdict() | {"standing": finding.standing.name.lower()} for finding in findings]
    return json.dumps({"version": __version__, "ready": ready, "findings": facts}, indent=2) + "\n"


def _judge_kernel(found: Survey) -> Iterator[Finding]:
    chosen = found.iptables
    if chosen is not None:
        version = ".".join(map(str, chosen.version))
        text = f"Linux {found.kernel}; iptables {version}, variant {chosen.backend}, as {chosen.reason}"
        yield Finding(Standing.FOUND, "kernel", text)
    for line in found.missing:
        what, _, remedy = line.partition(": ")
        yield Finding(Standing.OBSTACLE, "kernel", what, remedy)
    for family, reason in found.unsupported.items():
        yield Finding(Standing.UNSUPPORTED, family.label, f"is not served on this node: {reason}")
    for change in found.sysctls:
        yield Finding(Standing.CHANGE, "sysctl", f"{change.name.replace('/', '.')}: {change.found} -> {change.wanted}")
    for warning in found.warnings:
        what, _, remedy = warning.partition("; ")
        yield Finding(Standing.UNSUPPORTED, "kernel", what, remedy)


def _judge_traces(found: Survey, settings: Settings) -> Iterator[Finding]:
    """Say in which modes kube-proxy has run here, and what becomes of what it left."""
    servers = found.schedulers.total()
    taken_over = found.link or found.sets or servers
    if taken_over:
        text = f"IPVS mode: virtual servers {servers}, addresses on {LINK} {found.addresses}, sets {found.sets}"
        yield Finding(Standing.FOUND, KUBE_PROXY, text)
        yield Finding(
            Standing.CHANGE, "IPVS mode", "taken over as it is: what is right is not written, connections go on"
        )
    for scheduler, number in sorted(found.schedulers.items()):
        if scheduler != settings.scheduler:
            text = f"of the virtual servers {number} have {scheduler}; Services get {settings.scheduler}"
            yield Finding(Standing.CHANGE, "scheduler", text)
    backend = "" if found.iptables is None else found.iptables.backend
    for (family, variant), number in found.iptables_mode.items():
        yield Finding(Standing.FOUND, KUBE_PROXY, f"iptables mode: chains of {family} in {variant}: {number}")
        if variant == backend:
            text = f"{family}: its chains serve until all virtual servers are complete, and are removed then"
            yield Finding(Standing.CHANGE, "iptables mode", text)
    for family_of_table in found.nftables_mode:
        yield Finding(Standing.FOUND, KUBE_PROXY, f"nftables mode: the table of {family_of_table.label}")
        text = f"{family_of_table.label}: its table serves until all virtual servers are complete, and is removed then"
        yield Finding(Standing.CHANGE, "nftables mode", text)
    if not (taken_over or found.iptables_mode or found.nftables_mode):
        yield Finding(Standing.FOUND, KUBE_PROXY, "has left nothing on this node")
    for variant in sorted({variant for _, variant in (*found.iptables_mode, *found.ipvs_mode)} - {backend}):
        yield Finding(
            Standing.OBSTACLE,
            "iptables",
            f"kube-proxy has rules in {variant}, which ipvs-proxy does not use here: they would stay in effect",
            'run "ipvs-proxy cleanup --kube-proxy" once kube-proxy is off this node, before the agent starts',
        )


def _judge_others(found: Survey) -> Iterator[Finding]:
    if found.foreign:
        more = len(found.foreign) - _NAMED
        names = ", ".join(found.foreign[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        yield Finding(Standing.FOUND, "others", f"virtual servers that are not kube-proxy's and stay: {names}")


def _judge_processes(found: Survey, ports: dict[str, int]) -> Iterator[Finding]:
    if found.kube_proxy is not None:
        yield Finding(Standing.CHANGE, KUBE_PROXY, f"{found.kube_proxy} is running", _LEAVES)
    for name, port in ports.items():
        holder = found.holders.get(port)
        if holder is None or holder.name == KUBE_PROXY:
            continue
        taken = f"{port} is taken by {holder}"
        if holder == Process() and found.kube_proxy is None:
            yield Finding(Standing.CHANGE, f"{name} port", f"{taken}, as by a running kube-proxy", _LEAVES)
            continue
        field = "healthzBindAddress" if name == "health" else "metricsBindAddress"
        yield Finding(Standing.OBSTACLE, f"{name} port", taken, f"stop that, or set {field} to another port")


def _read(config: Path) -> tuple[str, str]:
    """Return the text of the configuration, and what to call it."""
    try:
        if str(config) == "-":
            return read_until_end(sys.stdin.fileno(), None if sys.stdin.isatty() else SILENCE), "standard input"
        return read_file(config, MAX_SIZE).decode("utf-8-sig"), str(config)
    except OSError as error:
        raise OSError(f"--config {config}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--config {config}: it is no text in UTF-8") from error


def read_until_end(descriptor: int, silence: float | None) -> str:
    """Read a document up to the end of the input, or to a line of three dots (YAML 1.2, 9.1.2).

    ``silence`` is how many seconds may pass in which nothing comes, ``None`` for any number: the standard input of a
    container may never end (``stdinOnce`` of the Kubernetes API).

    Raises:
        ValueError: if nothing comes any more, if there is too much of it, or if it is no text in UTF-8.
        OSError: if it cannot be read.

    """
    received = bytearray()
    while select([descriptor], [], [], silence)[0]:
        piece = os.read(descriptor, LONGEST)
        looked_at = max(0, len(received) - len(_DOTS))
        received += piece
        end = received.find(_DOTS, looked_at)
        if end >= 0 or not piece:
            return bytes(received[: end + 1] if end >= 0 else received).decode("utf-8-sig")
        if len(received) > LONGEST:
            raise ValueError(f"--config -: it has more than {LONGEST:,} bytes")
    raise ValueError(
        f"--config -: nothing has come for {silence:g} s, and it has not ended: end it with a line of three dots (...)"
    )


def _load(text: str, name: str) -> tuple[Settings, list[Note]]:
    """Return the settings of a configuration, and what the agent would log of it.

    Raises:
        SettingsError: if it cannot be used, with one line for each fault.

    """
    fields, notes = read_text(_unwrapped(text), name)
    settings = effective({"hostname_override": "node"}, fields)
    return settings, [*settings.notes, *notes]


def _unwrapped(text: str) -> str:
    """Return the configuration in the manifest of a ConfigMap; anything else as it is."""
    try:
        documents = parse_yaml(text).documents
    except ParseError:
        return text  # a fault that its reader words better
    manifest = documents[0] if len(documents) == 1 else None
    if not isinstance(manifest, dict) or manifest.get("kind") != "ConfigMap":
        return text
    data = manifest.get("data")
    values = data.values() if isinstance(data, dict) else ()
    for value in values:
        if isinstance(value, str) and row.KUBE_PROXY.kind in value:
            return value
    raise SettingsError(f"the ConfigMap has no {row.KUBE_PROXY.kind} in its data")


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
