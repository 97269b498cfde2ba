"""What is wrong with Services, reported once for as long as it stays so: parts left out, and conflicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import structlog

from ipvs_proxy.agent.observe.thinning import Thinning
from ipvs_proxy.agent.sync.recorder import Recorder
from ipvs_proxy.kube.objects import Service
from ipvs_proxy.kube.texts import quote
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.endpoints import Omission
from ipvs_proxy.plan.fragment import Fragment, ServiceName
from ipvs_proxy.plan.reasons import SERVED_OTHERWISE, Reason
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import Family, VirtualServerKey

log = structlog.get_logger(__name__)

#: A Service that says in the ordinary way that it is not for this proxy is no news.
_ORDINARY = frozenset((Reason.HEADLESS, Reason.EXTERNAL_NAME, Reason.OTHER_PROXY, Reason.NO_CLUSTER_IP))


class Problems:
    """What is left out, in conflict, or without local endpoints; ``services`` are the objects as they are now."""

    def __init__(self, recorder: Recorder, desired: DesiredTables, services: Mapping[ServiceName, Service]) -> None:
        self._recorder = recorder
        self._desired = desired
        self._services = services
        self._thinning = Thinning()
        self._omissions: dict[ServiceName, list[Omission]] = {}
        self._no_local: dict[ServiceName, set[tuple[str, Family]]] = {}
        self._losers: dict[VirtualServerKey, set[ServiceName]] = {}

    def omissions_of(self, name: ServiceName) -> Sequence[Omission]:
        """Return what the plan leaves out of a Service."""
        return self._omissions.get(name, ())

    def note_plan(self, name: ServiceName, fragment: Fragment | None, touched: TableKeys) -> None:
        """Take in the new plan of a Service, ``None`` if it is gone, and what of the tables it touched."""
        self._take_omissions(name, [] if fragment is None else fragment.omissions)
        self._take_conflicts(touched)
        if fragment is not None and fragment.no_local:
            self._no_local[name] = fragment.no_local
        else:
            self._no_local.pop(name, None)

    def count_no_local(self) -> dict[tuple[str, Family], int]:
        """Count the Services with a policy (internal, external) of Local that have endpoints, but none here."""
        counts = dict.fromkeys(product(("internal", "external"), Family), 0)
        for found in self._no_local.values():
            for policy in found:
                counts[policy] += 1
        return counts

    def _take_omissions(self, name: ServiceName, omissions: list[Omission]) -> None:
        before = self._omissions.get(name, [])
        if omissions == before:
            return
        for where, reason in (omission for omission in omissions if omission not in before):
            more = self._thinning.admit(name)
            if more is not None:
                instead = {"instead": SERVED_OTHERWISE[reason]} if reason in SERVED_OTHERWISE else {}
                tell = log.debug if reason in _ORDINARY else log.warning
                event = "served_otherwise" if instead else "left_out"
                tell(event, where=where, reason=reason.value, **instead, **more)
            if reason not in _ORDINARY:
                self._recorder.left_out(self._services.get(name), Omission(where, reason))
        if omissions:
            self._omissions[name] = omissions
        else:
            self._omissions.pop(name, None)

    def _take_conflicts(self, touched: TableKeys) -> None:
        desired, changed = self._desired, False
        for key in touched.virtual_servers:
            losers = {conflict.loser for conflict in desired.conflicts_of(key)}
            if not losers and key not in self._losers:
                continue
            changed = True
            for loser in sorted(losers - self._losers.get(key, set())):
                more = self._thinning.admit(("conflict", loser))
                if more is not None:
                    log.warning(
                        "conflict",
                        virtual_server=str(key),
                        winner=quote(str(desired.owners[key])),
                        loser=quote(str(loser)),
                        reason=Reason.OLDER_SERVICE_WINS.value,
                        **more,
                    )
                service = self._services.get(loser)
                if service is not None:
                    self._recorder.conflict(service, key, desired.owners[key])
            if losers:
                self._losers[key] = losers
            else:
                self._losers.pop(key, None)
        if changed:
            self._recorder.conflicts(sum(map(len, self._losers.values())))
