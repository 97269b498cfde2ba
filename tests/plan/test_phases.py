"""The order of a round, object by object: what must never be the other way round, whatever else changes."""

from __future__ import annotations

from itertools import pairwise

import pytest

from ipvs_proxy.plan import roles
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.difference import (
    difference,
    unsettled_among,
    unsettled_members,
    unwanted,
    virtual_server_difference,
)
from ipvs_proxy.plan.draining import ledger_entry
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.roles import Roles
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import (
    ACTIVE,
    DRAINING,
    AddressOperation,
    Family,
    Operation,
    Protocol,
    RealServerOperation,
    Role,
    SetEntry,
    SetEntryOperation,
    Verb,
    VirtualServer,
    VirtualServerKey,
    VirtualServerOperation,
)
from tests.support.objects import packed, real, virtual
from tests.support.tables import everything, round_of

ADD, SET, DELETE = Verb.ADD, Verb.SET, Verb.DELETE
POD = real("10.244.0.1")
KEEPING = (
    roles.LOAD_BALANCER_LOCAL,
    roles.NODE_PORT_LOCAL_TCP,
    roles.NODE_PORT_LOCAL_UDP,
    roles.NODE_PORT_LOCAL_SCTP,
    roles.INTERNAL,
)
DOORS = (roles.CLUSTER_IP, roles.LOAD_BALANCER, roles.EXTERNAL_IP, roles.EXTERNAL_IP_LOCAL)
RANGES = (roles.LOAD_BALANCER_SOURCE_CIDR, roles.LOAD_BALANCER_SOURCE_IP)
#: Members that only say more about packets to what is there.
PLAIN = (roles.LOOP_BACK, roles.NODE_PORT_TCP, roles.NODE_PORT_SCTP, roles.NO_LOCAL, roles.NO_ENDPOINT)
BIT = roles.MARK_BITS[4]


class Tables:
    """Both sides, with the keys of all that was put into them."""

    def __init__(self) -> None:
        self.desired, self.actual = DesiredTables(), KernelTables()

    def server(self, address: str, *, wanted: bool, present: bool, protocol: Protocol = Protocol.UDP) -> None:
        server = VirtualServer(virtual(address, protocol=protocol), "rr", real_servers={POD: ACTIVE})
        if wanted:
            self.desired.virtual_servers[server.key] = server
        if present:
            self.actual.virtual_servers[server.key] = server

    def address(self, address: str, *, wanted: bool, present: bool) -> None:
        if wanted:
            self.desired.addresses[packed(address)] = 1
        if present:
            self.actual.addresses.add(packed(address))

    def members(self, address: str, *kinds: Roles, wanted: bool) -> None:
        """Members that are missing, or with ``wanted=False`` there and unwanted."""
        for kind in kinds:
            if wanted:
                self.desired.entries[kind[Family.IPV4], member(address)] = 1
            else:
                self.actual.entries.setdefault(kind[Family.IPV4], set()).add(member(address))

    def round(self) -> list[Operation]:
        return round_of(self.desired, self.actual, everything(self.desired, self.actual))


def member(address: str) -> SetEntry:
    return SetEntry(packed(address), Protocol.UDP, 80)


def members(verb: Verb, address: str, *kinds: Roles) -> list[Operation]:
    return [SetEntryOperation(verb, kind[Family.IPV4], member(address)) for kind in kinds]


