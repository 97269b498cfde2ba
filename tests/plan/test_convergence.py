"""Whatever happens to objects and kernel, in whatever order: the kernel ends up as a plan from scratch says.

A state machine drives the plan as the agent does: changes, drift, refused operations and their retries, ended drains,
restarts. The expected tables come from a union written anew here, in the plainest way, from fragments of the current
objects; the kernel is a strict model that refuses what Linux would refuse.
"""

from __future__ import annotations

from collections.abc import Iterable
from errno import EBUSY, ESRCH
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import structs
from msgspec.structs import replace

from ipvs_proxy.agent.sync.warmups import Warmups
from ipvs_proxy.kube.objects import EndpointConditions, EndpointSlice, Service
from ipvs_proxy.plan import roles
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.difference import difference, unsettled, unwanted
from ipvs_proxy.plan.fragment import Context, Fragment, ServiceName
from ipvs_proxy.plan.marks import Marks, corrections
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.services import plan_service
from ipvs_proxy.plan.slice_cache import SliceCache
from ipvs_proxy.plan.switching import keep_waiting
from ipvs_proxy.plan.table_keys import TableKeys, keys_of
from ipvs_proxy.plan.tables import (
    AddressOperation,
    Family,
    Operation,
    Protocol,
    RealServer,
    RealServerOperation,
    Role,
    SetEntry,
    SetEntryOperation,
    Verb,
    VirtualServer,
    VirtualServerKey,
    VirtualServerOperation,
    family_of,
)
from tests.support.clock import Clock
from tests.support.fake_kernel import FakeKernel
from tests.support.histories import (
    CONDITIONS,
    NAMES,
    NODE_ADDRESSES,
    SERVICE_ANNOTATIONS,
    SLICE_ANNOTATIONS,
    Conditions,
    Piece,
    Wish,
    annotations_from,
    foreign_operations,
    make_service,
    make_slice,
    names,
    pieces,
    wishes,
)
from tests.support.objects import annotated_slice, packed, real
from tests.support.tables import everything, round_of

HERE = Context(
    "here",
    zone="zone-a",
    node_port_addresses=tuple(map(packed, NODE_ADDRESSES)),
    host_addresses=frozenset(map(packed, NODE_ADDRESSES)),
    node_ips=tuple(map(packed, NODE_ADDRESSES)),
)


class Expected(NamedTuple):
    """The tables from scratch."""

    virtual_servers: dict[VirtualServerKey, VirtualServer]
    addresses: set[bytes]
    entries: set[tuple[Role, SetEntry]]
    owners: dict[VirtualServerKey, ServiceName]


def union(fragments: list[Fragment]) -> Expected:
    """Merge fragments in the plainest way: the youngest first, so that the oldest is what remains."""
    expected = Expected({}, set(), set(), {})
    for fragment in sorted(fragments, key=lambda one: (one.created, one.name), reverse=True):
        expected.virtual_servers.update({key: server for key, (server, _) in fragment.virtual_servers.items()})
        expected.owners.update(dict.fromkeys(fragment.virtual_servers, fragment.name))
        expected.addresses.update(fragment.addresses)
        expected.entries.update(fragment.entries)
    # What says how a virtual server is reached counts only if its Service owns it.
    for fragment in fragments:
        for key in fragment.virtual_servers:
            if expected.owners[key] != fragment.name:
                lost = set(members_of(key, fragment))
                kept = {
                    member
                    for other in fragments
                    for own in other.virtual_servers
                    if expected.owners[own] == other.name
                    for member in members_of(own, other)
                }
                expected.entries.difference_update(lost - kept)
    return expected


NODE_PORTS = (roles.NODE_PORTS, roles.LOCAL_NODE_PORTS)
HOLDING = {*roles.IPVS_IPS.values(), *roles.LEAVING.values()}


