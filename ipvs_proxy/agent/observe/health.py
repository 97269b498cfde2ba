"""Whether the agent keeps up: the rule behind ``/healthz`` and ``/livez``, as kube-proxy's, with the clock passed in.

The agent is healthy unless work has been waiting for two sync periods. An audit counts as work that waits until it
succeeds, so a kernel that refuses everything turns the agent unhealthy, where kube-proxy can stay green for ever.
``/healthz`` also asks whether the node may get traffic: cloud load balancers look at it. ``/livez`` does not, as
restarting the agent would not help. An API server that is not heard is shown and changes no status: what the node
serves is as good as before, and all nodes lose it in the same second.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

from ipvs_proxy.kube.objects import Node
from ipvs_proxy.plan.tables import Family

#: Taint of a node that the cluster autoscaler is about to delete.
DELETED_BY_AUTOSCALER = "ToBeDeletedByClusterAutoscaler"
#: Seconds after which a resource of the API of which nothing is heard is shown.
API_PATIENCE: Final = 60.0


class HealthTracker:
    """When something was last done, and since when something waits. Times are seconds since the epoch.

    ``api_failures`` returns, for each resource of the API that fails, the seconds for which it has and what is wrong.
    """

    def __init__(
        self,
        families: Sequence[Family],
        *,
        sync_period: float,
        now: Callable[[], float] = time.time,
        api_failures: Callable[[], Mapping[str, tuple[float, str]]] = dict,
    ) -> None:
        self._families = families
        self.sync_period = sync_period
        self._api_failures = api_failures
        self._now = now
        # As kube-proxy: the start counts as an update, so that a node that joins is healthy from its start.
        self._updated = now()
        self._queued: float | None = None
        self._eligible = False

    def queued(self) -> None:
        """Note that there is work to do."""
        if self._queued is None:
            self._queued = self._now()

    def updated(self) -> None:
        """Note that all work is done."""
        self._updated = self._now()
        self._queued = None

    def node_changed(self, node: Node | None) -> None:
        """Note whether the own Node may get traffic: it is known, and neither being deleted nor about to be."""
        self._eligible = (
            node is not None
            and node.metadata.deletion_timestamp is None
            and all(taint.key != DELETED_BY_AUTOSCALER for taint in node.spec.taints or ())
        )

    def healthy(self) -> bool:
        """Return whether the agent keeps up."""
        return self._queued is None or self._now() - self._queued < 2 * self.sync_period

    def healthz(self) -> tuple[int, bytes]:
        """Answer ``/healthz``: status and body."""
        fields: dict[str, Any] = {"nodeEligible": self._eligible}
        if failures := self.api_failures():
            since = self._now() - max(seconds for seconds, _ in failures.values())
            fields["apiServer"] = {"failing": sorted(failures), "since": _rfc3339(since)}
        return self._answer(ok=self.healthy() and self._eligible, fields=fields)

    def api_failures(self) -> dict[str, tuple[float, str]]:
        """Return the resources of the API that have failed for a while, for how many seconds, and what is wrong."""
        return {kind: found for kind, found in self._api_failures().items() if found[0] >= API_PATIENCE}

    def livez(self) -> tuple[int, bytes]:
        """Answer ``/livez``: status and body."""
        return self._answer(ok=self.healthy(), fields={})

    def _answer(self, *, ok: bool, fields: dict[str, Any]) -> tuple[int, bytes]:
        now, healthy = self._now(), self.healthy()
        updated = _rfc3339(self._updated)
        body = {
            "lastUpdated": _rfc3339(now) if ok else updated,
            "currentTime": _rfc3339(now),
            **fields,
            "healthy": healthy,
            "status": {family.label: {"lastUpdated": updated, "healthy": healthy} for family in self._families},
        }
        status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
        return status, json.dumps(body, separators=(",", ":")).encode()


def _rfc3339(seconds: float) -> str:
    """Write a time as Go does: nanoseconds, without trailing zeros."""
    whole, nanoseconds = divmod(round(seconds * 1e6) * 1000, 1_000_000_000)
    text = datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{nanoseconds:09d}".rstrip("0")
    return f"{text}.{fraction}Z" if fraction else f"{text}Z"
