"""Whatever an API server answers is a list of the resource or none; it never is a shorter one, and costs little."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvs_proxy.kube.decode import DecodedList, DecodeError, ListDecoder, decode_event, message_of
from ipvs_proxy.kube.lines import MAX_OBJECT, LineSplitter
from ipvs_proxy.kube.resources import ENDPOINT_SLICES, SERVICES, Resource
from ipvs_proxy.kube.store import Store
from tests.support.json_objects import JSON, WHOLE, paths

RESOURCES = (SERVICES, ENDPOINT_SLICES)
#: Seconds of this process for one answer of the largest size: linear work takes a tenth of it.
PATIENCE = 3.0


def item(resource: Resource, name: str) -> dict[str, Any]:
    found = copy.deepcopy(WHOLE[resource.kind])
    found["metadata"]["name"] = name
    return found


def page(resource: Resource) -> dict[str, Any]:
    return {
        "kind": f"{resource.kind}List",
        "apiVersion": resource.api_version,
        "metadata": {"resourceVersion": "7", "continue": "", "remainingItemCount": 0},
        "items": [item(resource, name) for name in ("a", "b", "c")],
    }


def event(resource: Resource, type_: str) -> dict[str, Any]:
    typed = {"kind": resource.kind, "apiVersion": resource.api_version}
    return {"type": type_, "object": {**typed, **item(resource, "a")}}


def decode(raw: bytes, resource: Resource, size: int = 1 << 20) -> DecodedList:
    decoder = ListDecoder(resource)
    for start in range(0, len(raw), size):
        decoder.feed(raw[start : start + size])
    return decoder.finish()


def spoil(document: dict[str, Any], path: tuple[str | int, ...], data: st.DataObject) -> None:
    """Replace, remove or rename what is at a path."""
    target: Any = document
    for key in path[:-1]:
        target = target[key]
    how = data.draw(st.sampled_from(("replace", "remove", "rename")))
    if how == "replace":
        target[path[-1]] = data.draw(JSON)
    elif isinstance(target, list) or how == "remove":
        del target[path[-1]]
    else:
        target[f"{path[-1]}x"] = target.pop(path[-1])


@given(st.sampled_from(RESOURCES), st.data())
def test_a_spoiled_list_is_refused_or_holds_all_that_it_says(resource: Resource, data: st.DataObject) -> None:
    document = page(resource)
    spoil(document, data.draw(st.sampled_from(paths(document))), data)
    store = Store(resource.kind)
    store.put(decode(json.dumps(page(resource)).encode(), resource).objects)
    try:
        found = decode(json.dumps(document).encode(), resource, data.draw(st.integers(1, 400)))
    except DecodeError:
        return
    assert (document["kind"], document["apiVersion"]) == (f"{resource.kind}List", resource.api_version)
    items = document["items"] or []
    assert len(found.objects) + len(found.skipped) == len(items)
    # Only what the list does not hold is gone, and nothing if one of its items cannot be named.
    gone = {
        change.old.metadata.name
        for change in store.replace(found.objects, {one.key for one in found.skipped})
        if change.old and not change.new
    }
    named = [one.get("metadata") for one in items if isinstance(one, dict)]
    names = [one.get("name") for one in named if isinstance(one, dict) and one.get("namespace") == "default"]
    assert not [name for name in gone if name in names]


@given(st.sampled_from(RESOURCES), st.binary(max_size=3), st.data())
def test_a_list_that_is_cut_or_mixed_up_is_refused_or_whole(
    resource: Resource, noise: bytes, data: st.DataObject
) -> None:
    raw = json.dumps(page(resource)).encode()
    at = data.draw(st.integers(0, len(raw)))
    cut = data.draw(st.booleans())
    mixed = raw[:at] + noise + (b"" if cut else raw[at + data.draw(st.integers(0, 3)) :])
    try:
        found = decode(mixed, resource, data.draw(st.integers(1, 400)))
    except DecodeError:
        return
    assert len(found.objects) + len(found.skipped) >= 2, mixed


@given(st.sampled_from(RESOURCES), st.sampled_from(("ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR")), st.data())
def test_a_spoiled_event_is_refused_or_about_an_object_of_the_kind(
    resource: Resource, type_: str, data: st.DataObject
) -> None:
    document = event(resource, type_)
    spoil(document, data.draw(st.sampled_from(paths(document))), data)
    separators = data.draw(st.sampled_from(((",", ":"), (", ", ": "))))
    (line,) = LineSplitter().feed(json.dumps(document, separators=separators).encode() + b"\n")
    try:
        found = decode_event(line, resource)
    except DecodeError:
        return
    if found.type in {"ADDED", "MODIFIED", "DELETED"}:
        assert (document["object"]["kind"], document["object"]["apiVersion"]) == (resource.kind, resource.api_version)
        assert found.key


@given(st.binary(max_size=300))
def test_any_refusal_is_quoted_on_one_line(refusal: bytes) -> None:
    text = message_of(refusal)
    assert text.isprintable()
    assert len(text) < 300


LONG = MAX_OBJECT - 2000
MONSTERS = {
    "a kind": {"kind": "x" * LONG},
    "a version": {"metadata": {"resourceVersion": "9" * LONG}},
    "a token": {"metadata": {"resourceVersion": "9", "continue": "x" * LONG}},
    "an unknown field": {"extra": "x" * LONG},
    "escapes": {"extra": "\\" * (LONG // 2)},
    "quotes": {"extra": '"' * (LONG // 2)},
    "an array": {"extra": [0] * (LONG // 3)},
    "many items": {"items": [{"metadata": {"name": "x"}}] * 100_000},
    "items of nothing": {"items": [{}] * 100_000},
    "numbers": {"items": [0] * (LONG // 3)},
    "names": {"items": [{"metadata": {"name": "x" * LONG}}]},
    "labels": {"items": [{"metadata": {"name": "x", "labels": {str(number): "" for number in range(200_000)}}}]},
    "depth": {"extra": "REPLACED"},
}


@pytest.mark.parametrize("name", MONSTERS)
def test_the_largest_answer_is_read_or_refused_in_linear_time_and_quoted_in_part(name: str) -> None:
    raw = json.dumps({**page(SERVICES), **MONSTERS[name]}, separators=(",", ":")).encode()
    raw = raw.replace(b'"REPLACED"', b"[" * 500_000 + b"]" * 500_000)
    begun = time.process_time()
    said = outcome(lambda: decode(raw, SERVICES, 1 << 18).resource_version)
    assert time.process_time() - begun < PATIENCE
    assert len(said) < 1000, f"{name} is quoted whole"


@pytest.mark.parametrize("field", ["name", "namespace", "resourceVersion", "uid"])
def test_the_largest_event_is_read_or_refused_in_linear_time_and_quoted_in_part(field: str) -> None:
    document = event(SERVICES, "MODIFIED")
    document["object"]["metadata"][field] = "x" * LONG
    raw = json.dumps(document, separators=(",", ":")).encode()
    begun = time.process_time()
    said = outcome(lambda: decode_event(raw, SERVICES).resource_version)
    assert time.process_time() - begun < PATIENCE
    assert len(said) < 1000, f"{field} is quoted whole"


def outcome(read: Callable[[], str]) -> str:
    """Return the version that was read, or what the refusal says."""
    try:
        return read()
    except DecodeError as error:
        return str(error)
