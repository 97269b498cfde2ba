"""The mirror's own book-keeping: it may hold the objects that are desired, and never changes them."""

from __future__ import annotations

import pytest

from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.tables import (
    ACTIVE,
    DRAINING,
    RealServerOperation,
    Verb,
    VirtualServer,
    VirtualServerOperation,
)
from tests.support.objects import real, virtual

KEY = virtual("10.96.0.10")
POD1, POD2 = real("10.244.0.1"), real("10.244.0.2")
WANTED = VirtualServer(KEY, "rr", real_servers={POD1: ACTIVE, POD2: ACTIVE})


def written() -> KernelTables:
    """Tables after ``WANTED`` was written to an empty kernel."""
    tables = KernelTables()
    servers = [RealServerOperation(Verb.ADD, KEY, one, settings) for one, settings in WANTED.real_servers.items()]
    tables.record([VirtualServerOperation(Verb.ADD, WANTED), *servers])
    return tables


def test_what_is_as_desired_is_the_very_object() -> None:
    tables = written()
    assert tables.virtual_servers[KEY].real_servers is not WANTED.real_servers
    tables.share({KEY: WANTED}, [KEY, virtual("10.96.0.11")])
    assert tables.virtual_servers == {KEY: WANTED}
    assert tables.virtual_servers[KEY] is WANTED


@pytest.mark.parametrize(
    "operation",
    [
        RealServerOperation(Verb.SET, KEY, POD1, DRAINING),
        RealServerOperation(Verb.DELETE, KEY, POD1, ACTIVE),
        RealServerOperation(Verb.ADD, KEY, real("10.244.0.3"), ACTIVE),
        VirtualServerOperation(Verb.SET, VirtualServer(KEY, "lc")),
        VirtualServerOperation(Verb.DELETE, WANTED),
    ],
)
def test_what_differs_is_not_shared_and_the_desired_object_stays_as_it_was(operation) -> None:
    tables = written()
    tables.share({KEY: WANTED}, [KEY])
    tables.record([operation, RealServerOperation(Verb.SET, KEY, POD2, DRAINING)])
    assert WANTED.real_servers == {POD1: ACTIVE, POD2: ACTIVE}
    tables.share({KEY: WANTED}, [KEY])
    assert tables.virtual_servers.get(KEY) is not WANTED


def test_all_that_is_recorded_of_one_virtual_server_is_in_its_one_new_object() -> None:
    tables = written()
    tables.share({KEY: WANTED}, [KEY])
    more = [real(f"10.244.1.{number}") for number in range(1, 4)]
    tables.record([RealServerOperation(Verb.ADD, KEY, one, ACTIVE) for one in more])
    assert tables.virtual_servers[KEY].real_servers == dict.fromkeys([POD1, POD2, *more], ACTIVE)