def members_of(key: VirtualServerKey, fragment: Fragment) -> Iterable[tuple[Role, SetEntry]]:
    """The members of sets that name a virtual server, or its node port."""
    for role, entry in fragment.entries:
        if entry.address:
            if key == (*entry[:3], 0) and role not in roles.LOOP_BACK.values():
                yield role, entry
        elif (
            entry.port == key.port
            and fragment.virtual_servers[key][1] is Reason.NODE_PORT
            and role.family is family_of(key.address)
            and role in {ports[Protocol(key.protocol)][role.family] for ports in NODE_PORTS}
        ):
            yield role, entry


def added(operations: list[Operation]) -> list[object]:
    """The addresses and members that are missing, but for those that guard or name what is leaving."""
    return [
        *(one.address for one in operations if isinstance(one, AddressOperation) and one.verb is Verb.ADD),
        *(
            (one.role, one.entry)
            for one in operations
            if isinstance(one, SetEntryOperation) and one.verb is Verb.ADD and one.role not in HOLDING
        ),
    ]


class Convergence(RuleBasedStateMachine):
    """An agent's life. ``trusted`` means that the mirror is the kernel; ``pending`` is what waits for a retry."""

    context = HERE

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.warmups = Warmups(self.clock)
        self.warmups.start()
        self.services: dict[ServiceName, Service] = {}
        self.slices: dict[ServiceName, dict[int, EndpointSlice]] = {name: {} for name in NAMES}
        self.fragments: dict[ServiceName, Fragment] = {}
        self.desired = DesiredTables()
        self.kernel = FakeKernel()
        self.mirror = KernelTables()
        self.marks = Marks()
        self.caches: dict[ServiceName, SliceCache] = {}
        self.trusted = True
        self.pending = TableKeys()
        #: Bit n: the n-th operation of the next round is refused.
        self.refusals = 0

    @initialize(wish=wishes, piece=pieces)
    def start(self, wish: Wish, piece: Piece) -> None:
        """Start with one Service and take over an empty kernel."""
        self.mirror = self.kernel.read()
        self.slices[NAMES[0]][0] = make_slice(NAMES[0], 0, piece)
        self.put_service(NAMES[0], wish)

    # Changes of objects.

    @rule(name=names, wish=wishes)
    def put_service(self, name: ServiceName, wish: Wish) -> None:
        self.services[name] = make_service(name, wish)
        self.follow(name)

    @precondition(lambda self: self.services)
    @rule(data=st.data())
    def delete_service(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.services)))
        del self.services[name]
        self.follow(name)

    @rule(name=names, number=st.integers(0, 2), piece=pieces)
    def put_slice(
        self,
        name: ServiceName,
        number: int,
        piece: Piece,
    ) -> None:
        self.slices[name][number] = make_slice(name, number, piece)
        self.follow(name)

    @rule(name=names, number=st.integers(0, 2))
    def delete_slice(self, name: ServiceName, number: int) -> None:
        if self.slices[name].pop(number, None) is not None:
            self.follow(name)

    @precondition(lambda self: any(piece.endpoints for _, _, piece in self.all_slices()))
    @rule(data=st.data(), conditions=st.sampled_from(CONDITIONS))
    def change_a_pod(self, data: st.DataObject, conditions: Conditions) -> None:
        """Let one pod become ready or unready, start to terminate, or come back."""
        name, number, piece = data.draw(st.sampled_from([one for one in self.all_slices() if one[2].endpoints]))
        endpoints = list(piece.endpoints or ())
        index = data.draw(st.integers(0, len(endpoints) - 1))
        endpoints[index] = structs.replace(endpoints[index], conditions=EndpointConditions(*conditions))
        self.slices[name][number] = structs.replace(piece, endpoints=endpoints)
        self.follow(name)

    def all_slices(self) -> list[tuple[ServiceName, int, EndpointSlice]]:
        """The EndpointSlices of Services that exist."""
        return [(name, number, piece) for name in self.services for number, piece in self.slices[name].items()]

    @rule(name=names, annotations=annotations_from(SERVICE_ANNOTATIONS))
    def annotate(self, name: ServiceName, annotations: dict[str, str]) -> None:
        """Change nothing of a Service but its annotations."""
        if name in self.services:
            made = self.services[name]
            metadata = structs.replace(made.metadata, annotations=annotations or None)
            self.services[name] = structs.replace(made, metadata=metadata)
            self.follow(name)

    @precondition(lambda self: self.all_slices())
    @rule(data=st.data(), annotations=annotations_from(SLICE_ANNOTATIONS))
    def annotate_slice(self, data: st.DataObject, annotations: dict[str, str]) -> None:
        name, number, piece = data.draw(st.sampled_from(self.all_slices()))
        self.slices[name][number] = annotated_slice(piece, annotations)
        self.follow(name)

    @rule(seconds=st.sampled_from([1.0, 3.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        """Let endpoints that warm up take their next steps."""
        self.clock.now += seconds
        for name in self.warmups.due():
            self.follow(name)

    @rule(mask=st.integers(1, 0xFFFF))
    def refuse_some_of_the_next(self, mask: int) -> None:
        self.refusals = mask

    @precondition(lambda self: self.services)
    @rule(data=st.data())
    def explain(self, data: st.DataObject) -> None:
        """Plan once more for somebody who asks: nothing changes."""
        self.plan(data.draw(st.sampled_from(sorted(self.services))))

    # What the agent does by itself.

    @precondition(lambda self: bool(self.pending))
    @rule()
    def retry(self) -> None:
        """Try again what was refused, after having read again what it was about."""
        pending, self.pending = self.pending, TableKeys()
        fresh = self.kernel.read()
        for key in pending.virtual_servers:
            self.mirror.virtual_servers.pop(key, None)
            if key in fresh.virtual_servers:
                self.mirror.virtual_servers[key] = fresh.virtual_servers[key]
        self.mirror.addresses, self.mirror.entries = fresh.addresses, fresh.entries
        self.run_round(pending)

    @rule()
    def audit(self) -> None:
        self.mirror = self.kernel.read()
        self.trusted = True
        self.pending = TableKeys()
        self.run_round(everything(self.desired, self.mirror))

    @rule(order=st.permutations(NAMES))
    def restart(self, order: list[ServiceName]) -> None:
        """Start anew with nothing but the objects and what the kernel holds."""
        was_settled = self.trusted and not self.pending
        self.refusals = 0
        warm = any(map(self.warmups.seconds_left, NAMES))
        self.desired, self.marks, self.caches, self.warmups = DesiredTables(), Marks(), {}, Warmups(self.clock)
        for family in Family:
            self.marks.restore(self.kernel.entries()[roles.INTERNAL[family]])
        self.mirror, self.trusted, self.pending = self.kernel.read(), True, TableKeys()
        before = len(self.kernel.log)
        # First of all, marks that were written in part are spelled right, as ``KernelWriter.take_over_frame`` does.
        for operation in corrections(self.mirror.entries):
            assert self.kernel.apply(operation) == 0, operation
            self.mirror.record([operation])
        touched = TableKeys()
        for name in order:
            if name in self.services:
                # Not as before: of two Services with the same address only one has its mark in a set.
                self.fragments[name] = self.plan_and_warm(name)
                touched.add(self.desired.replace(name, self.fragments[name]))
        self.run_round(touched)
        self.run_round(self.everything_that_differs())
        # A Service that lost its addresses to another has a mark that no set remembers.
        self.warmups.start()
        if was_settled and not warm and not self.desired.conflicts():
            assert len(self.kernel.log) == before, "a restart wrote although nothing had changed"

    @precondition(lambda self: self.trusted)
    @rule()
    def end_drains(self) -> None:
        for key, server in self.kernel.read().virtual_servers.items():
            wanted = self.desired.virtual_servers.get(key)
            for real_server, found in server.real_servers.items():
                if wanted is not None and found.weight == 0 and real_server not in wanted.real_servers:
                    operation = RealServerOperation(Verb.DELETE, key, real_server, found)
                    assert self.kernel.apply(operation) == 0
                    self.mirror.record([operation])

    # What others do to the kernel.

    @rule(operation=foreign_operations)
    def drift(self, operation: Operation) -> None:
        if self.kernel.apply(operation) == 0:
            self.trusted = False

    @precondition(lambda self: self.kernel.virtual_servers)
    @rule(data=st.data(), pod=st.integers(1, 5), weight=st.sampled_from([None, 0, 1, 5]))
    def real_server_drift(self, data: st.DataObject, pod: int, weight: int | None) -> None:
        key = data.draw(st.sampled_from(sorted(self.kernel.virtual_servers)))
        target = real(
            f"10.0.0.{pod}" if len(key.address) == 4 else f"fd00::{pod}", data.draw(st.sampled_from([8080, 5353]))
        )
        verb = Verb.DELETE if weight is None else data.draw(st.sampled_from([Verb.ADD, Verb.SET]))
        if self.kernel.apply(RealServerOperation(verb, key, target, RealServer(weight or 0))) == 0:
            self.trusted = False

    # Drains that end.

    @precondition(lambda self: self.trusted)
    @rule()
    def drains_end(self) -> None:
        self.finish_drains()

    def finish_drains(self) -> None:
        """Do as the drain manager does with virtual servers that nobody wants: they go, and then what stayed for them."""
        for key in [key for key in self.kernel.virtual_servers if key in self.mirror.draining]:
            server = self.mirror.virtual_servers[key]
            if any(settings.weight for settings in server.real_servers.values()):
                assert key in self.pending.virtual_servers
                continue
            operation = VirtualServerOperation(Verb.DELETE, server)
            assert self.kernel.apply(operation) == 0
            self.mirror.record([operation])
            self.run_round(TableKeys({key}))

    def everything_that_differs(self) -> TableKeys:
        """Look for it as a start does."""
        touched = unsettled(self.desired, self.mirror)
        touched.add(unwanted(self.desired, self.mirror))
        return touched

    # The path of a change.

    def plan(self, name: ServiceName) -> Fragment:
        """Plan with what is remembered of earlier plans, as for Services with many slices."""
        cache = self.caches.setdefault(name, SliceCache())
        return plan_service(self.services[name], self.slices[name].values(), self.context, self.marks, cache)

    def plan_and_warm(self, name: ServiceName) -> Fragment:
        """Plan, and give new endpoints less than their weight, as the planner does."""
        fragment = self.plan(name)
        self.warmups.follow(name, fragment, self.desired)
        self.warmups.apply(name, fragment)
        return fragment

    def follow(self, name: ServiceName) -> None:
        """Plan one Service anew and bring the kernel to it; nothing of another Service may change."""
        owned, held = dict(self.desired.owners), self.fragments.pop(name, None)
        if name in self.services:
            self.fragments[name] = self.plan_and_warm(name)
        else:
            self.marks.keep(name, ())
            self.warmups.follow(name, None, self.desired)
        claimed = {key for one in (held, self.fragments.get(name)) if one for key in one.virtual_servers}
        settled = not self.pending
        touched = self.desired.replace(name, self.fragments.get(name))
        for key in touched.only.keys() & self.pending.virtual_servers:
            del touched.only[key]
        before = len(self.kernel.log)
        leaving = {key for key in self.kernel.virtual_servers if key in self.mirror.draining}
        self.run_round(touched, from_converged=self.trusted and settled)
        for operation, _ in self.kernel.log[before:]:
            for key in keys_of([operation]).virtual_servers:
                if key in leaving and key not in claimed:
                    # It drained at an address that this Service was the last one to have.
                    if not settled and isinstance(operation, RealServerOperation):
                        continue  # What was refused before is tried again on the way.
                    assert isinstance(operation, VirtualServerOperation)
                    assert operation.verb is Verb.DELETE
                    assert key.address not in self.desired.addresses
                    continue
                assert key in claimed, operation
                # What another Service owns may at most have its own refused operations tried again.
                assert not settled or name in {owned.get(key), self.desired.owners.get(key)}, operation

    def run_round(self, touched: TableKeys, *, from_converged: bool = False) -> None:
        """Apply the difference as the agent does: record what succeeded, keep what failed for a retry."""
        refusals, self.refusals = self.refusals, 0
        strict = self.trusted and not self.pending
        failed: list[Operation] = []
        keys = self.mirror.note_draining(self.desired, touched)
        operations = keep_waiting(difference(self.desired, self.mirror, keys), self.desired, self.mirror)
        for number, operation in enumerate(operations):
            self.kernel.refuse = (lambda _: EBUSY) if refusals >> (number % 16) & 1 else None
            code = self.kernel.apply(operation)
            self.kernel.refuse = None
            if code:
                self.check_failure(operation, code, failed, strict=strict)
                failed.append(operation)
            else:
                self.mirror.record([operation])
                if from_converged and not failed:
                    self.check_step(operation)
        self.pending.add(keys_of(failed))
        if not failed:
            assert round_of(self.desired, self.mirror, keys) == []

    def check_failure(self, operation: Operation, code: int, failed: list[Operation], *, strict: bool) -> None:
        """With a true mirror an operation fails only if it was refused, or needs one that was refused."""
        if code == EBUSY or not strict:
            return
        if isinstance(operation, SetEntryOperation) and operation.verb is Verb.ADD:
            # A member with another mark is in its place, as its deletion was refused.
            role, member = operation.role, operation.entry._replace(mark=0)
            assert any(
                isinstance(earlier, SetEntryOperation)
                and (earlier.verb, earlier.role, earlier.entry._replace(mark=0)) == (Verb.DELETE, role, member)
                for earlier in failed
            ), operation
            return
        if isinstance(operation, SetEntryOperation):
            # One that was to come first, to have new connections wait, did not.
            assert SetEntryOperation(Verb.ADD, operation.role, operation.entry) in failed, operation
            return
        assert code == ESRCH, (operation, code)
        assert isinstance(operation, RealServerOperation)
        assert any(
            isinstance(earlier, VirtualServerOperation)
            and earlier.verb is Verb.ADD
            and earlier.virtual_server.key == operation.virtual_server
            for earlier in failed
        ), operation

    def check_step(self, operation: Operation) -> None:
        """After every single operation the kernel is in a state that a crash may leave."""
        kernel, entries = self.kernel, self.kernel.entries()
        guarded = set().union(*(entries[role] for role in roles.IPVS_IPS.values()))
        doors = (roles.CLUSTER_IP, roles.LOAD_BALANCER, roles.EXTERNAL_IP, roles.EXTERNAL_IP_LOCAL)
        opened = set().union(*(entries[role] for door in doors for role in door.values()))
        # Every address of the link is guarded, and no port is open that has no virtual server to take it.
        assert all(SetEntry(address) in guarded for address in kernel.addresses), operation
        for entry in opened:
            key = VirtualServerKey(entry.address, entry.protocol, entry.port)
            assert entry.address not in kernel.addresses or key in kernel.virtual_servers, operation
        # An address that comes finds all its virtual servers complete.
        match operation:
            case AddressOperation(Verb.ADD, address):
                for key, wanted in self.desired.virtual_servers.items():
                    if key.address == address:
                        assert kernel.virtual_servers[key].settings == wanted.settings
                        assert wanted.real_servers.items() <= kernel.virtual_servers[key].real_servers.items()
            # Nobody's connections are cut: only UDP that no longer answers goes at once.
            case RealServerOperation(Verb.DELETE, key, server, _):
                assert key.protocol == Protocol.UDP, operation
                assert server not in self.desired.virtual_servers[key].lingering, operation
            # A local pod reaches itself from its first connection.
            case RealServerOperation(Verb.ADD, key, server, _):
                loop_back = roles.LOOP_BACK[family_of(key.address)]
                hairpin = SetEntry(server.address, key.protocol, server.port, server.address)
                assert (loop_back, hairpin) not in self.desired.entries or hairpin in entries[loop_back]

    # What always holds.

    @invariant()
    def desired_tables_are_the_union_of_the_fragments(self) -> None:
        expected = self.expected()
        assert self.desired.virtual_servers == expected.virtual_servers
        assert self.desired.owners == expected.owners
        assert self.desired.addresses.keys() == expected.addresses
        assert self.desired.entries.keys() == expected.entries, self.desired.entries.keys() ^ expected.entries

    @invariant()
    def the_mirror_is_the_kernel(self) -> None:
        if self.trusted:
            assert self.mirror == self.kernel.read()

    @invariant()
    def the_kernel_is_as_desired(self) -> None:
        if self.trusted and not self.pending:
            self.check_converged()
            assert round_of(self.desired, self.mirror, everything(self.desired, self.mirror)) == []
        # What waits for another attempt is found without it, too.
        missing = round_of(self.desired, self.mirror, everything(self.desired, self.mirror))
        short_way = round_of(self.desired, self.mirror, self.everything_that_differs())
        assert sorted(map(repr, short_way)) == sorted(map(repr, missing))
        found = unsettled(self.desired, self.mirror)
        # What goes with its address, drained or not, is found by the address, which nobody wants.
        going = self.mirror.addresses - self.desired.addresses.keys()
        missed = keys_of(missing).virtual_servers - found.virtual_servers
        assert found.virtual_servers <= keys_of(missing).virtual_servers
        assert all(key.address in going for key in missed), missed
        assert all(one in found.addresses or one in found.entries for one in added(missing))

    def teardown(self) -> None:
        self.refusals = 0
        self.audit()
        assert not self.pending
        self.finish_drains()
        assert not any(key in self.mirror.draining for key in self.kernel.virtual_servers)
        self.check_converged()

    def expected(self) -> Expected:
        plans = {
            name: plan_service(one, self.slices[name].values(), self.context, self.marks)
            for name, one in self.services.items()
        }
        for name, fragment in plans.items():
            self.warmups.apply(name, fragment)
        return union([*plans.values()])

    def check_converged(self) -> None:
        expected, kernel, leaving = self.expected(), self.kernel, self.mirror.draining
        entries = {(name, entry) for name, entries in kernel.entries().items() for entry in entries}
        assert {address for address in kernel.addresses if not leaving.holds(address)} <= expected.addresses
        assert {entry for entry in entries if not leaving.holds(entry)} <= expected.entries
        assert {key for key in kernel.virtual_servers if key not in leaving} == expected.virtual_servers.keys()
        assert expected.addresses <= kernel.addresses
        assert expected.entries <= entries
        for key, wanted in expected.virtual_servers.items():
            found = kernel.virtual_servers[key]
            draining = {
                server: settings
                for server, settings in found.real_servers.items()
                if settings.weight == 0 and server not in wanted.real_servers
            }
            kept = {server: settings for server, settings in found.real_servers.items() if server not in draining}
            plain = replace(wanted, lingering=frozenset(), internal=None, drain_timeout=None)
            assert replace(found, real_servers=kept) == plain
            # Only UDP servers that still answer may drain: nobody would ever end the others' connections.
            assert key.protocol != Protocol.UDP or draining.keys() <= wanted.lingering


class ConvergenceAsKubeProxy(Convergence):
    """The same with one list of endpoints for all clients."""

    context = HERE._replace(compatible=True)


TestConvergence = Convergence.TestCase
TestConvergenceAsKubeProxy = ConvergenceAsKubeProxy.TestCase
TestConvergenceAsKubeProxy.settings = settings(deadline=None, max_examples=30, stateful_step_count=40)
TestConvergence.settings = settings(deadline=None, max_examples=100, stateful_step_count=40, report_multiple_bugs=False)
