"""Hands on what happens to all who show it: metrics, the health tracker, events of the API, Services' health checks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import structlog

from ipvs_proxy import __version__
from ipvs_proxy.agent.observe.health import HealthTracker
from ipvs_proxy.agent.observe.history import History
from ipvs_proxy.agent.observe.metrics import Metrics
from ipvs_proxy.kube.events import EventType, Regarding
from ipvs_proxy.kube.objects import Node, ObjectMeta, Service
from ipvs_proxy.kube.texts import quote
from ipvs_proxy.plan.endpoints import Omission
from ipvs_proxy.plan.fragment import HealthCheck, ServiceName
from ipvs_proxy.plan.reasons import SERVED_OTHERWISE
from ipvs_proxy.plan.tables import Family, VirtualServerKey

log = structlog.get_logger(__name__)

#: Seconds between two looks at whether the agent keeps up.
HEALTH_INTERVAL = 1.0


class Emit(Protocol):
    """Makes an event of the API; see ``kube.events.Events.emit``."""

    def __call__(
        self,
        regarding: Regarding,
        *,
        type: EventType,  # noqa: A002  the API's name
        reason: str,
        action: str,
        note: str,
    ) -> None:
        """Note that something happened; never waits, never fails."""


class Reports:
    """What the controller reports goes through here: it is a ``sync.recorder.Recorder``.

    Args:
        metrics: counts all of it.
        health: is told when there is work, and when it is done.
        wish: takes the health checks that a Service wants, by the Service's name.
        emit: makes events of the API; ``None`` where there is no API to have them.
        history: keeps the last changes.

    """

    def __init__(
        self,
        metrics: Metrics,
        health: HealthTracker,
        *,
        wish: Callable[[ServiceName, Mapping[Family, HealthCheck]], None],
        emit: Emit | None,
        history: History,
    ) -> None:
        self._metrics = metrics
        self._health = health
        self._wish = wish
        self._emit = emit
        self._history = history

    def changed(self, kind: str, number: int, *, pending: int) -> None:
        """Count changes of objects, and the Services that wait for being planned."""
        self._metrics.changed(kind, number, pending=pending)

    def queued(self) -> None:
        """Note that there is something to do."""
        self._metrics.queued()
        self._health.queued()

    def synced(self, *, seconds: float, complete: bool) -> None:
        """Note that it is done; what waits for a retry keeps it open."""
        self._metrics.synced(seconds=seconds, complete=complete)
        if complete:
            self._health.updated()

    def programmed(self, *, seconds_since_trigger: float) -> None:
        """Observe how long a change of endpoints took from the cluster to the kernel."""
        self._metrics.programmed(seconds_since_trigger=seconds_since_trigger)

    def wrote(self, services: Sequence[ServiceName], *, operations: int, seconds: float) -> None:
        """Keep a change of Services for those who ask what happened last."""
        self._history.wrote(services, operations=operations, seconds=seconds)

    def health_checks(self, name: ServiceName, wanted: Mapping[Family, HealthCheck]) -> None:
        """Hand on which health checks a Service wants."""
        self._wish(name, wanted)

    def no_local_endpoints(self, services: dict[tuple[str, Family], int]) -> None:
        """Note how many Services have a policy of Local and no endpoint here, by policy and family."""
        self._metrics.no_local_endpoints(services)

    def conflicts(self, number: int) -> None:
        """Note how many claims to virtual servers are lost now."""
        self._metrics.conflicts(number)

    def skipped(self, kind: str, key: str, error: str) -> None:
        """Count an object that could not be read, and make an event for its owner; ``key`` is ``namespace/name``.

        There is no event for an object whose name could not be read either ("").
        """
        self._metrics.skipped(kind)
        if not key:
            return
        namespace, _, name = key.rpartition("/")
        note = f"{quote(error)}; the last version that could be read stays in use, if there was one"
        self._event(kind, ObjectMeta(name, namespace), "Warning", "Unreadable", "Decode", note)

    def node_changed(self, node: Node | None) -> None:
        """Note the own Node."""
        self._health.node_changed(node)

    def started(self, node: Node | None, node_name: str) -> None:
        """Make an event: this node is served."""
        metadata = ObjectMeta(node_name) if node is None else node.metadata
        note = f"ipvs-proxy {__version__} serves the Services of node {node_name}"
        self._event("Node", metadata, "Normal", "Starting", "StartProxy", note)

    def health_changed(self, node: Node | None, node_name: str, *, healthy: bool) -> None:
        """Make an event: this node's agent falls behind, or keeps up again."""
        metadata = ObjectMeta(node_name) if node is None else node.metadata
        if healthy:
            log.info("recovered")
            self._event(
                "Node", metadata, "Normal", "ProxyRecovered", "Sync", "all changes of Services are in the kernel"
            )
        else:
            log.error("degraded", reason="changes have been waiting for two sync periods")
            note = "changes of Services have been waiting for two sync periods; traffic goes on as it was before them"
            self._event("Node", metadata, "Warning", "ProxyDegraded", "Sync", note)

    def conflict(self, loser: Service, key: VirtualServerKey, winner: ServiceName) -> None:
        """Make an event for the owner of the Service that lost: who has its address."""
        note = f"{key} is served for the older Service {winner}; this Service takes over when that one lets go of it"
        self._event("Service", loser.metadata, "Warning", "AddressConflict", "Bind", note)

    def left_out(self, service: Service | None, omission: Omission) -> None:
        """Count what cannot be served as it is written, and make an event for the Service's owner."""
        self._metrics.left_out(omission.reason)
        if service is not None:
            note, instead = f"{omission.where}: {omission.reason}", SERVED_OTHERWISE.get(omission.reason)
            reason = "NotServed" if instead is None else "ServedOtherwise"
            note = note if instead is None else f"{note}; {instead}"
            self._event("Service", service.metadata, "Warning", reason, "Plan", note)

    def _event(self, kind: str, metadata: ObjectMeta, type_: EventType, reason: str, action: str, note: str) -> None:
        if self._emit is not None:
            regarding = Regarding(kind, metadata.namespace, metadata.name, metadata.uid)
            self._emit(regarding, type=type_, reason=reason, action=action, note=note)


async def watch_health_for_ever(healthy: Callable[[], bool], changed: Callable[[bool], None]) -> None:
    """Look every second whether the agent keeps up, and call ``changed`` when that changes; it starts healthy."""
    before = True
    while True:
        await asyncio.sleep(HEALTH_INTERVAL)
        now = healthy()
        if now != before:
            changed(now)
        before = now


def report_refused_health_check(emit: Emit | None, service: ObjectMeta, port: int, error: OSError) -> None:
    """Log that a Service's health check cannot be served, and make an event for its owner."""
    name = ServiceName(service.namespace, service.name)
    log.error("service_health_check_refused", service=str(name), port=port, error=str(error))
    if emit is not None:
        emit(
            # Without the UID, kubectl describe would not show it.
            Regarding("Service", *name, service.uid),
            type="Warning",
            reason="FailedToStartServiceHealthcheck",
            action="Listen",
            note=f"node port {port} for the health check cannot be opened on this node: {error}",
        )
