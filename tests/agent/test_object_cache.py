"""Which Services a change of an object concerns."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from ipvs_proxy.agent.sync.object_cache import MANY_SLICES, ObjectCache
from ipvs_proxy.kube.objects import TRIGGER_TIME, EndpointSlice, Node, ObjectMeta, SliceMeta
from ipvs_proxy.plan.fragment import ServiceName
from tests.support.objects import annotated_slice, endpoint, endpoint_slice, service

WEB, API = ServiceName("default", "web"), ServiceName("default", "api")


def test_slice_that_moves_concerns_both_services_and_leaves_nothing_behind() -> None:
    cache = ObjectCache()
    of_web, of_api = endpoint_slice(endpoint("10.0.0.1")), endpoint_slice(endpoint("10.0.0.1"), of="api")
    assert cache.change(None, of_web).services == (WEB,)
    assert cache.change(of_web, of_api).services == (WEB, API)
    assert (list(cache.slices(WEB)), list(cache.slices(API))) == ([], [of_api])
    assert cache.change(of_api, None).services == (API,)
    assert cache._slices == {}


def test_slice_without_a_service_concerns_nobody() -> None:
    piece = EndpointSlice(SliceMeta("x", "default"), "IPv4")
    assert ObjectCache().change(None, piece).services == ()


def test_service_is_known_until_it_is_deleted() -> None:
    cache, web = ObjectCache(), service("web")
    assert cache.change(None, web).services == (WEB,)
    assert cache.services == {WEB: web}
    assert cache.change(web, None).services == (WEB,)
    assert cache.services == {}


def test_deleted_node_stays_as_it_was() -> None:
    cache, node = ObjectCache(), Node(ObjectMeta("node", labels={"zone": "a"}))
    assert cache.change(None, node).node == node
    assert cache.change(node, None).node == node
    assert cache.node == node


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-23T08:00:00.5Z", datetime(2026, 11, 23, 8, 0, 0, 500_000, UTC)),
        ("2026-11-23T08:00:00", None),
        ("yesterday", None),
    ],
)
def test_trigger_time_is_read_from_the_annotation(text: str, moment: datetime | None) -> None:
    piece = annotated_slice(endpoint_slice(endpoint("10.0.0.1")), {TRIGGER_TIME: text})
    assert ObjectCache().change(None, piece).triggered == moment


def test_what_is_read_is_remembered_for_services_with_many_slices_only() -> None:
    cache = ObjectCache()
    name = ServiceName("default", "web")
    slices = [endpoint_slice(name=f"web-{number}") for number in range(MANY_SLICES)]
    for piece in slices[:-1]:
        cache.change(None, piece)
    assert cache.slice_cache(name) is None
    cache.change(None, slices[-1])
    kept = cache.slice_cache(name)
    assert kept is not None
    assert cache.slice_cache(name) is kept
    for piece in slices:
        cache.change(piece, None)
    for piece in slices:
        cache.change(None, piece)
    assert cache.slice_cache(name) is not kept
