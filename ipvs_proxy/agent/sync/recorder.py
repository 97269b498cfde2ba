"""What those who follow changes tell others: metrics, health, history, events, and the health checks of Services."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ipvs_proxy.kube.objects import Node, Service
from ipvs_proxy.plan.endpoints import Omission
from ipvs_proxy.plan.fragment import HealthCheck, ServiceName
from ipvs_proxy.plan.tables import Family, VirtualServerKey


class Recorder(Protocol):
    """What the controller tells; see ``observe.reports``. None of its methods may block."""

    def changed(self, kind: str, number: int, *, pending: int) -> None:
        """Objects of a kind changed; ``pending`` is the number of Services that are dirty now."""

    def skipped(self, kind: str, key: str, error: str) -> None:
        """An object could not be decoded."""

    def queued(self) -> None:
        """There is something to do."""

    def synced(self, *, seconds: float, complete: bool) -> None:
        """The dirty Services were programmed; ``complete`` if nothing waits for a retry."""

    def programmed(self, *, seconds_since_trigger: float) -> None:
        """A change of endpoints is in the kernel now, this long after it happened in the cluster."""

    def no_local_endpoints(self, services: dict[tuple[str, Family], int]) -> None:
        """The numbers of Services with a policy (internal, external) of Local that have endpoints, but none here."""

    def wrote(self, services: Sequence[ServiceName], *, operations: int, seconds: float) -> None:
        """Changed Services were programmed."""

    def node_changed(self, node: Node | None) -> None:
        """The own Node changed."""

    def health_checks(self, name: ServiceName, wanted: Mapping[Family, HealthCheck]) -> None:
        """A Service wants these health checks of its local endpoints now."""

    def conflict(self, loser: Service, key: VirtualServerKey, winner: ServiceName) -> None:
        """A Service lost a virtual server to an older one."""

    def conflicts(self, number: int) -> None:
        """The number of claims to virtual servers that are lost now."""

    def left_out(self, service: Service | None, omission: Omission) -> None:
        """Something of a Service cannot be served as it is written."""

    def started(self, node: Node | None, node_name: str) -> None:
        """Everything is programmed for the first time."""
