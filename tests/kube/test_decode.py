"""Decoding what the API sends, and what it should never send."""

from __future__ import annotations

import copy
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvs_proxy.kube.decode import DecodedList, DecodeError, ListDecoder, Skipped, convert_object, decode_event
from ipvs_proxy.kube.lines import LineSplitter
from ipvs_proxy.kube.objects import Service
from ipvs_proxy.kube.resources import ENDPOINT_SLICES, SERVICES, Resource, own_node
from ipvs_proxy.kube.store import Change, Store
from tests.support.apiserver import bookmark, line, service
from tests.support.json_objects import JSON, WHOLE, paths

RESOURCES = (SERVICES, ENDPOINT_SLICES, own_node("node"))


def decode_list(raw: bytes, resource: Resource) -> DecodedList:
    decoder = ListDecoder(resource)
    decoder.feed(raw)
    return decoder.finish()


def list_of(resource: Resource, *items: object) -> bytes:
    head = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": {"resourceVersion": "7"}}
    return json.dumps({**head, "items": items}).encode()


@given(st.binary(max_size=200), st.sampled_from(RESOURCES))
def test_any_bytes_are_an_event_or_a_decode_error(raw: bytes, resource) -> None:
    with suppress(DecodeError):
        decode_event(raw, resource)
    with suppress(DecodeError):
        decode_list(raw, resource)


@given(JSON, st.sampled_from(("ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR", "?")), st.sampled_from(RESOURCES))
def test_any_object_in_an_event_is_decoded_or_skipped(item: object, kind: str, resource) -> None:
    if isinstance(item, dict):
        item |= {"kind": resource.kind, "apiVersion": resource.api_version}
    with suppress(DecodeError):
        event = decode_event(json.dumps({"type": kind, "object": item}).encode(), resource)
        if kind in {"ADDED", "MODIFIED"}:
            assert (event.object is None) != (event.skipped is None)


@given(st.lists(JSON, max_size=4), st.sampled_from(RESOURCES))
def test_every_item_of_a_list_is_decoded_or_skipped(items: list[object], resource) -> None:
    if all(isinstance(item, dict) for item in items):
        page = decode_list(list_of(resource, *items), resource)
        assert len(page.objects) + len(page.skipped) == len(items)
    else:
        with pytest.raises(DecodeError, match=r"no [A-Z][A-Za-z]+List"):
            decode_list(list_of(resource, *items), resource)


PLACES = [(resource, path) for resource in RESOURCES for path in paths(WHOLE[resource.kind])]


@given(
    st.sampled_from(PLACES),
    JSON | st.just(10**30) | st.just("x" * 10_000) | st.floats(allow_nan=False, allow_infinity=False),
)
def test_garbage_in_any_field_is_read_or_skipped_by_name_and_harms_no_neighbour(place, garbage: object) -> None:
    resource, path = place
    odd = copy.deepcopy(WHOLE[resource.kind])
    target = odd
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = garbage
    page = decode_list(list_of(resource, WHOLE[resource.kind], odd, WHOLE[resource.kind]), resource)
    assert len(page.objects) + len(page.skipped) == 3
    assert len(page.objects) >= 2
    if path[0] != "metadata":
        assert [skipped.key for skipped in page.skipped] in ([], ["default/web"])


@given(JSON, st.sampled_from(RESOURCES))
def test_any_mapping_is_converted_or_skipped(item: object, resource) -> None:
    if isinstance(item, dict):
        assert isinstance(convert_object(item, resource), (resource.struct, Skipped))


def test_one_malformed_item_costs_no_other_and_is_named_with_the_field() -> None:
    page = decode_list(list_of(SERVICES, service("a"), service("b", cluster_ip=7), service("c")), SERVICES)
    assert [item.metadata.name for item in page.objects] == ["a", "c"]
    assert page.skipped[0].key == "ns/b"
    assert "$.spec.clusterIP" in page.skipped[0].error


def test_deleted_event_needs_no_more_than_a_name() -> None:
    event = decode_event(line("DELETED", service("b", "9", cluster_ip=7)), SERVICES)
    assert (event.type, event.key, event.resource_version, event.skipped) == ("DELETED", "ns/b", "9", None)


def test_bookmark_tells_the_end_of_the_initial_events() -> None:
    assert decode_event(bookmark("7", initial_end=True), SERVICES).initial_events_end
    assert not decode_event(bookmark("7"), SERVICES).initial_events_end


def test_error_event_has_its_code() -> None:
    event = decode_event(line("ERROR", {"kind": "Status", "code": 410, "message": "too old"}), SERVICES)
    assert (event.type, event.code, event.message) == ("ERROR", 410, "too old")


@given(st.lists(st.binary(max_size=8).map(lambda b: b.replace(b"\n", b"x") + b"."), max_size=8), st.data())
def test_lines_are_the_same_however_they_are_cut(lines: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(text + b"\n" for text in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    splitter, found = LineSplitter(), []
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        found += splitter.feed(whole[start:end])
    assert found == lines


def decoded(name: str, version: str, address: str = "10.0.0.1") -> Service:
    item = convert_object(service(name, version, address), SERVICES)
    assert isinstance(item, Service)
    return item


@pytest.mark.parametrize(
    ("fresh", "skipped", "expected"),
    [
        ([decoded("a", "2")], set(), []),  # a new version of the same
        ([decoded("a", "1", "10.0.0.2")], set(), [("a", "a")]),  # a file that was edited keeps its version
        ([decoded("b", "3")], set(), [("a", None), (None, "b")]),
        ([], {"ns/a"}, []),  # unreadable: the last good version stays
    ],
)
def test_store_tells_only_differences(fresh: list[Service], skipped: set[str], expected: list[tuple]) -> None:
    store = Store("Service")
    assert store.replace([decoded("a", "1")]) == [Change("Service", None, decoded("a", "1"))]
    changes = store.replace(fresh, skipped)
    assert [(old and old.metadata.name, new and new.metadata.name) for _, old, new in changes] == expected
