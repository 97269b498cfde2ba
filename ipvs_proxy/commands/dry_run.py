"""A start that writes nothing: what an agent with these settings would change on this node.

The real controller and the real programmer run until everything would be programmed; only the kernel under them takes
note of what it is told instead of doing it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from ipvs_proxy.agent.assembly import sources
from ipvs_proxy.agent.local_detection import adapt_rules
from ipvs_proxy.agent.observe.health import HealthTracker
from ipvs_proxy.agent.observe.history import History
from ipvs_proxy.agent.observe.logs import configure
from ipvs_proxy.agent.observe.metrics import Metrics
from ipvs_proxy.agent.observe.reports import Reports
from ipvs_proxy.agent.open_kernel import open_tables
from ipvs_proxy.agent.sync.controller import Controller
from ipvs_proxy.agent.sync.kernel_writer import Programmer
from ipvs_proxy.agent.sync.node_facts import NodeFacts
from ipvs_proxy.kernel.dataplane import Dataplane, Failure
from ipvs_proxy.kernel.ipvs.table import Ipvs
from ipvs_proxy.kernel.links.host_addresses import HostAddresses
from ipvs_proxy.kube.client import connect
from ipvs_proxy.netlink.errors import Unusable
from ipvs_proxy.node import requirements, sysctl
from ipvs_proxy.plan.addresses import parse_address
from ipvs_proxy.plan.fragment import Context
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.node_addresses import SERVICE_LINK
from ipvs_proxy.plan.tables import Operation, Role, SetEntry, VirtualServer, VirtualServerKey
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
        self.frame += [ChangeState("add", "sets", name) for name in self._dataplane.packet_filter.missing()]
        return []

    def repair_rules(self) -> list[str]:
        """Note what is wrong with the packet rules."""
        self.frame += [ChangeState("set", "rules", finding) for finding in self._dataplane.packet_filter.drift()]
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

    def read_entries(self) -> dict[Role, set[SetEntry]]:
        """Read the members of our sets by role."""
        return self._dataplane.read_entries()

    def name_of_role(self, role: Role) -> str:
        """Return what the kernel calls the set of a role."""
        return self._dataplane.name_of_role(role)

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
    programmer = Programmer(kernel, count=lambda *_: None, exclude=settings.exclude_cidrs)
    health = HealthTracker(host.families, sync_period=settings.sync_period)
    controller = Controller(
        programmer,
        context=Context(
            settings.node_name,
            settings.scheduler,
            families=host.families,
            compatible=settings.compatible,
            external_ips=settings.external_ips,
        ),
        recorder=Reports(Metrics(host.families), health, wish=lambda *_: None, emit=None, history=History()),
        marks=Marks(settings.masquerade_bit),
        facts=NodeFacts(
            HostAddresses().read,
            node_port_cidrs=settings.node_port_addresses,
            bind_address=parse_address(settings.bind_address),
            families=host.families,
        ),
        adapt_rules=lambda node: adapt_rules(dataplane.packet_filter, settings, node),
    )
    client = None if settings.manifests else await connect(kubeconfig=settings.kubeconfig, master=settings.master)
    loops = [asyncio.create_task(loop) for loop in (controller.run(), *sources(settings, controller, client))]
    started = asyncio.create_task(controller.started.wait())
    done, _ = await asyncio.wait([started, *loops], timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
    for task in (started, *loops):
        task.cancel()
    await asyncio.gather(started, *loops, return_exceptions=True)
    if client is not None:
        await client.close()
    programmer.close()
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
    operations = [change_of(operation, dataplane.name_of_role) for operation in kernel.operations]
    changes = [*settings_of_kernel, *dict.fromkeys(kernel.frame), *operations]
    return Differences(services=len(controller.cache.services), changes=changes)
