"""Which addresses are addresses of the link, and which have a route."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvs_proxy.kernel.links.placement import Place, Placement
from ipvs_proxy.plan.tables import AddressOperation, Verb
from tests.support.objects import packed

MOST = 2
A, B, C, D, A6, B6, C6 = map(packed, ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "fd00::1", "fd00::2", "fd00::3"))
ADDRESS, ROUTE = [Place.ADDRESS], [Place.ROUTE]
BOTH = [Place.ADDRESS, Place.ROUTE]


def placed(addresses: tuple[bytes, ...], routes: tuple[bytes, ...]) -> Placement:
    placement = Placement(MOST)
    for place, found in ((Place.ADDRESS, addresses), (Place.ROUTE, routes)):
        for address in found:
            placement.note(address, place, present=True)
    return placement


@pytest.mark.parametrize(
    ("addresses", "routes", "verb", "address", "places"),
    [
        ((), (), Verb.ADD, A, ADDRESS),
        ((A,), (), Verb.ADD, B, ADDRESS),
        ((A, B), (), Verb.ADD, C, ROUTE),
        # IPv6 addresses are addresses, and do not count.
        ((A, A6, B6, C6), (), Verb.ADD, B, ADDRESS),
        ((A, B), (), Verb.ADD, A6, ADDRESS),
        # A link that an earlier version filled stays as it is.
        ((A, B, C), (), Verb.ADD, D, ROUTE),
        ((A, B, C), (), Verb.ADD, C, ADDRESS),
        # What is there is asked for as it is.
        ((), (A,), Verb.ADD, A, ROUTE),
        ((A, B), (C,), Verb.ADD, B, ADDRESS),
        ((A,), (C,), Verb.ADD, D, ADDRESS),
        ((A,), (A,), Verb.ADD, A, ADDRESS),
        # Deleted is what there is; what there is not is an address that is missing.
        ((A, B), (C,), Verb.DELETE, A, ADDRESS),
        ((A, B), (C,), Verb.DELETE, C, ROUTE),
        ((A, B), (C,), Verb.DELETE, D, ADDRESS),
        ((A, B), (C,), Verb.DELETE, A6, ADDRESS),
        ((A,), (A,), Verb.DELETE, A, BOTH),
    ],
)
def test_what_an_operation_is_about(
    addresses: tuple[bytes, ...], routes: tuple[bytes, ...], verb: Verb, address: bytes, places: list[Place]
) -> None:
    assert placed(addresses, routes).places(AddressOperation(verb, address)) == places


@given(st.lists(st.tuples(st.sampled_from(Verb), st.sampled_from((A, B, C, D, A6))), max_size=30))
def test_what_is_carried_out_is_never_twice_there_and_never_too_much(steps: list[tuple[Verb, bytes]]) -> None:
    placement = Placement(MOST)
    wanted: set[bytes] = set()
    for verb, address in steps:
        if verb is Verb.SET:
            continue
        for place in placement.places(AddressOperation(verb, address)):
            placement.note(address, place, present=verb is Verb.ADD)
        (wanted.add if verb is Verb.ADD else wanted.discard)(address)
        assert placement.addresses | placement.routes == wanted - {A6}
        assert not placement.addresses & placement.routes
        assert len(placement.addresses) <= MOST
