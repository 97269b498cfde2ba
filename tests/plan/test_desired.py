"""The union of the fragments: counted references, one owner per virtual server, the same result in any order."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from ipvs_proxy.kube.objects import EndpointSlice, Service, ServicePort
from ipvs_proxy.plan.desired import Conflict, DesiredTables
from ipvs_proxy.plan.fragment import Context, Fragment, ServiceName
from ipvs_proxy.plan.marks import Marks, mark_key
from ipvs_proxy.plan.services import plan_service
from ipvs_proxy.plan.slice_cache import SliceCache
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import ACTIVE, Family, Protocol, SetEntry, VirtualServer
from tests.support.objects import endpoint, endpoint_slice, packed, real, service, virtual
from tests.support.roles import role

HERE = Context("node-a")
ADDRESS = packed("10.96.0.10")
KEY = virtual("10.96.0.10")
OLD, YOUNG = ServiceName("default", "old"), ServiceName("default", "young")


def fragment(wanted: Service, *slices: EndpointSlice) -> Fragment:
    return plan_service(wanted, slices, HERE, Marks())


def tables(*fragments: Fragment) -> DesiredTables:
    desired = DesiredTables()
    for one in fragments:
        desired.replace(one.name, one)
    return desired


def snapshot(desired: DesiredTables) -> tuple[object, ...]:
    """Everything that another component can see."""
    return (
        desired.virtual_servers,
        desired.addresses,
        desired.entries,
        desired.owners,
        sorted(desired.conflicts()),
        set(desired.services()),
    )


def old(**more: object) -> Fragment:
    return fragment(service("old", age=100, **more), endpoint_slice(endpoint("10.0.0.1"), of="old"))  # type: ignore[arg-type]


def young(**more: object) -> Fragment:
    return fragment(service("young", **more), endpoint_slice(endpoint("10.0.0.2"), of="young"))  # type: ignore[arg-type]


# One fragment.


def test_a_first_fragment_touches_all_of_it() -> None:
    desired, wanted = DesiredTables(), old()
    touched = desired.replace(OLD, wanted)
    assert touched == TableKeys(set(wanted.virtual_servers), set(wanted.addresses), set(wanted.entries))
    assert desired.virtual_servers[KEY].real_servers == {real("10.0.0.1"): ACTIVE}
    assert desired.owners == {KEY: OLD}
    assert set(desired.services()) == {OLD}


def test_the_same_fragment_again_touches_nothing() -> None:
    desired = tables(old())
    assert not desired.replace(OLD, old())


#: Another value of each field of a virtual server than the default; a new field needs one, too.
OTHERWISE: dict[str, object] = {
    "scheduler": "lc",
    "flags": 1,
    "timeout": 600,
    "netmask": 24,
    "real_servers": {real("10.0.0.9"): ACTIVE},
    "lingering": frozenset({real("10.0.0.9")}),
    "internal": virtual("10.96.0.99"),
    "drain_timeout": 300.0,
}


@pytest.mark.parametrize("field", [field for field in VirtualServer.__struct_fields__ if field != "key"])
@pytest.mark.parametrize("known", [False, True])
def test_a_virtual_server_that_differs_in_anything_is_touched(field: str, known: bool) -> None:
    """``known``: that its endpoints are the same as before is known, and they are not compared again."""
    cache = SliceCache() if known else None
    pieces = [endpoint_slice(endpoint(f"10.0.0.{number}"), of="old", name=f"old-{number}") for number in (1, 2)]
    before, after = (plan_service(service("old"), pieces, HERE, Marks(), cache) for _ in range(2))
    changed, reason = after.virtual_servers[KEY]
    after.virtual_servers[KEY] = replace(changed, **{field: OTHERWISE[field]}), reason
    desired = tables(before)
    assert desired.replace(OLD, after).virtual_servers == {KEY}
    assert desired.virtual_servers[KEY] == after.virtual_servers[KEY][0]
    assert not desired.replace(OLD, after)


def test_of_a_large_service_only_the_real_servers_that_differ_are_touched() -> None:
    cache, desired = SliceCache(), DesiredTables()
    pieces = [endpoint_slice(endpoint(f"10.0.0.{number}"), of="old", name=f"old-{number}") for number in (1, 2, 3)]
    one = plan_service(service("old"), pieces, HERE, Marks(), cache)
    assert desired.replace(OLD, one).only == {}
    pieces[1] = endpoint_slice(endpoint("10.0.0.9"), of="old", name="old-2")
    other = plan_service(service("old"), pieces, HERE, Marks(), cache)
    assert desired.replace(OLD, other).only == {KEY: {real("10.0.0.2"), real("10.0.0.9")}}
    pieces[2] = endpoint_slice(
        endpoint("10.0.0.3", ready=False, serving=True, terminating=True), of="old", name="old-3"
    )
    lingers = plan_service(service("old"), pieces, HERE, Marks(), cache)
    assert desired.replace(OLD, lingers).only == {KEY: {real("10.0.0.3")}}
    assert desired.virtual_servers[KEY].lingering == {real("10.0.0.3")}
    # Another owner's real servers are others altogether.
    assert desired.replace(YOUNG, young()).only == {}
    assert desired.replace(OLD, None).only == {}


def test_real_servers_for_clients_in_the_cluster_are_told_where_they_are_others() -> None:
    outside, inside, lost = virtual("203.0.113.1"), mark_key(0x2005, Family.IPV4), virtual("203.0.113.2")
    desired = tables(old())
    desired.virtual_servers |= {
        outside: VirtualServer(outside, "rr", internal=inside),
        inside: VirtualServer(
            inside, "rr", real_servers={real("10.0.0.1"): ACTIVE}, lingering=frozenset({real("10.0.0.2")})
        ),
        lost: VirtualServer(lost, "rr", internal=mark_key(0x2009, Family.IPV4)),
    }
    assert desired.internal() == {outside: {real("10.0.0.1"), real("10.0.0.2")}}


def test_virtual_servers_of_a_service_are_those_that_it_claims() -> None:
    desired = tables(old(), young())
    assert desired.virtual_servers_of(OLD) == desired.virtual_servers_of(YOUNG) == (KEY,)
    assert desired.virtual_servers_of(ServiceName("default", "nobody")) == ()
    assert desired.conflicts_of(KEY) == [Conflict(KEY, OLD, YOUNG)]
    desired.replace(YOUNG, None)
    assert desired.conflicts_of(KEY) == desired.conflicts() == []


def test_a_change_of_one_port_touches_only_that_port() -> None:
    ports = [ServicePort(80, "http"), ServicePort(443, "https")]
    desired = tables(old(ports=ports))
    touched = desired.replace(OLD, old(ports=[ports[0], ServicePort(8443, "https")]))
    assert touched == TableKeys(
        {virtual("10.96.0.10", 443), virtual("10.96.0.10", 8443)},
        set(),
        {
            (role(name), SetEntry(ADDRESS, Protocol.TCP, port))
            for name in ("KUBE-CLUSTER-IP", "IPVS-PROXY-NO-ENDPOINT")
            for port in (443, 8443)
        },
    )


def test_a_change_of_only_the_lingering_servers_is_a_change() -> None:
    desired, wanted = tables(old()), old()
    server, reason = wanted.virtual_servers[KEY]
    wanted.virtual_servers[KEY] = replace(server, lingering=frozenset({real("10.0.0.9")})), reason
    assert desired.replace(OLD, wanted).virtual_servers == {KEY}
    assert desired.virtual_servers[KEY].lingering == {real("10.0.0.9")}


def test_taking_a_fragment_out_leaves_nothing() -> None:
    for nothing in (None, fragment(service("old", cluster_ip="None"))):
        desired = tables(old())
        touched = desired.replace(OLD, nothing)
        assert touched == TableKeys(set(old().virtual_servers), set(old().addresses), set(old().entries))
        assert snapshot(desired) == snapshot(DesiredTables())


def test_taking_out_what_was_never_in_is_nothing() -> None:
    desired = tables(old())
    before = repr(snapshot(desired))
    assert not desired.replace(YOUNG, None)
    assert not desired.replace(YOUNG, fragment(service("young", kind="ExternalName")))
    assert repr(snapshot(desired)) == before


# Counted references.


def test_a_shared_address_stays_until_the_last_service_lets_go() -> None:
    desired = tables(old(), young(ports=[ServicePort(81, "http")]))
    assert desired.addresses == {ADDRESS: 2}
    touched = desired.replace(OLD, None)
    assert touched.addresses == set()
    assert (role("KUBE-IPVS-IPS"), SetEntry(ADDRESS)) not in touched.entries
    assert (role("KUBE-CLUSTER-IP"), SetEntry(ADDRESS, Protocol.TCP, 80)) in touched.entries
    assert desired.addresses == {ADDRESS: 1}
    touched = desired.replace(YOUNG, None)
    assert touched.addresses == {ADDRESS}
    assert (role("KUBE-IPVS-IPS"), SetEntry(ADDRESS)) in touched.entries
    assert desired.addresses == {}


def test_a_service_that_keeps_its_address_is_counted_once() -> None:
    desired = tables(old())
    for _ in range(3):
        desired.replace(OLD, old(affinity="ClientIP"))
    assert desired.addresses == {ADDRESS: 1}
    assert set(desired.entries.values()) == {1}


# Conflicts.


def test_the_older_service_wins_in_either_order() -> None:
    for order in ((old(), young()), (young(), old())):
        desired = tables(*order)
        assert desired.owners == {KEY: OLD}
        assert desired.virtual_servers[KEY].real_servers == {real("10.0.0.1"): ACTIVE}
        assert desired.conflicts() == [Conflict(KEY, winner=OLD, loser=YOUNG)]


def test_of_two_services_of_one_age_the_lower_name_wins() -> None:
    first, second = fragment(service("a")), fragment(service("b"))
    other = fragment(service("z", namespace="aaa"))
    for order in ((first, second), (second, first)):
        assert tables(*order).owners == {KEY: first.name}
    assert tables(first, other).owners == {KEY: other.name}


def test_a_service_of_unknown_age_loses() -> None:
    unknown = fragment(service("aaa", created=None))
    assert tables(unknown, young()).owners == {KEY: YOUNG}


def test_the_loser_takes_over_when_the_winner_goes() -> None:
    desired = tables(old(), young())
    touched = desired.replace(OLD, None)
    assert touched.virtual_servers == {KEY}
    assert touched.addresses == set()
    assert desired.owners == {KEY: YOUNG}
    assert desired.virtual_servers[KEY].real_servers == {real("10.0.0.2"): ACTIVE}
    assert desired.conflicts() == []


def test_the_loser_takes_over_when_the_winner_moves_to_another_port() -> None:
    desired = tables(old(), young())
    desired.replace(OLD, old(ports=[ServicePort(81, "http")]))
    assert desired.owners == {KEY: YOUNG, virtual("10.96.0.10", 81): OLD}


def test_the_winner_stays_when_the_loser_goes_or_changes() -> None:
    desired = tables(old(), young())
    before = desired.virtual_servers[KEY]
    desired.replace(YOUNG, young(affinity="ClientIP"))
    assert desired.virtual_servers[KEY] is before
    desired.replace(YOUNG, None)
    assert desired.virtual_servers[KEY] is before
    assert desired.conflicts() == []


def test_a_service_deleted_and_created_anew_loses_its_age() -> None:
    desired = tables(old(), young())
    desired.replace(OLD, fragment(service("old", age=-1)))
    assert desired.owners == {KEY: YOUNG}
    assert desired.conflicts() == [Conflict(KEY, winner=YOUNG, loser=OLD)]


def test_three_claims_are_settled_one_after_another() -> None:
    third = fragment(service("third", age=50))
    desired = tables(young(), third, old())
    assert desired.conflicts() == [Conflict(KEY, OLD, third.name), Conflict(KEY, OLD, YOUNG)]
    desired.replace(OLD, None)
    assert desired.conflicts() == [Conflict(KEY, third.name, YOUNG)]
    desired.replace(third.name, None)
    assert desired.owners == {KEY: YOUNG}
    assert desired.conflicts() == []


def test_conflicts_are_told_by_virtual_server() -> None:
    both = [ServicePort(80, "http"), ServicePort(53, "dns", "UDP")]
    desired = tables(old(ports=both), young(ports=both), young(ports=both))
    dns = virtual("10.96.0.10", 53, Protocol.UDP)
    assert desired.conflicts_of(dns) == [Conflict(dns, OLD, YOUNG)]
    assert desired.conflicts_of(virtual("10.96.0.99")) == []
    assert len(desired.conflicts()) == 2


def test_the_same_port_of_another_protocol_is_no_conflict() -> None:
    assert tables(old(), young(ports=[ServicePort(80, "http", "UDP")])).conflicts() == []


# Any order.

variants = st.builds(
    lambda name, age, address, port, local: fragment(
        service(name, age=age, cluster_ip=f"10.96.0.{address}", ports=[ServicePort(port, "http")]),
        endpoint_slice(endpoint(f"10.0.0.{len(name)}", node="node-a" if local else None), of=name),
    ),
    name=st.sampled_from(["a", "bb", "ccc", "dddd"]),
    age=st.integers(0, 2),
    address=st.integers(1, 2),
    port=st.integers(80, 81),
    local=st.booleans(),
)


def scratch(fragments: Iterable[Fragment]) -> tuple[object, ...]:
    return snapshot(tables(*sorted(fragments, key=lambda one: one.name)))


@settings(deadline=None)
@given(st.lists(variants, max_size=12), st.lists(st.sampled_from(["a", "bb", "ccc", "dddd"]), max_size=3))
def test_a_history_leads_to_the_same_tables_as_its_end(history: list[Fragment], deleted: list[str]) -> None:
    desired = tables(*history)
    current = {one.name: one for one in history}
    assert snapshot(desired) == scratch(current.values())
    for name in deleted:
        desired.replace(ServiceName("default", name), None)
        current.pop(ServiceName("default", name), None)
        assert snapshot(desired) == scratch(current.values())
    for name in current:
        desired.replace(name, None)
    assert snapshot(desired) == snapshot(DesiredTables())


@settings(deadline=None)
@given(st.lists(variants, max_size=8), variants)
def test_what_is_not_touched_has_not_changed(history: list[Fragment], last: Fragment) -> None:
    desired = tables(*history)
    servers, addresses, entries = dict(desired.virtual_servers), set(desired.addresses), set(desired.entries)
    touched = desired.replace(last.name, last)
    assert addresses ^ desired.addresses.keys() == touched.addresses
    assert entries ^ desired.entries.keys() == touched.entries
    assert {
        key
        for key in servers.keys() | desired.virtual_servers.keys()
        if servers.get(key) != desired.virtual_servers.get(key)
    } <= touched.virtual_servers
