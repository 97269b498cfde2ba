"""A start that writes nothing: what an agent with these settings would change on this node.

The real controller and the real kernel writer run until everything would be written; only the kernel under them notes
what it is told instead of doing it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from ipvs_proxy.agent.assembly import context_of, node_facts_of, sources
from ipvs_proxy.agent.local_detection import adapt_rules
from ipvs_proxy.agent.observe.health import HealthTracker
from ipvs_proxy.agent.observe.history import History
from ipvs_proxy.agent.observe.logs import configure
from ipvs_proxy.agent.observe.metrics import Metrics
from ipvs_proxy.agent.observe.reports import Reports
from ipvs_proxy.agent.open_kernel import open_tables
from ipvs_proxy.agent.sync import startup
from ipvs_proxy.agent.sync.controller import Controller
from ipvs_proxy.agent.sync.departed import DepartedEndpoints
from ipvs_proxy.agent.sync.kernel_writer import KernelWriter
from ipvs_proxy.kernel.dataplane import Dataplane, Failure
from ipvs_proxy.kernel.ipvs.table import Ipvs
from ipvs_proxy.kube.client import connect
from ipvs_proxy.netlink.errors import Unusable
from ipvs_proxy.node import requirements, sysctl
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.node_addresses import SERVICE_LINK
from ipvs_proxy.plan.tables import Operation, SetEntry, VirtualServer, VirtualServerKey
from ipvs_proxy.settings.merge import Settings
from ipvs_proxy.state.changes import change_of
from ipvs_proxy.state.documents import ChangeState, Differences

#: Seconds until the API server's answer, or all objects, are given up.
PATIENCE = 60.0


class ReadOnlyKernel:
    """The kernel as it is, and what it was told to change."""

    def __init__(self, dataplane: Dataplane) -> None:
        self.frame: list[ChangeState] = []
        self.operations: list[Operation] = []
        self._dataplane = dataplane

    def ensure_tables(self) -> list[str]:
        """Note which of link and sets are missing."""
        if not self._dataplane.addresses.has_link():
            self.frame.append(ChangeState("add", "addresses", f"link {SERVICE_LINK}"))
        self.frame += [ChangeState("add", "sets", name) for name in self._dataplane.sets.missing()]
        return []

    def repair_rules(self) -> list[str]:
        """Note what is wrong with the packet rules."""
        self.frame += [
            ChangeState("set", "rules", f"{family.label} {finding}")
            for family, rules in self._dataplane.rules.items()
            for finding in rules.drift()
        ]
        return []

    write_rules = repair_rules

    def find_leftovers(self) -> list[str]:
        """Say what kube-proxy left behind in its other modes."""
        return self._dataplane.find_leftovers()

    def remove_leftovers(self) -> list[str]:
        """Note what of it would go."""
        self.frame += [ChangeState("delete", "rules", found) for found in self._dataplane.find_leftovers()]
        return []

    def read_virtual_servers(self) -> dict[VirtualServerKey, VirtualServer]:
        """Read all virtual servers."""
        return self._dataplane.read_virtual_servers()

    def read_virtual_server(self, key: VirtualServerKey) -> VirtualServer | None:
        """Read one virtual server."""
        return self._dataplane.read_virtual_server(key)

    def read_addresses(self) -> set[bytes]:
        """Read the addresses of our link; none if it is missing."""
        return self._dataplane.read_addresses() if self._dataplane.addresses.has_link() else set()

    def read_entries(self) -> dict[str, set[SetEntry]]:
        """Read the members of our sets."""
        return self._dataplane.read_entries()

    def apply(self, operations: Sequence[Operation]) -> list[Failure]:
        """Note the operations."""
        self.operations += operations
        return []

    def writes(self) -> int:
        """There is none."""
        return 0


def find_changes(settings: Settings) -> Differences:
    """Say what a start with these settings would change.

    Raises:
        Unusable: if this node cannot be served, or if the objects are not known after a minute.
        ConnectError: if the configuration of the API client cannot be used.
        ManifestsError: if the manifests cannot be read.

    """
    configure(settings.verbosity, settings.logging_format, logging.WARNING)
    return asyncio.run(_find_changes(settings))


async def _find_changes(settings: Settings) -> Differences:
    host = requirements.check()
    dataplane = open_tables(settings, host, Ipvs())
    kernel = ReadOnlyKernel(dataplane)
    writer = KernelWriter(kernel, DesiredTables(), count=lambda *_: None, exclude=settings.exclude_cidrs)
    health = HealthTracker(host.families, sync_period=settings.sync_period)
    controller = Controller(
        writer,
        context=context_of(settings, host),
        recorder=Reports(Metrics(host.families), health, wish=lambda *_: None, emit=None, history=History()),
        marks=Marks(settings.masquerade_bit),
        facts=node_facts_of(settings, host),
        departed=DepartedEndpoints(settings.node_name),
        adapt_rules=lambda node: adapt_rules(dataplane.rules, settings, node),
    )
    client = None if settings.manifests else await connect(kubeconfig=settings.kubeconfig, master=settings.master)
    loops = [asyncio.create_task(loop) for loop in (startup.run(controller), *sources(settings, controller, client))]
    started = asyncio.create_task(controller.started.wait())
    done, _ = await asyncio.wait([started, *loops], timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
    for task in (started, *loops):
        task.cancel()
    await asyncio.gather(started, *loops, return_exceptions=True)
    if client is not None:
        await client.close()
    writer.close()
    for task in done - {started}:
        task.result()
    if not controller.started.is_set():
        raise Unusable(
            f"the objects are not known after {PATIENCE:.0f} seconds: is the API server reachable from here, and may "
            "we list services, endpointslices and this node?"
        )
    settings_of_kernel = [
        ChangeState("set", "sysctls", f"{change.name.replace('/', '.')} from {change.found} to {change.wanted}")
        for change in sysctl.drift(strict_arp=settings.strict_arp)
    ]
    changes = [*settings_of_kernel, *dict.fromkeys(kernel.frame), *map(change_of, kernel.operations)]
    return Differences(services=len(controller.cache.services), changes=changes)
