"""A start that writes nothing: what an agent with these settings would change on this node.

The agent's own controller and writer run until everything would be programmed; only the kernel under them notes what
it is told instead of doing it. That kernel is this node's, or an empty one (see ``empty_kernel``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Final, NamedTuple

from ipvs_proxy.agent.assembly import context_of, node_facts_of, sources
from ipvs_proxy.agent.local_detection import adapt_rules, masquerading
from ipvs_proxy.agent.observe.health import HealthTracker
from ipvs_proxy.agent.observe.history import History
from ipvs_proxy.agent.observe.metrics import Metrics
from ipvs_proxy.agent.observe.reports import Reports
from ipvs_proxy.agent.open_kernel import open_tables
from ipvs_proxy.agent.sync import startup
from ipvs_proxy.agent.sync.controller import Controller
from ipvs_proxy.agent.sync.departed import DepartedEndpoints
from ipvs_proxy.agent.sync.kernel_writer import KernelWriter
from ipvs_proxy.commands.empty_kernel import EmptyKernel
from ipvs_proxy.kernel.dataplane import Dataplane, Failure
from ipvs_proxy.kernel.filter.backend import NFTABLES, PacketFilter
from ipvs_proxy.kernel.filter.ipset_iptables import EmptyIpsetIptables
from ipvs_proxy.kernel.filter.nftables_filter import EmptyNftables
from ipvs_proxy.kernel.ipvs.table import Ipvs
from ipvs_proxy.kernel.links.host_addresses import HostAddresses
from ipvs_proxy.kube.client import connect
from ipvs_proxy.netlink.errors import MissingPiece, Unusable
from ipvs_proxy.netlink.wire import MalformedMessage
from ipvs_proxy.node import requirements, sysctl
from ipvs_proxy.node.cleanup import IPVS_LOADED
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.node_addresses import SERVICE_LINK, Interfaces
from ipvs_proxy.plan.tables import (
    Family,
    Operation,
    Role,
    SetEntry,
    SetEntryOperation,
    Verb,
    VirtualServer,
    VirtualServerKey,
)
from ipvs_proxy.settings.model import Settings
from ipvs_proxy.state.changes import change_of
from ipvs_proxy.state.documents import ChangeState, Differences

#: Seconds after which the API server's answer, or all objects, are given up.
PATIENCE: Final = 60.0


class ReadOnlyKernel:
    """The kernel as it is, and what it was told to change."""

    def __init__(self, dataplane: Dataplane) -> None:
        self.frame: list[ChangeState] = []
        self.operations: list[Operation] = []
        self._dataplane = dataplane

    @property
    def spells_marks(self) -> bool:
        """Whether members say which bits a mark has."""
        return self._dataplane.spells_marks

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
        """Return what kube-proxy left behind in its other modes, or an agent with another packet filter."""
        return self._dataplane.find_leftovers()

    def remove_leftovers(self) -> list[str]:
        """Note what of it would go."""
        self.frame += [ChangeState("delete", "rules", found) for found in self._dataplane.find_leftovers()]
        return []

    def read_left_entries(self) -> dict[Role, set[SetEntry]]:
        """Read by role the members that are left in the sets of another packet filter."""
        return self._dataplane.read_left_entries()

    def read_virtual_servers(self) -> dict[VirtualServerKey, VirtualServer]:
        """Read all virtual servers."""
        return self._dataplane.read_virtual_servers()

    def read_virtual_server(self, key: VirtualServerKey) -> VirtualServer | None:
        """Read one virtual server."""
        return self._dataplane.read_virtual_server(key)

    def read_addresses(self) -> set[bytes]:
        """Read the addresses of our link; none if it is missing."""
        return self._dataplane.read_addresses() if self._dataplane.addresses.has_link() else set()

    def announces_addresses(self) -> bool:
        """Return that nothing changes untold: what was read once is not asked for again."""
        return True

    def read_entries(self) -> dict[Role, set[SetEntry]]:
        """Read the members of our sets by role."""
        return self._dataplane.read_entries()

    def read_changed_entries(self) -> dict[Role, set[SetEntry] | None]:
        """Read nothing: what was read once is not asked for again."""
        return {}

    def has_scheduler(self, _: str) -> bool:
        """Return that there is every scheduler: only a write would show it, and load its module."""
        return True

    def name_of_role(self, role: Role) -> str:
        """Return what the kernel calls the set of a role."""
        return self._dataplane.name_of_role(role)

    def apply(self, operations: Sequence[Operation]) -> list[Failure]:
        """Note the operations."""
        self.operations += operations
        return []

    def writes(self) -> int:
        """Return 0: nothing is written."""
        return 0


class Ground(NamedTuple):
    """What a plan is made against: a kernel, and what else of the node matters.

    ``assumed`` says in one line what is assumed of the node without looking at it; empty if it is looked at.
    """

    kernel: ReadOnlyKernel | EmptyKernel
    families: tuple[Family, ...]
    packet_filter: PacketFilter
    read_interfaces: Callable[[], Interfaces]
    sysctls: Sequence[sysctl.SysctlChange] = ()
    assumed: str = ""


def find_ground(settings: Settings, *, offline: bool) -> Ground:
    """Return what to plan against: this node, or an empty kernel if ``offline``.

    A plan for manifests is made against an empty kernel too if this system has no IPVS, as on a laptop.

    Raises:
        Unusable: if this node cannot be served.

    """
    if offline:
        return _empty_ground(settings, "as --offline says")
    try:
        host = requirements.require_all(settings.packet_filter)
    except MissingPiece as error:
        if settings.manifests is not None and not IPVS_LOADED.exists():
            return _empty_ground(settings, f"as IPVS is not in use here ({error.piece})")
        raise MissingPiece(error.piece, f"{error.remedy}; or use --offline to plan against an empty kernel") from error
    dataplane = open_tables(settings, host, Ipvs())
    return Ground(
        ReadOnlyKernel(dataplane),
        host.families,
        dataplane.packet_filter,
        HostAddresses().read,
        sysctl.find_changes(strict_arp=settings.strict_arp),
    )


def _empty_ground(settings: Settings, reason: str) -> Ground:
    rules = {family: masquerading(settings, family, None) for family in Family}
    packet_filter = (
        EmptyNftables(rules)
        if settings.packet_filter == NFTABLES
        else EmptyIpsetIptables(rules, beside_kube_proxy=bool(settings.service_proxy_name))
    )
    try:
        with closing(HostAddresses()) as reader:
            interfaces = reader.read()
        addresses = f"the {sum(map(len, interfaces.values()))} addresses of this host"
    except (OSError, AttributeError, MalformedMessage):  # no netlink here: not Linux, or a sandbox
        interfaces = {}
        addresses = "no address, as those of this host cannot be read"
    assumed = f"assumed to be empty, {reason}; the node to have IPv4, IPv6 and {addresses}; sysctls are left out"
    return Ground(EmptyKernel(packet_filter), tuple(Family), packet_filter, lambda: interfaces, assumed=assumed)


def find_changes(settings: Settings, ground: Ground) -> Differences:
    """Return what a start with these settings would change.

    Raises:
        Unusable: if the objects are not known after a minute.
        ConnectError: if the configuration of the API client cannot be used.
        ManifestsError: if the manifests cannot be read.

    """
    return asyncio.run(_find_changes(settings, ground))


async def _find_changes(settings: Settings, ground: Ground) -> Differences:
    kernel = ground.kernel
    writer = KernelWriter(kernel, DesiredTables(), count=lambda *_: None, exclude=settings.exclude_cidrs)
    health = HealthTracker(ground.families, sync_period=settings.sync_period)
    controller = Controller(
        writer,
        context=context_of(settings, ground.families, spells_marks=ground.packet_filter.spells_marks),
        recorder=Reports(Metrics(ground.families), health, wish=lambda *_: None, emit=None, history=History()),
        marks=Marks(settings.masquerade_bit),
        facts=node_facts_of(settings, ground.families, ground.read_interfaces),
        departed=DepartedEndpoints(settings.node_name),
        adapt_rules=lambda node: adapt_rules(ground.packet_filter, settings, node),
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
        ChangeState("set", "sysctls", f"{change.dotted_name} from {change.found} to {change.wanted}")
        for change in ground.sysctls
    ]
    operations = [change_of(operation, kernel.name_of_role) for operation in _lasting(kernel.operations)]
    changes = [*settings_of_kernel, *dict.fromkeys(kernel.frame), *operations]
    return Differences(services=len(controller.cache.services), changes=changes)


def _lasting(operations: Sequence[Operation]) -> list[Operation]:
    """Leave out members that come only to go again (see ``plan.switching``)."""
    members = [one for one in operations if isinstance(one, SetEntryOperation)]
    come, go = ({(one.role, one.entry) for one in members if one.verb is verb} for verb in (Verb.ADD, Verb.DELETE))
    passing = come & go
    return [one for one in operations if not isinstance(one, SetEntryOperation) or (one.role, one.entry) not in passing]
