"""``ipvs-proxy migrate check``: what it means for this node if ipvs-proxy takes the place of kube-proxy.

The report has one line for each fact, with one of four standings: it was found, it will change, it is not supported, or
it stands in the way; the last two come with a remedy. Judging is pure; the facts come from ``node.inventory``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from ipvs_proxy import __version__
from ipvs_proxy.commands.kube_proxy_configuration import load, read
from ipvs_proxy.commands.node_findings import Kind, find, finding_text
from ipvs_proxy.kernel.filter.backend import NFTABLES
from ipvs_proxy.kernel.links.addresses import LINK
from ipvs_proxy.kube.resources import SERVICE_PROXY_NAME
from ipvs_proxy.node.inventory import Inventory, take_inventory
from ipvs_proxy.node.processes import KUBE_PROXY, Process
from ipvs_proxy.settings.merge import effective
from ipvs_proxy.settings.model import Settings, SettingsError

READY, ERROR, OBSTRUCTED = 0, 1, 2
_WIDTH: Final = 100
_DEFAULTS: Final = Settings(node_name="node")
_NO_FLAGS: Final[Mapping[str, object]] = MappingProxyType({})
_LEAVES: Final = "take it off this node before the agent starts there (see docs/migration.md)"


class Standing(Enum):
    """What something means for the migration."""

    FOUND = "found"
    CHANGE = "will change"
    UNSUPPORTED = "unsupported"
    OBSTACLE = "in the way"


class Consequence(NamedTuple):
    """A fact of the node or its configuration, what it means for the migration, and what to do about it, if anything.

    The remedy is empty where there is nothing to do.
    """

    standing: Standing
    topic: str
    text: str
    remedy: str = ""


#: What the findings mean that ``doctor`` has too.
_STANDINGS: Final[Mapping[Kind, Standing]] = {
    Kind.MISSING_PIECE: Standing.OBSTACLE,
    Kind.FAMILY_NOT_SERVED: Standing.UNSUPPORTED,
    Kind.FLAW: Standing.UNSUPPORTED,
    Kind.RULES_IN_OTHER_VARIANT: Standing.OBSTACLE,
    Kind.FOREIGN_VIRTUAL_SERVERS: Standing.FOUND,
    Kind.IPVS_MODE: Standing.OBSTACLE,
    Kind.NO_KUBE_PROXY: Standing.OBSTACLE,
    Kind.CLEARED: Standing.UNSUPPORTED,
}


def check(config: Path | None, *, as_json: bool, service_proxy_name: str = "") -> int:
    """Print the report; return the exit status: READY, OBSTRUCTED, or ERROR with one line on standard error.

    ``config`` is kube-proxy's configuration, or the manifest of a ConfigMap that has it; ``-`` for standard input.
    ``service_proxy_name`` is the label of the Services that are to be served, if kube-proxy is to stay for the others.
    """
    try:
        flags = {"service_proxy_name": service_proxy_name} if service_proxy_name else {}
        consequences: list[Consequence] = []
        settings = effective({"hostname_override": "node", **flags})
        if config is not None:
            settings, consequences = judge_configuration(*read(config), flags=flags)
        ports = {
            name: int(address.rpartition(":")[2])
            for name, address in (("health", settings.healthz_bind_address), ("metrics", settings.metrics_bind_address))
        }
        found = take_inventory(
            scheduler=settings.scheduler,
            strict_arp=settings.strict_arp,
            ports=ports.values(),
            packet_filter=settings.packet_filter,
        )
    except (OSError, ValueError, SettingsError) as error:
        sys.stderr.write(f"ipvs-proxy: error: {error}\n")
        return ERROR
    consequences = [*judge_node(found, settings, ports), *consequences]
    sys.stdout.write(_as_json(consequences) if as_json else report(consequences))
    return OBSTRUCTED if any(consequence.standing is Standing.OBSTACLE for consequence in consequences) else READY


def judge_configuration(
    text: str, name: str, *, flags: Mapping[str, object] = _NO_FLAGS
) -> tuple[Settings, list[Consequence]]:
    """Read a configuration; return its settings (the defaults if it cannot be used) and what there is to say of it.

    ``flags`` are given beside it.
    """
    try:
        settings, notes = load(text, name, flags)
    except SettingsError as error:
        remedy = "correct it, as the agent would refuse it too"
        faults = [Consequence(Standing.OBSTACLE, "configuration", line, remedy) for line in str(error).splitlines()]
        return _DEFAULTS, faults
    consequences = [Consequence(Standing.FOUND, "configuration", f"{name} can be used as it is")]
    for event, fields in notes:
        values = "; ".join(_words(value) for value in fields.values() if value)
        consequences.append(Consequence(Standing.UNSUPPORTED, "configuration", f"{event.replace('_', ' ')}: {values}"))
    return settings, consequences


def judge_node(found: Inventory, settings: Settings, ports: dict[str, int]) -> list[Consequence]:
    """Say what a node is like, and what that means."""
    if found.agent:
        text = "an agent is at work on this node: there is nothing to migrate"
        unchanged = Kind.RULES_IN_OTHER_VARIANT, Kind.FOREIGN_VIRTUAL_SERVERS
        done = Consequence(Standing.FOUND, "ipvs-proxy", text)
        return [*_judge_kernel(found, without=unchanged, beside=found.beside), done]
    if settings.service_proxy_name:
        return [*_judge_kernel(found, beside=True), *_judge_beside(found, settings, ports)]
    return [*_judge_kernel(found), *_judge_traces(found, settings), *_judge_processes(found, ports)]


def report(consequences: list[Consequence]) -> str:
    """Return the report as aligned text; its last line says whether the node is ready."""
    width = max(len(consequence.topic) for consequence in consequences) + 2
    text = f"ipvs-proxy {__version__}: migration of this node\n\n"
    for standing in Standing:
        for consequence in (consequence for consequence in consequences if consequence.standing is standing):
            start = f"  {standing.value:<13}{consequence.topic:<{width}}"
            text += finding_text(start, consequence.text, consequence.remedy, width=_WIDTH)
    obstacles = sum(consequence.standing is Standing.OBSTACLE for consequence in consequences)
    things = "1 thing stands" if obstacles == 1 else f"{obstacles} things stand"
    end = f"Not ready: {things} in the way." if obstacles else "Ready: nothing stands in the way."
    return f"{text}\n{end}\n"


def _as_json(consequences: list[Consequence]) -> str:
    ready = all(consequence.standing is not Standing.OBSTACLE for consequence in consequences)
    facts = [consequence._asdict() | {"standing": consequence.standing.name.lower()} for consequence in consequences]
    return json.dumps({"version": __version__, "ready": ready, "findings": facts}, indent=2) + "\n"


def _judge_kernel(found: Inventory, *, without: Collection[Kind] = (), beside: bool = False) -> Iterator[Consequence]:
    chosen = found.iptables
    if found.packet_filter:
        kernel = ".".join(map(str, found.kernel))
        text = f"Linux {kernel}; packet filter {found.packet_filter}, as {found.reason}"
        if chosen is not None:
            text += f"; iptables {chosen.version_text}, variant {chosen.backend}, as {chosen.reason}"
        yield Consequence(Standing.FOUND, "kernel", text)
    for finding in find(found, beside=beside):
        if finding.kind not in without:
            yield Consequence(_STANDINGS[finding.kind], finding.topic, finding.text, finding.remedy)
    for change in found.sysctls:
        yield Consequence(Standing.CHANGE, "sysctl", f"{change.dotted_name}: {change.found} -> {change.wanted}")


def _judge_traces(found: Inventory, settings: Settings) -> Iterator[Consequence]:
    """Say in which modes kube-proxy has run here, and what becomes of what it left."""
    servers = found.schedulers.total()
    taken_over = found.link or found.sets or servers
    if taken_over:
        text = f"IPVS mode: virtual servers {servers}, addresses on {LINK} {found.addresses}, sets {found.sets}"
        yield Consequence(Standing.FOUND, KUBE_PROXY, text)
        yield Consequence(
            Standing.CHANGE, "IPVS mode", "taken over as it is: what is right is not written, connections go on"
        )
    if found.packet_filter == NFTABLES and (found.sets or found.ipvs_mode):
        text = "its sets and rules are in nftables then; those of ipset and iptables go when ours are complete"
        yield Consequence(Standing.CHANGE, "IPVS mode", text)
    for scheduler, number in sorted(found.schedulers.items()):
        if scheduler != settings.scheduler:
            text = f"of the virtual servers {number} have {scheduler}; Services get {settings.scheduler}"
            yield Consequence(Standing.CHANGE, "scheduler", text)
    backend = "" if found.iptables is None else found.iptables.backend
    for (family, variant), number in found.iptables_mode.items():
        yield Consequence(Standing.FOUND, KUBE_PROXY, f"iptables mode: chains of {family} in {variant}: {number}")
        if variant == backend or found.packet_filter == NFTABLES:
            text = f"{family}: its chains serve until all virtual servers are complete, and are removed then"
            yield Consequence(Standing.CHANGE, "iptables mode", text)
    for family_of_table in found.nftables_mode:
        yield Consequence(Standing.FOUND, KUBE_PROXY, f"nftables mode: the table of {family_of_table.label}")
        text = f"{family_of_table.label}: its table serves until all virtual servers are complete, and is removed then"
        yield Consequence(Standing.CHANGE, "nftables mode", text)
    if not (taken_over or found.iptables_mode or found.nftables_mode):
        yield Consequence(Standing.FOUND, KUBE_PROXY, "has left nothing on this node")


def _judge_beside(found: Inventory, settings: Settings, ports: dict[str, int]) -> Iterator[Consequence]:
    """Say what becomes of a node whose kube-proxy stays."""
    label = f"{SERVICE_PROXY_NAME}: {settings.service_proxy_name}"
    yield Consequence(
        Standing.CHANGE, "Services", f"those with the label {label} are served by IPVS, all others as now"
    )
    for (family, variant), number in found.iptables_mode.items():
        yield Consequence(Standing.FOUND, KUBE_PROXY, f"iptables mode: chains of {family} in {variant}: {number}; stay")
    for family_of_table in found.nftables_mode:
        yield Consequence(Standing.FOUND, KUBE_PROXY, f"nftables mode: the table of {family_of_table.label}; stays")
    for name, port in ports.items():
        if (holder := found.holders.get(port)) is not None:
            yield Consequence(Standing.OBSTACLE, f"{name} port", f"{port} is taken by {holder}", _other_port(name))


def _judge_processes(found: Inventory, ports: dict[str, int]) -> Iterator[Consequence]:
    if found.kube_proxy is not None:
        yield Consequence(Standing.CHANGE, KUBE_PROXY, f"{found.kube_proxy} is running", _LEAVES)
    for name, port in ports.items():
        holder = found.holders.get(port)
        if holder is None or holder.name == KUBE_PROXY:
            continue
        taken = f"{port} is taken by {holder}"
        if holder == Process() and found.kube_proxy is None:
            yield Consequence(Standing.CHANGE, f"{name} port", f"{taken}, as by a running kube-proxy", _LEAVES)
            continue
        yield Consequence(Standing.OBSTACLE, f"{name} port", taken, f"stop that, or {_other_port(name)}")


def _other_port(name: str) -> str:
    return f"set {'healthzBindAddress' if name == 'health' else 'metricsBindAddress'} to another port"


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
