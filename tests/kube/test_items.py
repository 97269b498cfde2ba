"""Lists in JSON are cut into their items whatever the chunks are, and never held as a whole."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvs_proxy.kube.items import ItemSplitter, OutsideTooLongError
from ipvs_proxy.kube.lines import HEAD, LineSplitter, TooLong

TEXT = st.text(alphabet='ab"\\[]{},:0 \n\u00e9', max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
ITEMS = st.lists(st.dictionaries(TEXT | st.just("items"), VALUES, max_size=3), max_size=4)


def feed_in_pieces(splitter: Any, raw: bytes, size: int) -> list[Any]:
    return [found for start in range(0, len(raw), size) for found in splitter.feed(raw[start : start + size])]


@given(
    ITEMS,
    st.dictionaries(TEXT, VALUES, max_size=2),
    st.dictionaries(TEXT, VALUES, max_size=2),
    st.sampled_from((None, 1)),
    st.data(),
)
def test_the_items_are_the_same_however_a_list_is_cut(items, before, after, indent, data: st.DataObject) -> None:
    document = {**before, "items": items, **{key: value for key, value in after.items() if key not in before}}
    raw = json.dumps(document, indent=indent, ensure_ascii=data.draw(st.booleans())).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    splitter, found = ItemSplitter(), []
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        found += splitter.feed(raw[start:end])
    assert [json.loads(item) for item in found] == items
    assert json.loads(splitter.outside) == {**document, "items": [0] * len(items)}


@given(st.binary(max_size=300), st.integers(1, 50))
def test_any_bytes_are_cut_without_a_fault(raw: bytes, size: int) -> None:
    found = feed_in_pieces(ItemSplitter(), raw, size)
    assert sum(map(len, found)) <= len(raw)


def test_items_of_a_field_within_an_item_are_none() -> None:
    splitter = ItemSplitter()
    assert splitter.feed(b'{"items":[{"items":[{"a":1}]}],"metadata":{"items":[{"b":2}]}}') == [b'{"items":[{"a":1}]}']
    assert splitter.outside == b'{"items":[0],"metadata":{"items":[{"b":2}]}}'


@pytest.mark.parametrize("size", [100_000, 1000, 7])
def test_an_item_beyond_the_bound_is_its_beginning_and_size_and_the_next_one_is_whole(size: int) -> None:
    large = json.dumps({"name": "x" * 50_000}).encode()
    splitter = ItemSplitter(limit=10_000)
    found = feed_in_pieces(splitter, b'{"items":[' + large + b',{"a":1}]}', size)
    assert found == [TooLong(large[:HEAD], len(large)), b'{"a":1}']
    assert splitter.outside == b'{"items":[0,0]}'


@pytest.mark.parametrize("size", [100_000, 1000, 7])
def test_a_line_beyond_the_bound_is_its_beginning_and_size_and_the_next_one_is_whole(size: int) -> None:
    splitter = LineSplitter(limit=10_000)
    raw = b"first\n" + b"x" * 50_000 + b"\n" + b"y" * 20_000 + b"\nlast\nrest"
    found = feed_in_pieces(splitter, raw, size)
    assert found == [b"first", TooLong(b"x" * HEAD, 50_000), TooLong(b"y" * HEAD, 20_000), b"last"]
    assert splitter.rest == b"rest"


@pytest.mark.parametrize(
    ("begin", "chunk"),
    [(b"", b" " * 2**16), (b'{"a":"', b"x" * 2**16), (b"", b"[" * 2**16), (b'{"a":"', b"\\" * 2**16)],
    ids=["blanks", "a text", "brackets", "backslashes"],
)
def test_what_is_no_list_ends_at_the_bound(begin: bytes, chunk: bytes) -> None:
    splitter = ItemSplitter(limit=2**20)
    with pytest.raises(OutsideTooLongError):
        feed_in_pieces(splitter, begin + chunk * 17, 2**16)


@pytest.mark.parametrize(
    ("make", "begin"),
    [(LineSplitter, b'{"type":"ADDED","object":{"x":"'), (ItemSplitter, b'{"items":[{"x":"')],
    ids=["line", "item"],
)
def test_an_object_of_400_megabytes_takes_no_more_memory_than_one_that_is_read(make: Any, begin: bytes) -> None:
    splitter, chunk = make(), b"x" * 2**20
    tracemalloc.start()
    try:
        splitter.feed(begin)
        for _ in range(400):
            splitter.feed(chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 * 2**20, f"{peak / 2**20:.0f} MiB"
