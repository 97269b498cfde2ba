"""One port of a Service in one family: its virtual servers, and the set members that go with each.

Every address that the port can be reached at becomes a virtual server. Which endpoints serve it, and which sets its
address is in, depends on the kind of the address and on the traffic policy; the table is section 3.2 of kube-proxy's
IPVS mode, except where a policy of ``Local`` meets clients of both kinds: see ``_serve_outside``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cached_property

from ipvs_proxy.kube.objects import Service, ServicePort
from ipvs_proxy.plan import roles
from ipvs_proxy.plan.annotations import ServiceOptions, may_be_weighted
from ipvs_proxy.plan.budget import Budget
from ipvs_proxy.plan.choices import USUAL, Choices, Settings, choose_cluster, choose_local
from ipvs_proxy.plan.endpoints import PROTOCOLS, Endpoints, Omission, PortKey, State
from ipvs_proxy.plan.family_spec import FamilySpec, contains
from ipvs_proxy.plan.fragment import Context, Fragment, Scheduling
from ipvs_proxy.plan.marks import Marks, mark_key, spelling
from ipvs_proxy.plan.reach import takes_place
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.roles import Roles
from ipvs_proxy.plan.scheduling import decide_scheduling
from ipvs_proxy.plan.slice_cache import PortCache, SliceCache
from ipvs_proxy.plan.tables import (
    Family,
    Protocol,
    SetEntry,
    VirtualServer,
    VirtualServerKey,
)
from ipvs_proxy.plan.warming import STEPS
from ipvs_proxy.plan.weights import real_servers_of


class FamilyPlan:
    """The fragment of a Service while one family is being added to it, and the ports that have a mark."""

    __slots__ = ("budget", "cache", "context", "family", "fragment", "marked", "marks")

    def __init__(
        self,
        family: Family,
        context: Context,
        fragment: Fragment,
        *,
        marks: Marks,
        marked: set[PortKey],
        cache: SliceCache | None,
        budget: Budget,
    ) -> None:
        self.family = family
        self.context = context
        self.marks = marks
        self.fragment = fragment
        self.marked = marked
        self.cache = cache
        self.budget = budget

    def add_entry(self, role: Roles, entry: SetEntry, reason: Reason) -> None:
        """Add a member in a role of this family."""
        self.fragment.entries[role[self.family], entry] = reason

    def add_address(self, address: bytes, reason: Reason) -> None:
        """Have an address put on our link, unless another link has it."""
        if reason is Reason.CLUSTER_IP or address not in self.context.host_addresses:
            self.fragment.addresses[address] = reason
            self.add_entry(roles.IPVS_IPS, SetEntry(address), reason)

    def admit_health_checks(self, port: int) -> None:
        """Let health checks through to the node's own port."""
        self.add_entry(roles.HEALTH_CHECK_NODE_PORT, SetEntry(port=port), Reason.HEALTH_CHECK)


class _Chosen:
    """The endpoints of a port that each traffic policy chooses."""

    def __init__(
        self, endpoints: Endpoints, context: Context, options: ServiceOptions, cache: PortCache | None
    ) -> None:
        self._endpoints = endpoints
        self._context = context
        self._options = options
        self._cache = cache
        self._settings = USUAL
        self._states = set(endpoints.values() if cache is None else cache.states)
        #: Whether the endpoints have weights, or may get some without a change of the Service.
        self.are_weighted = bool({state.weight for state in self._states} - {1}) or may_be_weighted(options)

    def weigh(self, scheduler: str) -> None:
        """Give the real servers weights and limits; called before anything is chosen."""
        if self.are_weighted or self._options.max_connections:
            counted = Counter(self._endpoints.values()) if self._cache is None else self._cache.states
            self._settings = _settings_of(counted, self._options, scheduler)

    @cached_property
    def cluster(self) -> Choices:
        context = self._context
        return choose_cluster(
            self._endpoints,
            node_name=context.node_name,
            zone=context.zone,
            settings=self._settings,
            cache=self._cache,
        )

    @cached_property
    def local(self) -> Choices:
        return choose_local(self._endpoints, settings=self._settings, cache=self._cache)

    @property
    def has_any(self) -> bool:
        """Whether any endpoint, here or elsewhere, could get new connections."""
        return any(state.weight and (state.ready or state.fallback) for state in self._states)


def _settings_of(counted: Mapping[State, int], options: ServiceOptions, scheduler: str) -> Settings:
    """Return the settings of the real servers in each state; ``counted`` says how many are in it."""
    weights = Counter[int]()
    for state, number in counted.items():
        weights[state.weight] += number
    real_servers = real_servers_of(
        weights,
        # To ``ovf`` a weight is a number of connections.
        factor=1 if options.slow_start is None or scheduler == "ovf" else STEPS,
        scheduler=scheduler,
        upper=options.max_connections or 0,
        lower=options.min_connections or 0,
    )
    return {state: real_servers[state.weight] for state in counted}


