"""Puts the agent's parts together: who reads, who plans, who writes, and who hears of what.

Everything that a part needs is an argument of its constructor, so parts are made in the order in which they depend on
one another. Nothing runs before ``Agent.loops`` is run, and each loop runs for ever.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from ipvs_proxy.agent import tuning
from ipvs_proxy.agent.local_detection import adapt_rules
from ipvs_proxy.agent.observe.health import HealthTracker
from ipvs_proxy.agent.observe.history import History
from ipvs_proxy.agent.observe.logs import set_verbosity
from ipvs_proxy.agent.observe.metrics import Metrics
from ipvs_proxy.agent.observe.reports import Emit, Reports, report_refused_health_check, watch_health_for_ever
from ipvs_proxy.agent.observe.service_traffic import ServiceTraffic
from ipvs_proxy.agent.observe.standard_error import dropped_lines
from ipvs_proxy.agent.open_kernel import open_tables, set_kernel
from ipvs_proxy.agent.reload import follow_configuration
from ipvs_proxy.agent.sync import schedulers, startup
from ipvs_proxy.agent.sync.astray_flows import AstrayFlows
from ipvs_proxy.agent.sync.audit import Audit, audit_for_ever, follow_for_ever
from ipvs_proxy.agent.sync.controller import Controller
from ipvs_proxy.agent.sync.dead_nodes import DeadNodes
from ipvs_proxy.agent.sync.departed import DepartedEndpoints
from ipvs_proxy.agent.sync.drains import Drains, Looks, end_drains_for_ever
from ipvs_proxy.agent.sync.forwarding import Ipv6Use
from ipvs_proxy.agent.sync.kernel_writer import KernelWriter
from ipvs_proxy.agent.sync.node_facts import NodeFacts
from ipvs_proxy.agent.sync.stale_flows import StaleFlows
from ipvs_proxy.agent.sync.virtual_endpoints import VirtualEndpoints
from ipvs_proxy.agent.sync.warmups import warm_up_for_ever
from ipvs_proxy.agent.web.listener import Doorkeeper
from ipvs_proxy.agent.web.server import health_application, metrics_application, serve_for_ever
from ipvs_proxy.agent.web.service_health import ServiceHealth
from ipvs_proxy.agent.web.state_pages import add_state
from ipvs_proxy.agent.web.view import View
from ipvs_proxy.kernel.dataplane import Dataplane
from ipvs_proxy.kernel.ipvs.comparison import Comparison
from ipvs_proxy.kernel.ipvs.connections import open_among
from ipvs_proxy.kernel.ipvs.table import Ipvs
from ipvs_proxy.kernel.links.host_addresses import HostAddresses
from ipvs_proxy.kernel.links.monitor import LinkChange, LinkEvent, Monitor
from ipvs_proxy.kube.client import Client, connect
from ipvs_proxy.kube.events import Events
from ipvs_proxy.kube.hearing import Hearing
from ipvs_proxy.kube.manifests import follow_manifests
from ipvs_proxy.kube.nodes import get_node
from ipvs_proxy.kube.objects import Node, ObjectMeta
from ipvs_proxy.kube.peers import follow_peers
from ipvs_proxy.kube.reflector import reflect
from ipvs_proxy.kube.resources import ENDPOINT_SLICES, Resource, own_node, services_for
from ipvs_proxy.kube.sinks import NOBODY, Observer
from ipvs_proxy.node.packet_filters import Host
from ipvs_proxy.plan.addresses import parse_address
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.fragment import Context, ServiceName
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.node_addresses import Interfaces
from ipvs_proxy.plan.tables import Family, text_of
from ipvs_proxy.settings.model import Settings
from ipvs_proxy.snapshots import snapshot

log = structlog.get_logger(__name__)

Loop = Coroutine[Any, Any, None]


class Agent:
    """The parts of a running agent. ``settings`` are those in use: a changed file replaces them."""

    def __init__(self, settings: Settings, host: Host, dataplane: Dataplane, client: Client | None) -> None:
        self.settings = settings
        self._host = host
        self._dataplane = dataplane
        self._client = client
        self._events = events_of(client, settings.node_name)
        desired = DesiredTables()
        self._traffic = ServiceTraffic(desired, detail=settings.service_metrics)
        self._metrics = Metrics(host.families, service_traffic=self._traffic.expose)
        self._resources = () if client is None else resources_of(settings)
        self._hearing = Hearing(self._resources, self._metrics)
        self._health = HealthTracker(
            host.families, sync_period=settings.sync_period, api_failures=self._hearing.failures
        )
        self._history = History()
        self._facts = node_facts_of(settings, host.families, HostAddresses().read)
        self._doorkeeper = Doorkeeper(
            malformed=self._metrics.malformed_request, displaced=self._metrics.connection_displaced
        )
        self._checks = self._make_health_checks()
        self._reports = Reports(
            self._metrics, self._health, wish=self._checks.wish, emit=self._emit, history=self._history
        )
        departed = DepartedEndpoints(settings.node_name)
        self._drains = Drains(
            deadline=settings.drain_timeout, finished=self._metrics.drain_finished, node_of=departed.node_of
        )
        self._flows = StaleFlows(
            lambda: desired.virtual_servers, cleaned=self._metrics.cleaned, also_allowed=desired.internal
        )
        self._astray = AstrayFlows(lambda: desired.virtual_servers) if settings.service_proxy_name else None
        self._ipv6 = Ipv6Use()
        self.writer = KernelWriter(
            dataplane,
            desired,
            count=self._metrics.operations,
            observers=(self._drains, self._flows, self._ipv6, *(() if self._astray is None else (self._astray,))),
            exclude=settings.exclude_cidrs,
        )
        self._controller = self._make_controller(departed)
        self._virtual_endpoints = VirtualEndpoints(desired, self._controller.cache.services, self._reports.left_out)
        self._audit = self._make_audit()
        self._view = self._make_view()
        self._watch_gauges()

    @property
    def _emit(self) -> Emit | None:
        return None if self._events is None else self._events.emit

    def _make_health_checks(self) -> ServiceHealth:
        return ServiceHealth(
            healthy=self._health.healthy,
            addresses=self._health_check_addresses,
            refused=self._refused_health_check,
            doorkeeper=self._doorkeeper,
        )

    def _make_controller(self, departed: DepartedEndpoints) -> Controller:
        return Controller(
            self.writer,
            context=context_of(self.settings, self._host.families, spells_marks=self._dataplane.spells_marks),
            recorder=self._reports,
            marks=Marks(self.settings.masquerade_bit),
            facts=self._facts,
            departed=departed,
            adapt_rules=self._adapt_rules,
            min_sync_period=self.settings.min_sync_period,
        )

    def _make_audit(self) -> Audit:
        # A socket of its own: the audit reads beside the writes.
        return Audit(
            self.writer, repair_rules=self._dataplane.repair_rules, reader=Comparison(Ipvs()), repaired=self._repaired
        )

    def _make_view(self) -> View:
        return View(
            self._controller,
            self.writer,
            settings=lambda: self.settings,
            families=self._host.families,
            rules=lambda: self._dataplane.packet_filter.settings,
            host_addresses=lambda: self._facts.facts.host_addresses,
            health=self._health,
            drains=self._drains,
            history=self._history,
            open_tables=self._open_tables,
            name_of_role=self._dataplane.name_of_role,
        )

    def loops(self, config: Path | None, reread: Callable[[], Settings] | None) -> list[Loop]:
        """Return the loops that make up the agent; each runs for ever."""
        started = self._controller.started
        loops: list[Loop] = [
            startup.run(self._controller),
            self.writer.retry_for_ever(),
            end_drains_for_ever(
                self.writer,
                self._drains,
                self._dataplane.connections,
                dead_nodes_of(self._client),
                Looks(open_among),
            ),
            self._flows.clean_for_ever(),
            schedulers.look_for_ever(self._controller.look_for_schedulers, lambda: self.settings.sync_period),
            warm_up_for_ever(self._controller.planner.warmups, self._controller.replan),
            self._checks.serve_for_ever(),
            _after(started, self._audit_for_ever),
            _after(started, lambda: follow_for_ever(self._notice, Monitor, failed=self._audit.stop_listening)),
            _after(started, self._ipv6.warn),
            _after(started, lambda: self._virtual_endpoints.look_for_ever(lambda: self.writer.changes)),
            _settle(started),
            watch_health_for_ever(self._health.healthy, self._health_changed),
            *self._servers(),
            *sources(self.settings, self._controller, self._client, self._hearing),
        ]
        if self._astray is not None:
            loops.append(self._astray.clean_for_ever())
        if self._events is not None:
            loops.append(self._events.post_for_ever())
        if config is not None and reread is not None:
            loops.append(
                follow_configuration(
                    config, self.settings, read=reread, apply=self.reconfigure, told=self._metrics.configuration_read
                )
            )
        return loops

    def loop_delayed(self, seconds: float) -> None:
        """Count for how long the event loop was kept from its work."""
        self._metrics.loop_delay(seconds)

    async def reconfigure(self, settings: Settings) -> None:
        """Go on with other settings, as far as they may change while the agent runs.

        Raises:
            Unusable: if the kernel refuses one of them; then nothing else changes.

        """
        await self.writer.call(set_kernel, settings, self._dataplane.ipvs)
        self.settings = settings
        set_verbosity(settings.verbosity)
        self._traffic.detail = settings.service_metrics
        self._health.sync_period = settings.sync_period
        self._drains.deadline = settings.drain_timeout
        self._facts.node_port_cidrs = settings.node_port_addresses
        await self._controller.reconfigure(
            scheduler=settings.scheduler,
            compatible=settings.compatible,
            min_sync_period=settings.min_sync_period,
            external_ips=settings.external_ips,
        )
        self._checks.readdress()

    def _adapt_rules(self, node: Node | None) -> bool:
        return adapt_rules(self._dataplane.packet_filter, self.settings, node)

    def _servers(self) -> list[Loop]:
        serve = partial(serve_for_ever, hard_fail=self.settings.bind_address_hard_fail, doorkeeper=self._doorkeeper)
        metrics = metrics_application(self._metrics, settings=lambda: self.settings)
        add_state(metrics, self._view)
        servers = [serve(metrics, self.settings.metrics_bind_address, name="metrics")]
        if self.settings.healthz_bind_address:
            health = health_application(self._health, self._metrics)
            servers.append(serve(health, self.settings.healthz_bind_address, name="healthz"))
        return servers

    async def _audit_for_ever(self) -> None:
        await audit_for_ever(
            self._audit,
            period=lambda: self.settings.sync_period,
            begun=self._health.queued,
            finished=self._audited,
        )

    def _repaired(self, table: str, drift: Sequence[str]) -> None:
        self._metrics.repaired(table, len(drift))
        self._history.repaired(table, drift)

    def _open_tables(self) -> Dataplane:
        return open_tables(self.settings, self._host, Ipvs(), self._controller.cache.node)

    def _health_changed(self, healthy: bool) -> None:
        self._reports.health_changed(self._controller.cache.node, self.settings.node_name, healthy=healthy)

    def _refused_health_check(self, name: ServiceName, port: int, error: OSError) -> None:
        service = self._controller.cache.services.get(name)
        metadata = ObjectMeta(name.name, name.namespace) if service is None else service.metadata
        report_refused_health_check(self._emit, metadata, port, error)

    def _audited(self) -> None:
        if not self.writer.retries.is_held_up():
            self._health.updated()

    def _health_check_addresses(self, family: Family) -> list[str] | None:
        """Return where health checks of Services are served: as node ports are; ``None`` for all addresses."""
        if not self.settings.node_port_addresses:
            return None
        length = 4 if family is Family.IPV4 else 16
        return [text_of(address) for address in self._facts.facts.node_port_addresses if len(address) == length]

    async def _notice(self, events: list[LinkEvent]) -> None:
        """Take in what rtnetlink reports of our own link, and of the addresses of others."""
        await self._audit.handle_events(events)
        if any(event.change in {LinkChange.HOST_ADDRESSES_CHANGED, LinkChange.LOST} for event in events):
            await self._controller.refresh_facts()
            self._checks.readdress()

    def _watch_gauges(self) -> None:
        watch, events = self._metrics.watch, self._events
        watch("virtual_servers", lambda: len(self.writer.actual.virtual_servers))
        watch("real_servers", lambda: max(0, self._real_servers() - len(self._drains)), state="serving")
        watch("real_servers", lambda: len(self._drains), state="draining")
        watch("warming_endpoints", self._controller.planner.warmups.__len__)
        self._metrics.watch_schedulers(self._schedulers_in_use)
        watch("foreign_virtual_servers", lambda: len(self.writer.foreign))
        for resource in self._resources:
            watch("watch_failing_seconds", partial(self._hearing.failing_for, resource.kind), resource=resource.kind)
        self._metrics.watch_total("events_dropped", lambda: 0 if events is None else events.dropped)
        self._metrics.watch_total("kernel_writes", self.writer.kernel_writes)
        self._metrics.watch_total("log_lines_dropped", dropped_lines)

    def _schedulers_in_use(self) -> Counter[str]:
        return Counter(server.scheduler for server in snapshot(self.writer.actual.virtual_servers).values())

    def _real_servers(self) -> int:
        """Count them, in the thread of a scrape: nobody keeps their number while Services change."""
        return sum(len(server.real_servers) for server in snapshot(self.writer.actual.virtual_servers).values())


async def connect_to_api(settings: Settings) -> Client | None:
    """Return a client of the API; ``None`` if the objects come from files."""
    return None if settings.manifests else await connect(kubeconfig=settings.kubeconfig, master=settings.master)


def events_of(client: Client | None, node_name: str) -> Events | None:
    """Return what posts events to the API; ``None`` without one."""
    return None if client is None else Events(client.send, reporting_instance=f"ipvs-proxy-{node_name}")


def sources(
    settings: Settings, controller: Controller, client: Client | None, observer: Observer = NOBODY
) -> list[Loop]:
    """Return the loops that bring objects: of the manifests, or of the API, whose silence ``observer`` notices."""
    if settings.manifests is not None:
        name = settings.service_proxy_name
        return [follow_manifests(settings.manifests, settings.node_name, controller, service_proxy_name=name)]
    if client is None:
        return []
    return [
        follow_peers(client.peers, controller.take_peers),
        *(reflect(resource, client, controller, observer=observer) for resource in resources_of(settings)),
    ]


def context_of(settings: Settings, families: Sequence[Family], *, spells_marks: bool) -> Context:
    """Return what plans need to know of the settings; what they need to know of the node comes later."""
    return Context(
        settings.node_name,
        settings.scheduler,
        families=tuple(families),
        compatible=settings.compatible,
        external_ips=settings.external_ips,
        spells_marks=spells_marks,
        service_proxy_name=settings.service_proxy_name,
    )


def node_facts_of(
    settings: Settings, families: Sequence[Family], read_interfaces: Callable[[], Interfaces]
) -> NodeFacts:
    """Return what finds out about this node's addresses."""
    return NodeFacts(
        read_interfaces,
        node_port_cidrs=settings.node_port_addresses,
        bind_address=parse_address(settings.bind_address),
        families=tuple(families),
    )


def resources_of(settings: Settings) -> tuple[Resource, ...]:
    """Return what is followed at the API."""
    return services_for(settings.service_proxy_name), ENDPOINT_SLICES, own_node(settings.node_name)


def dead_nodes_of(client: Client | None) -> Callable[[set[str]], Awaitable[Collection[str]]]:
    """Return what finds out which of some nodes are dead: it asks the API. Manifests say nothing of it."""
    if client is not None:
        return DeadNodes(partial(get_node, client)).among

    async def none_known(_: set[str]) -> Collection[str]:
        return ()

    return none_known


async def _after(event: asyncio.Event, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await event.wait()
    await loop()


async def _settle(started: asyncio.Event) -> None:
    """Set the process for a running agent; never return, as no loop may."""
    await tuning.settle_after(started)
    await asyncio.Event().wait()