def test_a_round_prepares_serves_opens_closes_and_takes_down_in_this_order() -> None:
    new, old, shut, known, drained = "10.96.0.1", "10.96.0.2", "10.96.0.3", "10.96.0.4", "10.96.0.5"
    tables = Tables()
    tables.server(new, wanted=True, present=False)
    tables.address(new, wanted=True, present=False)
    everything_else = (*PLAIN, roles.LOAD_BALANCER_FW, roles.IPVS_IPS)
    every = (*KEEPING, *DOORS, *RANGES, *everything_else, BIT, roles.HEALTH_CHECK_NODE_PORT)
    tables.members(new, *every, wanted=True)
    # Another Service's virtual server, which is not let pass yet.
    tables.server(known, wanted=True, present=True)
    tables.address(known, wanted=True, present=True)
    tables.members(known, roles.CLUSTER_IP, wanted=True)
    # A Service that goes with its address, and a port that goes while the address stays.
    tables.server(old, wanted=False, present=True)
    tables.address(old, wanted=False, present=True)
    tables.members(old, *every, wanted=False)
    tables.server(shut, wanted=False, present=True)
    tables.address(shut, wanted=True, present=True)
    tables.members(shut, *DOORS, wanted=False)
    # One of TCP at an external address that another Service has, too: it drains.
    tables.server(drained, wanted=False, present=True, protocol=Protocol.TCP)
    tables.address(drained, wanted=True, present=True)
    drains = virtual(drained)
    door = roles.EXTERNAL_IP[Family.IPV4], SetEntry(*drains[:3])
    tables.actual.entries[door[0]].add(door[1])
    order: list[list[Operation]] = [
        members(DELETE, old, *KEEPING),
        members(DELETE, old, BIT),
        [*members(ADD, new, *PLAIN, *RANGES, BIT), *members(ADD, known, roles.CLUSTER_IP)],
        members(ADD, new, roles.LOAD_BALANCER_FW),
        [
            VirtualServerOperation(ADD, tables.desired.virtual_servers[virtual(new, protocol=Protocol.UDP)]),
            RealServerOperation(ADD, virtual(new, protocol=Protocol.UDP), POD, ACTIVE),
            RealServerOperation(SET, drains, POD, DRAINING),
        ],
        members(ADD, new, *KEEPING, *DOORS, roles.IPVS_IPS, roles.HEALTH_CHECK_NODE_PORT),
        [AddressOperation(ADD, packed(new))],
        [SetEntryOperation(ADD, *ledger_entry(drains))],
        [
            *members(DELETE, old, roles.HEALTH_CHECK_NODE_PORT),
            *members(DELETE, shut, *DOORS),
            SetEntryOperation(DELETE, *door),
        ],
        [AddressOperation(DELETE, packed(old))],
        [
            VirtualServerOperation(DELETE, tables.actual.virtual_servers[virtual(address, protocol=Protocol.UDP)])
            for address in (old, shut)
        ],
        members(DELETE, old, *DOORS),
        members(DELETE, old, *everything_else),
        members(DELETE, old, *RANGES),
    ]
    operations = tables.round()
    places = [sorted(operations.index(operation) for operation in phase) for phase in order]
    assert sum(map(len, places)) == len(operations)
    assert all(before[-1] < after[0] for before, after in pairwise(places)), operations


def test_members_of_an_address_that_is_not_on_our_link_are_added_first_and_deleted_last() -> None:
    """It is the host's own: nothing is exposed, and who is let pass has all the rest."""
    new, old = "192.0.2.1", "192.0.2.2"
    tables = Tables()
    tables.server(new, wanted=True, present=False)
    tables.members(new, *DOORS, wanted=True)
    tables.server(old, wanted=False, present=True)
    tables.members(old, *DOORS, wanted=False)
    verbs = [(type(operation), operation.verb) for operation in tables.round()]
    assert verbs == [
        *[(SetEntryOperation, ADD)] * 4,
        (VirtualServerOperation, ADD),
        (RealServerOperation, ADD),
        (VirtualServerOperation, DELETE),
        *[(SetEntryOperation, DELETE)] * 4,
    ]


# Marks.


def marked(mark: int, *present: int) -> tuple[KernelTables, TableKeys]:
    """A kernel with these bits of an address and port, and the key of its member with a mark."""
    actual = KernelTables()
    for bit in present:
        actual.entries[roles.MARK_BITS[bit][Family.IPV4]] = {member("10.96.0.1")}
    entry = member("10.96.0.1")._replace(mark=mark)
    return actual, TableKeys(entries={(roles.INTERNAL[Family.IPV4], entry)})


def test_a_mark_that_is_wanted_is_given_the_bits_that_it_has_and_no_others() -> None:
    actual, keys = marked(0x2000 | 4 | 16 | 2, 8, 16)
    desired = DesiredTables()
    for bit in (4, 16):
        desired.entries[roles.MARK_BITS[bit][Family.IPV4], member("10.96.0.1")] = 1
    ((key),) = keys.entries
    desired.entries[key] = 1
    assert difference(desired, actual, actual.note_draining(desired, keys)) == [
        SetEntryOperation(DELETE, roles.MARK_BITS[8][Family.IPV4], member("10.96.0.1")),
        SetEntryOperation(ADD, roles.MARK_BITS[4][Family.IPV4], member("10.96.0.1")),
        SetEntryOperation(ADD, *key),
    ]


