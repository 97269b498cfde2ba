"""Keys put together: nothing that may have to change is ever left out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import RealServerKey, SetEntry, VirtualServerKey
from tests.support.objects import packed, real, virtual
from tests.support.roles import role

ONE, TWO = virtual("10.96.0.1"), virtual("10.96.0.2")
A, B, C = (real(f"10.0.0.{number}") for number in (1, 2, 3))


@pytest.mark.parametrize(
    "keys",
    [
        TableKeys({ONE}),
        TableKeys(addresses={packed("10.96.0.1")}),
        TableKeys(entries={(role("KUBE-IPVS-IPS"), SetEntry(packed("10.96.0.1")))}),
    ],
)
def test_keys_of_any_kind_are_something(keys: TableKeys) -> None:
    assert keys
    assert not TableKeys()
    found = TableKeys()
    found.add(keys)
    assert found == keys


@pytest.mark.parametrize(
    ("one", "other", "only"),
    [
        (TableKeys({ONE}), TableKeys({TWO}), {}),
        (TableKeys({ONE}, only={ONE: frozenset({A})}), TableKeys({TWO}), {ONE: {A}}),
        (
            TableKeys({ONE}, only={ONE: frozenset({A})}),
            TableKeys({TWO}, only={TWO: frozenset({B})}),
            {ONE: {A}, TWO: {B}},
        ),
        (
            TableKeys({ONE}, only={ONE: frozenset({A, B})}),
            TableKeys({ONE}, only={ONE: frozenset({B, C})}),
            {ONE: {A, B, C}},
        ),
        (TableKeys({ONE}, only={ONE: frozenset({A})}), TableKeys({ONE}), {}),
    ],
    ids=["neither known", "one known", "others known", "both known", "one as a whole"],
)
def test_real_servers_that_may_differ_are_those_of_both_if_both_are_known(
    one: TableKeys, other: TableKeys, only: dict[VirtualServerKey, set[RealServerKey]]
) -> None:
    for first, second in ((one, other), (other, one)):
        found = TableKeys()
        found.add(first)
        found.add(second)
        assert found.virtual_servers == first.virtual_servers | second.virtual_servers
        assert found.only == only


known = st.dictionaries(st.sampled_from([ONE, TWO]), st.none() | st.frozensets(st.sampled_from([A, B, C])))


@given(st.lists(known, max_size=4))
def test_whatever_is_put_together_covers_all_of_it(
    parts: list[dict[VirtualServerKey, frozenset[RealServerKey] | None]],
) -> None:
    found = TableKeys()
    for part in parts:
        known_of = {key: servers for key, servers in part.items() if servers is not None}
        found.add(TableKeys(set(part), only=known_of))
    assert found.virtual_servers == set().union(*parts)
    for key in found.virtual_servers:
        asked = [part[key] for part in parts if key in part]
        whole = [servers for servers in asked if servers is None]
        expected = None if whole else frozenset().union(*(servers for servers in asked if servers is not None))
        assert found.only.get(key) == expected
