"""Puts the agent together and runs it until it is told to stop.

The start goes from what can refuse it to what needs it: the checks of the node, the settings of the kernel, the
scheduler, then the loops. A missing piece ends the start with one line. SIGTERM and SIGINT end the agent at once; the
kernel stays as it is, so traffic goes on, and the next start takes over.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

import structlog

from ipvs_proxy import __version__
from ipvs_proxy.agent.audit import Audit, audit_for_ever, follow_for_ever
from ipvs_proxy.agent.controller import Controller
from ipvs_proxy.agent.dead_nodes import DeadNodes
from ipvs_proxy.agent.drain import Drains, end_drains_for_ever, watch_writes
from ipvs_proxy.agent.health import HealthTracker
from ipvs_proxy.agent.local_detection import adapt_rules, rule_settings
from ipvs_proxy.agent.logs import configure
from ipvs_proxy.agent.metrics import Metrics
from ipvs_proxy.agent.node_facts import NodeFacts
from ipvs_proxy.agent.programmer import Programmer
from ipvs_proxy.agent.reports import Reports, report_refused_health_check
from ipvs_proxy.agent.server import health_application, metrics_application, serve_for_ever
from ipvs_proxy.agent.service_health import ServiceHealth
from ipvs_proxy.agent.settings import Settings
from ipvs_proxy.agent.stale_flows import StaleFlows
from ipvs_proxy.kernel import preflight, sysctl
from ipvs_proxy.kernel.addresses import Addresses
from ipvs_proxy.kernel.dataplane import Dataplane
from ipvs_proxy.kernel.errors import Unusable
from ipvs_proxy.kernel.host_addresses import HostAddresses
from ipvs_proxy.kernel.ipvs import Ipvs, Timeouts
from ipvs_proxy.kernel.leftovers import Leftovers
from ipvs_proxy.kernel.monitor import Change, Event, Monitor
from ipvs_proxy.kernel.rules import IptablesRules
from ipvs_proxy.kernel.sets import Sets
from ipvs_proxy.kube.client import Client, ConnectError, connect
from ipvs_proxy.kube.events import Events
from ipvs_proxy.kube.manifests import ManifestsError, follow_manifests
from ipvs_proxy.kube.nodes import get_node
from ipvs_proxy.kube.reflector import reflect
from ipvs_proxy.kube.resources import ENDPOINT_SLICES, SERVICES, own_node
from ipvs_proxy.plan.addresses import parse_address
from ipvs_proxy.plan.fragment import Context
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.sets import definitions
from ipvs_proxy.plan.tables import Family, text_of

log = structlog.get_logger(__name__)

#: How often the delay of the event loop is measured, in seconds: often enough to meet what keeps it for 50 ms.
LOOP_DELAY_INTERVAL = 0.05
#: So many new objects are looked through for garbage at once; that takes some milliseconds.
GC_THRESHOLD = 20_000


def run(settings: Settings) -> int:
    """Run the agent until SIGTERM or SIGINT; give the exit status: 0, or 1 with one line on standard error."""
    # A start makes a million objects that stay: looking through them for garbage again and again took a fifth of it.
    gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])
    configure(settings.verbosity, settings.logging_format)
    try:
        asyncio.new_event_loop().run_until_complete(_run(settings))
    except (Unusable, ConnectError, ManifestsError) as error:
        sys.stderr.write(f"ipvs-proxy: error: {error}\n")
        return 1
    sys.stderr.flush()
    # A worker thread may be in the middle of a long read: nobody needs its result, and writes are whole messages.
    os._exit(0)


async def _run(settings: Settings) -> None:
    begun = time.monotonic()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    log.info("starting", version=__version__, node=settings.node_name, scheduler=settings.scheduler)
    for event, fields in settings.notes:
        log.warning(event, **fields)
    host = preflight.check()
    for family, reason in host.unsupported.items():
        log.warning("family_unsupported", family=family.label, reason=reason)
    dataplane = prepare_kernel(settings, host)
    loops, programmer = await _assemble(settings, host, dataplane)
    await _run_until(stop, loops)
    programmer.close()
    log.info("stopped", kernel_writes=programmer.kernel_writes(), seconds=round(time.monotonic() - begun, 1))


async def _assemble(
    settings: Settings, host: preflight.Host, dataplane: Dataplane
) -> tuple[list[Coroutine[Any, Any, None]], Programmer]:
    """Make the parts and tell them of each other; give the loops to run, and who writes to the kernel."""
    metrics = Metrics(host.families)
    health = HealthTracker(host.families, sync_period=settings.sync_period)
    programmer = Programmer(dataplane, count=metrics.operations, exclude=settings.exclude_cidrs)
    client = None if settings.manifests else await connect(kubeconfig=settings.kubeconfig, master=settings.master)
    events = None if client is None else Events(client.send, reporting_instance=f"ipvs-proxy-{socket.gethostname()}")
    emit = None if events is None else events.emit
    facts = NodeFacts(
        HostAddresses().read,
        node_port_cidrs=settings.node_port_addresses,
        bind_address=parse_address(settings.bind_address),
        families=host.families,
    )
    checks = ServiceHealth(
        healthy=health.healthy,
        addresses=partial(_health_check_addresses, settings, facts),
        refused=partial(report_refused_health_check, emit),
    )
    controller = Controller(
        programmer,
        context=Context(settings.node_name, settings.scheduler, families=host.families, compatible=settings.compatible),
        recorder=Reports(metrics, health, wish=checks.wish, emit=emit),
        marks=Marks(settings.masquerade_bit),
        facts=facts,
        adapt_rules=lambda node: adapt_rules(dataplane.rules, settings, node),
        min_sync_period=settings.min_sync_period,
    )
    drains = Drains(deadline=settings.drain_timeout, finished=metrics.drain_finished, node_of=controller.node_of)
    watch_writes(programmer, drains)
    flows = StaleFlows(
        lambda: programmer.desired.virtual_servers, cleaned=metrics.cleaned, also_allowed=programmer.desired.internal
    )
    programmer.on_write(flows.observe)
    # A socket of its own: the audit reads beside the writes.
    reader = Ipvs()
    audit = Audit(
        programmer,
        dataplane,
        read_virtual_servers=lambda: reader.read(programmer.actual.virtual_servers.copy()).virtual_servers,
        repaired=metrics.repaired,
    )
    _watch_gauges(metrics, programmer, drains, events)
    loops: list[Coroutine[Any, Any, None]] = [
        controller.run(),
        programmer.retry_for_ever(),
        end_drains_for_ever(programmer, drains, dataplane.connections, _dead_nodes(client)),
        flows.clean_for_ever(),
        checks.serve_for_ever(),
        _after(
            controller.started,
            lambda: audit_for_ever(
                audit, period=settings.sync_period, begun=health.queued, finished=lambda: _audited(programmer, health)
            ),
        ),
        _after(controller.started, lambda: follow_for_ever(partial(_notice, audit, controller, checks), Monitor)),
        _after(controller.started, _spare_collections),
        _measure_loop_delay(metrics.loop_delay),
        serve_for_ever(health_application(health, metrics), settings.healthz_bind_address, name="healthz"),
        serve_for_ever(metrics_application(metrics), settings.metrics_bind_address, name="metrics"),
        *_sources(settings, controller, client),
        *([] if events is None else [events.post_for_ever()]),
    ]
    return loops, programmer


def prepare_kernel(settings: Settings, host: preflight.Host) -> Dataplane:
    """Set the kernel's sysctls and timeouts, probe the scheduler, and open the tables.

    Raises:
        Unusable: for the first thing that does not work: one line that names it and the remedy.

    """
    for change in sysctl.apply(strict_arp=settings.strict_arp):
        log.info("sysctl_set", name=change.name, found=change.found, wanted=change.wanted)
    for warning in sysctl.warnings(ipv6=Family.IPV6 in host.families):
        log.warning("sysctl_warning", text=warning)
    ipvs = Ipvs()
    in_use = ipvs.read_virtual_servers().virtual_servers.values()
    if not any(server.scheduler == settings.scheduler for server in in_use):
        ipvs.probe_scheduler(settings.scheduler)
    timeouts = Timeouts(int(settings.tcp_timeout), int(settings.tcp_fin_timeout), int(settings.udp_timeout))
    if any(timeouts):
        ipvs.set_timeouts(timeouts)
    return Dataplane(
        ipvs=ipvs,
        addresses=Addresses(),
        sets=Sets([definition for family in host.families for definition in definitions(family).values()]),
        rules={
            family: IptablesRules(family, rule_settings(settings, family, None), iptables=host.iptables)
            for family in host.families
        },
        leftovers=Leftovers(host.iptables, host.families),
    )


def _sources(settings: Settings, controller: Controller, client: Client | None) -> list[Coroutine[Any, Any, None]]:
    """Give the loops that bring objects: of the manifests, or of the API."""
    if settings.manifests is not None:
        return [follow_manifests(settings.manifests, settings.node_name, controller)]
    resources = (SERVICES, ENDPOINT_SLICES, own_node(settings.node_name))
    return [reflect(resource, client, controller) for resource in resources if client is not None]


def _dead_nodes(client: Client | None) -> Callable[[set[str]], Awaitable[Collection[str]]]:
    """Give what tells which nodes are dead: the API; manifests say nothing of it."""
    if client is not None:
        return DeadNodes(partial(get_node, client)).among

    async def none_known(_: set[str]) -> Collection[str]:
        return ()

    return none_known


def _health_check_addresses(settings: Settings, facts: NodeFacts, family: Family) -> list[str] | None:
    """Give where health checks of Services are served: as node ports are; ``None`` for all addresses."""
    if not settings.node_port_addresses:
        return None
    length = 4 if family is Family.IPV4 else 16
    return [text_of(address) for address in facts.facts.node_port_addresses if len(address) == length]


async def _notice(audit: Audit, controller: Controller, checks: ServiceHealth, events: list[Event]) -> None:
    """Take in what rtnetlink tells: of our own link, and of the addresses of others."""
    await audit.notice(events)
    if any(event.change in {Change.HOST_ADDRESSES_CHANGED, Change.LOST} for event in events):
        await controller.refresh_facts()
        checks.readdress()


def _watch_gauges(metrics: Metrics, programmer: Programmer, drains: Drains, events: Events | None) -> None:
    metrics.watch("virtual_servers", lambda: len(programmer.actual.virtual_servers))
    metrics.watch(
        "real_servers",
        lambda: sum(len(server.real_servers) for server in list(programmer.actual.virtual_servers.values())),
    )
    metrics.watch("foreign_virtual_servers", lambda: len(programmer.foreign))
    metrics.watch("drains", lambda: len(drains))
    metrics.watch("events_dropped", lambda: 0 if events is None else events.dropped)
    metrics.watch("kernel_writes", programmer.kernel_writes)


def _audited(programmer: Programmer, health: HealthTracker) -> None:
    if not programmer.retries:
        health.updated()


async def _after(event: asyncio.Event, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await event.wait()
    await loop()


async def _spare_collections() -> None:
    """Keep what the start has made out of all later collections of garbage.

    Looking through the objects of 10,000 Services would keep the event loop for some tenths of a second.
    """
    gc.freeze()
    await asyncio.Event().wait()


async def _measure_loop_delay(observe: Callable[[float], None]) -> None:
    """Measure how long something else kept the event loop."""
    while True:
        before = time.monotonic()
        await asyncio.sleep(LOOP_DELAY_INTERVAL)
        observe(max(0.0, time.monotonic() - before - LOOP_DELAY_INTERVAL))


async def _run_until(stop: asyncio.Event, loops: list[Coroutine[Any, Any, None]]) -> None:
    """Run all loops until told to stop; a loop that ends before that is a fault, which ends the agent."""
    tasks = [asyncio.create_task(loop) for loop in loops]
    waiting = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([*tasks, waiting], return_when=asyncio.FIRST_COMPLETED)
    for task in [*tasks, waiting]:
        task.cancel()
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), timeout=0.5)
    for task in done - {waiting}:
        if not task.cancelled():
            task.result()
