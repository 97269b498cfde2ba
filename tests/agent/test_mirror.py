"""What the agent knows of the kernel: read, corrected and compared, over a fake kernel."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from msgspec import structs

from ipvs_proxy.agent.sync.kernel_access import KernelThread
from ipvs_proxy.agent.sync.mirror import Mirror
from ipvs_proxy.kernel.ipvs.records import ListDifference
from ipvs_proxy.plan import roles
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import ACTIVE, DRAINING, Family, SetEntry, VirtualServer, VirtualServerKey
from tests.support.failing import failing
from tests.support.fake_dataplane import FakeDataplane
from tests.support.objects import packed, real, virtual

A, B, C = (virtual(f"10.96.0.{number}") for number in (1, 2, 3))
POD = real("10.244.0.1")
SET = roles.CLUSTER_IP[Family.IPV4]
SET_NAME = "KUBE-CLUSTER-IP"


def member(key: VirtualServerKey) -> SetEntry:
    return SetEntry(*key[:3])


def copied(tables: KernelTables) -> KernelTables:
    """Copy all but the roles, which are what they are by identity."""
    return KernelTables(
        {
            key: structs.replace(server, real_servers=dict(server.real_servers))
            for key, server in tables.virtual_servers.items()
        },
        set(tables.addresses),
        {role: set(members) for role, members in tables.entries.items()},
    )


@pytest.fixture
def plane() -> FakeDataplane:
    plane = FakeDataplane()
    for key in (A, B):
        plane.kernel.virtual_servers[key] = VirtualServer(key, "rr", real_servers={POD: ACTIVE})
        plane.kernel.addresses.add(key.address)
        plane.kernel.sets[SET_NAME].add(member(key))
    return plane


@pytest.fixture
async def mirror(plane: FakeDataplane) -> AsyncIterator[Mirror]:
    """A mirror that is right."""
    thread = KernelThread()
    mirror = Mirror(plane, thread)
    await mirror.begin()
    await mirror.reread_addresses()
    await mirror.read_virtual_servers(lambda _: True)
    assert mirror.tables == plane.kernel.read()
    plane.calls.clear()
    yield mirror
    thread.end()


async def test_it_begins_with_the_members_and_nothing_else(plane: FakeDataplane, mirror: Mirror) -> None:
    await mirror.begin()
    assert mirror.tables == KernelTables(entries=plane.kernel.entries())


async def test_what_is_not_ours_is_kept_apart_as_it_was_last_found(plane: FakeDataplane, mirror: Mirror) -> None:
    await mirror.begin()
    await mirror.read_virtual_servers(lambda key: key != A)
    found = plane.kernel.read().virtual_servers
    assert (mirror.tables.virtual_servers, mirror.foreign) == ({B: found[B]}, {A: found[A]})
    del plane.kernel.virtual_servers[A]
    await mirror.begin()
    await mirror.read_virtual_servers(lambda key: key != A)
    assert mirror.foreign == {}


async def test_of_suspects_only_those_it_is_wrong_about_are_told(plane: FakeDataplane, mirror: Mirror) -> None:
    plane.kernel.virtual_servers[A].real_servers[POD] = DRAINING
    assert await mirror.reread_virtual_servers([A, B]) == {A}
    assert mirror.tables == plane.kernel.read()
    del plane.kernel.virtual_servers[A]
    plane.kernel.virtual_servers[C] = VirtualServer(C, "rr")
    assert await mirror.reread_virtual_servers([A, B, C]) == {A, C}
    assert mirror.tables == plane.kernel.read()


async def test_addresses_and_members_it_is_wrong_about_are_told(plane: FakeDataplane, mirror: Mirror) -> None:
    assert not await mirror.reread_small_tables()
    plane.kernel.addresses.remove(A.address)
    plane.kernel.addresses.add(C.address)
    plane.kernel.sets[SET_NAME].remove(member(B))
    plane.kernel.sets["KUBE-EXTERNAL-IP"].add(member(C))
    assert await mirror.reread_small_tables() == TableKeys(
        addresses={A.address, C.address}, entries={(SET, member(B)), (roles.EXTERNAL_IP[Family.IPV4], member(C))}
    )
    assert mirror.tables == plane.kernel.read()


@pytest.mark.parametrize("call", ["read_virtual_server", "read_addresses", "read_entries"])
async def test_a_read_that_fails_loses_no_difference(
    plane: FakeDataplane, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    for key in (A, B):
        plane.kernel.virtual_servers[key].real_servers.clear()
    plane.kernel.addresses.clear()
    plane.kernel.sets[SET_NAME].clear()
    before = copied(mirror.tables)
    monkeypatch.setattr(plane, call, failing(getattr(plane, call), 2 if call == "read_virtual_server" else 1))
    with pytest.raises(OSError, match="a fault"):
        await (mirror.reread_virtual_servers([A, B]) if call == "read_virtual_server" else mirror.reread_small_tables())
    assert mirror.tables == before


async def test_a_virtual_server_that_failed_is_known_as_it_is(plane: FakeDataplane, mirror: Mirror) -> None:
    del plane.kernel.virtual_servers[A]
    plane.kernel.virtual_servers[B].real_servers.clear()
    failed = TableKeys(virtual_servers={A, B})
    await mirror.reread_failed(failed)
    assert mirror.tables == plane.kernel.read()
    assert failed == TableKeys(virtual_servers={A, B})
    assert plane.calls == {"read_virtual_server": 2}


async def test_with_an_address_that_failed_all_that_is_missing_has_failed(plane: FakeDataplane, mirror: Mirror) -> None:
    plane.kernel.addresses.clear()
    failed = TableKeys(addresses={C.address})
    await mirror.reread_failed(failed)
    assert mirror.tables == plane.kernel.read()
    assert failed == TableKeys(addresses={A.address, B.address, C.address})
    assert plane.calls == {"ensure_tables": 1, "read_addresses": 1}


async def test_with_a_member_that_failed_all_that_is_missing_has_failed(plane: FakeDataplane, mirror: Mirror) -> None:
    del plane.kernel.sets[SET_NAME]
    failed = TableKeys(entries={(SET, member(C))})
    await mirror.reread_failed(failed)
    assert mirror.tables == plane.kernel.read()
    assert plane.kernel.sets[SET_NAME] == set(), "the set is made again"
    assert failed == TableKeys(entries={(SET, member(key)) for key in (A, B, C)})
    assert plane.calls == {"ensure_tables": 1, "read_entries": 1}


def test_of_a_list_ours_are_suspects_and_others_are_foreign() -> None:
    thread = KernelThread()
    mirror = Mirror(FakeDataplane(), thread)
    unknown, written, both = (virtual(f"10.96.0.{number}") for number in (4, 5, 6))
    found = {key: VirtualServer(key, "rr", real_servers={POD: ACTIVE}) for key in (C, unknown, written)}
    suspects = mirror.take_list(
        ListDifference([B, both], found), lambda key: key in {C, written}, but_for={written, both}
    )
    # B differs, C is ours and was not known, the unknown one is not ours, and nothing is said of what was written.
    assert suspects == [B, C]
    assert mirror.foreign == {unknown: found[unknown]}
    mirror.take_list(ListDifference([], {written: found[written]}), lambda _: False, but_for={written})
    assert mirror.foreign == {}, "nothing is said of what was written meanwhile"
    thread.end()


async def test_what_is_adopted_is_ours_as_it_is(mirror: Mirror) -> None:
    foreign = VirtualServer(C, "wlc", real_servers={POD: ACTIVE})
    mirror.foreign = {C: foreign}
    mirror.adopt({C})
    assert mirror.foreign == {}
    assert mirror.tables.virtual_servers[C] is foreign


async def test_what_is_forgotten_is_found_again(mirror: Mirror) -> None:
    forgotten = TableKeys(
        addresses={A.address, packed("10.96.9.9")},
        entries={(SET, member(A)), (roles.NO_ENDPOINT[Family.IPV4], member(A))},
    )
    mirror.forget(forgotten)
    assert await mirror.reread_small_tables() == TableKeys(addresses={A.address}, entries={(SET, member(A))})


async def test_addresses_are_not_read_where_nobody_doubts_them(plane: FakeDataplane, mirror: Mirror) -> None:
    plane.kernel.addresses.add(C.address)
    plane.kernel.sets[SET_NAME].add(member(C))
    assert await mirror.reread_small_tables(addresses=False) == TableKeys(entries={(SET, member(C))})
    assert plane.calls["read_addresses"] == 0
    assert await mirror.reread_small_tables() == TableKeys(addresses={C.address})


async def test_corrected_members_stay_the_objects_that_they_were(plane: FakeDataplane, mirror: Mirror) -> None:
    members = mirror.tables.entries[SET]
    kept = next(iter(members))
    plane.kernel.sets[SET_NAME] = {kept._replace(), member(C)}
    await mirror.reread_small_tables()
    assert mirror.tables.entries[SET] is members
    assert any(one is kept for one in members), "a large set would be in memory twice"


async def test_sets_that_nobody_else_has_changed_are_not_read(plane: FakeDataplane, mirror: Mirror) -> None:
    reads = plane.calls["read_entries"]
    plane.unchanged = True
    plane.kernel.addresses.add(C.address)
    assert await mirror.reread_small_tables() == TableKeys(addresses={C.address})
    assert plane.calls["read_entries"] == reads
    plane.unchanged = False
    plane.kernel.sets[SET_NAME].add(member(C))
    assert await mirror.reread_small_tables() == TableKeys(entries={(SET, member(C))})


async def test_sets_are_read_after_something_was_forgotten_of_them(plane: FakeDataplane, mirror: Mirror) -> None:
    plane.unchanged = True
    mirror.forget(TableKeys(entries={(SET, member(A))}))
    assert await mirror.reread_small_tables() == TableKeys(entries={(SET, member(A))}), "it is found again"
    reads = plane.calls["read_entries"]
    assert await mirror.reread_small_tables() == TableKeys()
    assert plane.calls["read_entries"] == reads