def test_the_mark_that_the_bits_in_the_kernel_spell_goes_too() -> None:
    actual, keys = marked(0x2000 | 4 | 2, 8)
    former = member("10.96.0.1")._replace(mark=0x2000 | 8 | 2)
    actual.entries[roles.INTERNAL[Family.IPV4]] = {former}
    assert difference(DesiredTables(), actual, actual.note_draining(DesiredTables(), keys)) == [
        SetEntryOperation(DELETE, roles.INTERNAL[Family.IPV4], former),
        SetEntryOperation(DELETE, roles.MARK_BITS[8][Family.IPV4], member("10.96.0.1")),
    ]


# What drains.

DRAINS = virtual("10.96.0.5")
ADDRESS = packed("10.96.0.5")
OURS: tuple[Role, SetEntry] = roles.IPVS_IPS[Family.IPV4], SetEntry(ADDRESS)
NODE_PORT: tuple[Role, SetEntry] = roles.NODE_PORT_TCP[Family.IPV4], SetEntry(port=80)


def draining(*, on_link: bool = True) -> KernelTables:
    """A kernel with a virtual server that nobody wants, drained already, and all that it needs."""
    actual = KernelTables({DRAINS: VirtualServer(DRAINS, "rr", real_servers={POD: DRAINING})})
    if on_link:
        actual.addresses.add(ADDRESS)
    for role, entry in (OURS, NODE_PORT):
        actual.entries[role] = {entry}
    return actual


def test_what_drains_keeps_what_it_needs() -> None:
    actual = draining()
    assert round_of(DesiredTables(), actual, everything(DesiredTables(), actual)) == []
    assert DRAINS in actual.draining


@pytest.mark.parametrize(
    ("taken", "on_link", "back"),
    [
        (OURS, True, True),
        (OURS, False, False),
        (NODE_PORT, True, False),
    ],
)
def test_of_what_somebody_took_away_meanwhile_only_what_guards_or_names_comes_back(
    taken: tuple[Role, SetEntry], on_link: bool, back: bool
) -> None:
    actual = draining(on_link=on_link)
    actual.entries[taken[0]].clear()
    found = round_of(DesiredTables(), actual, TableKeys({DRAINS}, entries={taken}))
    assert found == ([SetEntryOperation(ADD, *taken)] if back else [])


def test_what_drains_at_an_external_address_of_another_service_is_named_as_ours() -> None:
    actual, desired = draining(), DesiredTables()
    desired.addresses[ADDRESS] = 1
    desired.entries[OURS] = 1
    role, entry = ledger = ledger_entry(DRAINS)
    actual.entries[role] = {entry}
    operations = round_of(desired, actual, everything(desired, actual))
    assert operations == [SetEntryOperation(DELETE, *NODE_PORT)], "it needs no member of a node port"
    actual.record(operations)
    actual.entries[role].clear()
    assert round_of(desired, actual, TableKeys({DRAINS})) == [SetEntryOperation(ADD, *ledger)]


def test_what_nobody_wants_and_has_drained_goes_with_all_that_it_needed() -> None:
    actual = draining()
    actual.virtual_servers[DRAINS].real_servers.clear()
    found = round_of(DesiredTables(), actual, TableKeys({DRAINS}))
    assert found[:2] == [
        AddressOperation(DELETE, ADDRESS),
        VirtualServerOperation(DELETE, actual.virtual_servers[DRAINS]),
    ]
    assert set(found[2:]) == {SetEntryOperation(DELETE, *gone) for gone in (OURS, NODE_PORT)}


@pytest.mark.parametrize("on_link", [True, False])
def test_at_an_external_address_it_goes_with_the_address_unless_that_is_gone_already(on_link: bool) -> None:
    actual, desired = draining(on_link=on_link), DesiredTables()
    actual.entries[roles.EXTERNAL_IP[Family.IPV4]] = {SetEntry(*DRAINS[:3])}
    actual.note_draining(desired, TableKeys({DRAINS}))
    assert (DRAINS in actual.draining) is not on_link


