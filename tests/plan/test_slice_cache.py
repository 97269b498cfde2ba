"""What is remembered of a large Service: always as if everything were read anew, at the cost of what changed."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvs_proxy.kube.objects import EndpointSlice
from ipvs_proxy.plan import slice_cache as memory_module
from ipvs_proxy.plan.choices import Choices, choose_cluster, choose_local
from ipvs_proxy.plan.endpoints import Endpoints, gather, read_slice
from ipvs_proxy.plan.slice_cache import SliceCache
from ipvs_proxy.plan.tables import Family
from tests.support.endpoints import HTTP, NODE, ZONE, far, near, some_endpoints
from tests.support.objects import endpoint_slice, real

names = st.sampled_from([f"web-{number}" for number in range(6)])
pieces = st.builds(lambda name, endpoints: endpoint_slice(*endpoints, name=name), names, some_endpoints)
#: Slices that are set, or taken away where only the name is given.
histories = st.lists(st.lists(pieces | names, max_size=3), min_size=1, max_size=8)


def choices_of(endpoints: Endpoints, cache: SliceCache | None = None) -> list[Choices]:
    port = None if cache is None else cache.port(Family.IPV4, HTTP)
    return [
        choose_cluster(endpoints, node_name=NODE, zone=ZONE, cache=port),
        choose_local(endpoints, cache=port),
    ]


def shown(choices: Choices) -> tuple[object, ...]:
    return choices.real_servers, choices.lingering, set(choices.local()), list(choices), choices.any_open


@settings(deadline=None, max_examples=300)
@given(histories)
def test_any_history_leads_to_what_a_reading_of_everything_gives(history: list[list[EndpointSlice | str]]) -> None:
    cache, slices = SliceCache(), {}
    before = [choices.real_servers for choices in choices_of({})]
    for step in history:
        for change in step:
            if isinstance(change, str):
                slices.pop(change, None)
            else:
                slices[change.metadata.name] = change
        expected = gather(slices.values(), Family.IPV4, NODE)
        found = cache.gather(slices.values(), Family.IPV4, NODE)
        assert found.endpoints == expected.endpoints
        assert found.omissions == expected.omissions
        chosen = choices_of(found.endpoints.get(HTTP, {}), cache)
        assert list(map(shown, chosen)) == list(map(shown, choices_of(expected.endpoints.get(HTTP, {}))))
        for old, choices in zip(before, chosen, strict=True):
            differing = choices.differing(old)
            assert differing is None or differing >= {key for key, _ in old.items() ^ choices.real_servers.items()}
        before = [choices.real_servers for choices in chosen]


def many(count: int) -> list[EndpointSlice]:
    return [endpoint_slice(near(number), far(100 + number), name=f"web-{number}") for number in range(1, count)]


def test_only_the_slice_that_changed_is_read_and_only_its_endpoints_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def reading(piece: EndpointSlice, *facts: object) -> object:
        read.append(piece.metadata.name)
        return read_slice(piece, *facts)  # type: ignore[arg-type]

    cache, slices = SliceCache(), many(10)
    chosen, _ = choices_of(cache.gather(slices, Family.IPV4, NODE).endpoints[HTTP], cache)
    before = chosen.real_servers
    monkeypatch.setattr(memory_module, "read_slice", reading)
    slices[3] = endpoint_slice(near(4), far(104), far(105), near(200), name="web-4")
    chosen, _ = choices_of(cache.gather(slices, Family.IPV4, NODE).endpoints[HTTP], cache)
    assert read == ["web-4"]
    assert chosen.differing(before) == chosen.real_servers.keys() - before.keys() == {real("10.0.0.200")}


def test_what_was_given_away_stays_as_it_was() -> None:
    cache, slices = SliceCache(), many(10)
    first = cache.gather(slices, Family.IPV4, NODE).endpoints[HTTP]
    chosen, _ = choices_of(first, cache)
    before, copies = chosen.real_servers, (first.copy(), chosen.real_servers.copy())
    slices[0] = endpoint_slice(far(250), name="web-1")
    chosen, _ = choices_of(cache.gather(slices, Family.IPV4, NODE).endpoints[HTTP], cache)
    assert chosen.real_servers != before
    assert (first, before) == copies


def after(cache: SliceCache, slices: Iterable[EndpointSlice]) -> Choices:
    return choices_of(cache.gather(slices, Family.IPV4, NODE).endpoints[HTTP], cache)[0]


def test_a_difference_to_something_older_is_not_known() -> None:
    cache, slices = SliceCache(), many(10)
    oldest = after(cache, slices).real_servers
    for number in (250, 251):
        slices[0] = endpoint_slice(far(number), name="web-1")
        chosen = after(cache, slices)
        assert chosen.real_servers
    assert chosen.differing(oldest) is None
    # Asking again, as an explanation does, loses nothing.
    before = chosen.real_servers
    assert after(cache, slices).real_servers is before
    assert chosen.differing(before) == frozenset()