def plan_port(
    service: Service,
    port: ServicePort,
    cluster_ip: bytes,
    endpoints: Endpoints,
    *,
    spec: FamilySpec,
    plan: FamilyPlan,
) -> None:
    """Add what one port asks for. Its protocol and number have been checked."""
    protocol = PROTOCOLS[port.protocol]
    fragment, context = plan.fragment, plan.context
    key = VirtualServerKey(cluster_ip, protocol, port.port)
    if key in fragment.virtual_servers:
        fragment.omissions.append(Omission(fragment.where(port), Reason.DUPLICATE_PORT))
        return
    if not plan.budget.take_inside(len(endpoints)):
        return
    cache = None if plan.cache is None else plan.cache.port(plan.family, PortKey(port.name, protocol))
    chosen = _Chosen(endpoints, context, fragment.options, cache)
    outside = _outside(port, protocol, spec, plan)
    if outside:
        outside = _affordable(_unclaimed(outside, key, port, plan), len(endpoints), spec, plan)
    scheduling = decide_scheduling(service, port, context, fragment, weighted=chosen.are_weighted)
    chosen.weigh(scheduling.scheduler)

    choices = chosen.local if spec.internal_local else chosen.cluster
    if spec.internal_local and not choices.any_open:
        if chosen.has_any:
            fragment.no_local.add(("internal", plan.family))
        if context.compatible and outside:
            choices = chosen.cluster
    _add(plan, key, Reason.CLUSTER_IP, choices, scheduling)
    _turn_away(plan, key, choices, chosen)
    plan.add_address(cluster_ip, Reason.CLUSTER_IP)
    plan.add_entry(roles.CLUSTER_IP, SetEntry(cluster_ip, protocol, port.port), Reason.CLUSTER_IP)
    if outside:
        _serve_outside(port, outside, chosen, scheduling, spec=spec, plan=plan)
    local = choices.local()
    for address, number in local if plan.budget.take_local(len(local)) else ():
        # Whatever its condition: existing connections of a pod to itself must go on.
        plan.add_entry(roles.LOOP_BACK, SetEntry(address, protocol, number, address), Reason.LOCAL_ENDPOINT)


def _outside(
    port: ServicePort, protocol: Protocol, spec: FamilySpec, plan: FamilyPlan
) -> list[tuple[VirtualServerKey, Reason]]:
    """Return the virtual servers for clients outside the cluster with their kinds; one can have two."""
    if not (port.node_port or spec.external_ips or spec.load_balancer_ips):
        return []
    if plan.budget.is_spent:
        plan.budget.left_out += 1
        return []
    length = 4 if plan.family is Family.IPV4 else 16
    found = [(VirtualServerKey(address, protocol, port.port), Reason.EXTERNAL_IP) for address in spec.external_ips]
    found += [
        (VirtualServerKey(address, protocol, port.port), Reason.LOAD_BALANCER) for address in spec.load_balancer_ips
    ]
    if port.node_port:
        found += [
            (VirtualServerKey(address, protocol, port.node_port), Reason.NODE_PORT)
            for address in plan.context.node_port_addresses
            if len(address) == length
        ]
    return found


def _affordable(
    outside: list[tuple[VirtualServerKey, Reason]], endpoints: int, spec: FamilySpec, plan: FamilyPlan
) -> list[tuple[VirtualServerKey, Reason]]:
    """Return these virtual servers, or none if they and the one for clients in the cluster exceed the budget."""
    if not outside:
        return outside
    number = len(outside) + (spec.external_local and not plan.context.compatible)
    ranges = len(spec.source_ranges) * len(spec.load_balancer_ips)
    return outside if plan.budget.take_outside(number, number * endpoints, ranges) else []


def _unclaimed(
    outside: list[tuple[VirtualServerKey, Reason]], own: VirtualServerKey, port: ServicePort, plan: FamilyPlan
) -> list[tuple[VirtualServerKey, Reason]]:
    """Leave out what would get the agent's connections to the API server, and what the Service has already.

    That is what an earlier port has, and ``own``, the port's own at the cluster IP. The API refuses such Services, but
    manifests and older objects have them. The first port gets the virtual server and all that goes with it, whatever
    the others want there.
    """
    fragment = plan.fragment
    free: list[tuple[VirtualServerKey, Reason]] = []
    for key, kind in outside:
        claimed = key == own or key in fragment.virtual_servers
        if not claimed and not takes_place(key, plan.context):
            free.append((key, kind))
            continue
        where = f"{fragment.where(port)} {kind} {key}"
        fragment.omissions.append(Omission(where, Reason.DUPLICATE_PORT if claimed else Reason.API_SERVER_ADDRESS))
    return free