def test_an_address_that_goes_takes_along_what_drains_there_although_no_set_names_it_any_more() -> None:
    actual, desired = draining(), DesiredTables()
    desired.addresses[ADDRESS] = 1
    actual.draining.hold(DRAINS, external=True)
    assert actual.note_draining(desired, TableKeys({DRAINS}, {ADDRESS})).virtual_servers == {DRAINS}
    assert DRAINS in actual.draining
    del desired.addresses[ADDRESS]
    keys = actual.note_draining(desired, TableKeys(addresses={ADDRESS}))
    assert keys.virtual_servers == {DRAINS}
    assert ledger_entry(DRAINS) in keys.entries
    assert DRAINS not in actual.draining
    assert not actual.draining.external_at(ADDRESS)


def test_what_is_wanted_again_no_longer_drains_whichever_key_brings_it_up() -> None:
    actual, desired = draining(on_link=False), DesiredTables()
    actual.draining.hold(DRAINS, external=True)
    desired.virtual_servers[DRAINS] = actual.virtual_servers[DRAINS]
    keys = actual.note_draining(desired, TableKeys(addresses={ADDRESS}))
    assert DRAINS not in actual.draining
    assert ledger_entry(DRAINS) in keys.entries


def test_where_nothing_drains_the_keys_are_complete() -> None:
    actual, desired = draining(), DesiredTables()
    actual.draining.hold(DRAINS, external=True)
    wanted = virtual("10.96.0.1")
    desired.virtual_servers[wanted] = actual.virtual_servers[wanted] = VirtualServer(
        wanted, "rr", real_servers={POD: ACTIVE}
    )
    desired.addresses[wanted.address] = desired.addresses[ADDRESS] = 1
    keys = TableKeys({wanted}, {wanted.address, ADDRESS})
    assert actual.note_draining(desired, keys) is keys
    assert wanted not in actual.draining


def test_an_address_that_is_wanted_again_while_it_drains_comes_back() -> None:
    actual, desired = draining(on_link=False), DesiredTables()
    desired.addresses[ADDRESS] = 1
    assert AddressOperation(ADD, ADDRESS) in round_of(desired, actual, TableKeys({DRAINS}, {ADDRESS}))


def test_what_is_wanted_and_missing_and_what_is_there_and_unwanted() -> None:
    tables = Tables()
    for address, wanted, present in (
        ("10.96.0.1", True, False),
        ("10.96.0.2", True, True),
        ("10.96.0.3", False, True),
    ):
        tables.address(address, wanted=wanted, present=present)
        if wanted:
            tables.members(address, roles.CLUSTER_IP, wanted=True)
        if present:
            tables.members(address, roles.CLUSTER_IP, wanted=False)
    cluster_ip = roles.CLUSTER_IP[Family.IPV4]
    assert unsettled_members(tables.desired, tables.actual) == TableKeys(
        addresses={packed("10.96.0.1")}, entries={(cluster_ip, member("10.96.0.1"))}
    )
    assert unwanted(tables.desired, tables.actual) == TableKeys(
        addresses={packed("10.96.0.3")}, entries={(cluster_ip, member("10.96.0.3"))}
    )


def test_nothing_is_to_do_for_what_has_drained() -> None:
    actual, desired = draining(), DesiredTables()
    assert unsettled_among([DRAINS], desired, actual) == set()
    desired.virtual_servers[DRAINS] = VirtualServer(DRAINS, "rr", real_servers={})
    assert unsettled_among([DRAINS], desired, actual) == set()
    desired.virtual_servers[DRAINS] = VirtualServer(DRAINS, "rr", real_servers={POD: ACTIVE})
    assert unsettled_among([DRAINS], desired, actual) == {DRAINS}


def test_of_the_real_servers_that_may_differ_only_those_that_do_are_written() -> None:
    same, other = real("10.244.0.2"), real("10.244.0.3")
    key: VirtualServerKey = DRAINS
    wanted = VirtualServer(key, "rr", real_servers={same: ACTIVE, POD: ACTIVE})
    present = VirtualServer(key, "rr", real_servers={same: ACTIVE, other: ACTIVE})
    assert virtual_server_difference(wanted, present, frozenset({same, POD})) == [
        RealServerOperation(ADD, key, POD, ACTIVE)
    ], "the third is none of those that may differ"
    assert len(virtual_server_difference(wanted, present)) == 2