def _serve_outside(
    port: ServicePort,
    outside: list[tuple[VirtualServerKey, Reason]],
    chosen: _Chosen,
    scheduling: Scheduling,
    *,
    spec: FamilySpec,
    plan: FamilyPlan,
) -> None:
    """Add the virtual servers for clients outside the cluster.

    With the policy ``Local`` these get endpoints of this node only, and are dropped if there is none. Clients in the
    cluster get all endpoints at the same addresses, through a virtual server of its own (see ``marks``). With
    ``compatible`` all get the local endpoints, or all endpoints if none of these gets new connections.
    """
    fragment = plan.fragment
    local = spec.external_local
    internal: VirtualServerKey | None = None
    choices = chosen.local if local else chosen.cluster
    empty = local and not choices.any_open
    if empty and chosen.has_any:
        fragment.no_local.add(("external", plan.family))
    if local and not plan.context.compatible:
        holder = PortKey(port.name, Protocol(outside[0][0].protocol))
        mark = plan.marks.assign(fragment.name, holder, [key for key, _ in outside])
        if mark is None:
            fragment.omissions.append(Omission(fragment.where(port), Reason.NO_MARK_LEFT))
        else:
            plan.marked.add(holder)
            internal = mark_key(mark, plan.family)
            _add(plan, internal, Reason.CLUSTER_CLIENT, chosen.cluster, scheduling)
    if empty and internal is None:
        choices = chosen.cluster
    for key, kind in outside:
        _add(plan, key, kind, choices, scheduling, internal=internal)
        entry = SetEntry(*key[:3])
        _add_members(plan, port, entry, kind, spec)
        _turn_away(plan, key, choices, chosen)
        if internal is not None:
            plan.add_entry(roles.INTERNAL, entry._replace(mark=internal.mark), Reason.CLUSTER_CLIENT)
            for role in spelling(internal.mark) if plan.context.spells_marks else ():
                plan.add_entry(role, entry, Reason.CLUSTER_CLIENT)


def _turn_away(plan: FamilyPlan, key: VirtualServerKey, choices: Choices, chosen: _Chosen) -> None:
    """Have new connections to a virtual server that has nobody for them dropped, or refused if nobody anywhere has.

    The API documents dropping for the policies ``Local``. IPVS by itself refuses with ICMP, which the kernel limits to
    one a second for each client.
    """
    if plan.context.compatible or choices.any_open:
        return
    entry = SetEntry(*key[:3])
    if chosen.cluster.any_open:
        plan.add_entry(roles.NO_LOCAL, entry, Reason.NO_LOCAL_ENDPOINT)
    else:
        plan.add_entry(roles.NO_ENDPOINT, entry, Reason.NO_ENDPOINT)


def _add_members(plan: FamilyPlan, port: ServicePort, entry: SetEntry, kind: Reason, spec: FamilySpec) -> None:
    """Add the address and the set members of one virtual server, by its kind."""
    local = spec.external_local
    if kind is Reason.NODE_PORT:
        protocol = Protocol(entry.protocol)
        member = entry if protocol is Protocol.SCTP else SetEntry(port=port.node_port)
        plan.add_entry(roles.NODE_PORTS[protocol], member, kind)
        if local:
            plan.add_entry(roles.LOCAL_NODE_PORTS[protocol], member, kind)
        return
    plan.add_address(entry.address, kind)
    if kind is Reason.EXTERNAL_IP:
        plan.add_entry(roles.EXTERNAL_IP_LOCAL if local else roles.EXTERNAL_IP, entry, kind)
        return
    plan.add_entry(roles.LOAD_BALANCER, entry, kind)
    if local:
        plan.add_entry(roles.LOAD_BALANCER_LOCAL, entry, kind)
    if spec.source_ranges:
        plan.add_entry(roles.LOAD_BALANCER_FW, entry, Reason.SOURCE_RANGE)
        for network, length in spec.source_ranges:
            member = entry._replace(source=network, prefix_length=length)
            plan.add_entry(roles.LOAD_BALANCER_SOURCE_CIDR, member, Reason.SOURCE_RANGE)
        if any(
            len(node_ip) == len(entry.address) and contains(network, node_ip)
            for network in spec.source_ranges
            for node_ip in plan.context.node_ips
        ):
            # The node's own connections have the virtual server's address as their source.
            plan.add_entry(roles.LOAD_BALANCER_SOURCE_IP, entry._replace(source=entry.address), Reason.SOURCE_RANGE)


def _add(
    plan: FamilyPlan,
    key: VirtualServerKey,
    reason: Reason,
    choices: Choices,
    scheduling: Scheduling,
    *,
    internal: VirtualServerKey | None = None,
) -> None:
    plan.fragment.choices[key] = choices
    plan.fragment.schedulings[key] = scheduling
    plan.fragment.virtual_servers[key] = (
        VirtualServer(
            key=key,
            scheduler=scheduling.scheduler,
            flags=scheduling.flags,
            timeout=scheduling.timeout,
            real_servers=choices.real_servers,
            lingering=choices.lingering,
            internal=internal,
            drain_timeout=plan.fragment.options.drain_timeout,
        ),
        reason,
    )
