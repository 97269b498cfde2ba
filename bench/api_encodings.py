"""Other encodings of the same objects: gzip as the API server applies it, and protobuf, which kube-proxy asks for.

Compressed sizes depend a little on the version of zlib, and Go's encoder differs by some per cent. The protobuf size is
counted, not encoded: lengths of tags, lengths and values of the API's published messages, all of whose field numbers
are below 16.
"""

from __future__ import annotations

import re
import zlib
from typing import Any, NamedTuple

import msgspec

from bench import managed

#: The API server's gzip level since 1.26 (kubernetes/kubernetes#112299).
GZIP_LEVEL = 1
#: Fields that are maps of strings, or raw JSON inside of a message.
_MAPS = frozenset(("labels", "annotations", "selector", "capacity", "allocatable"))
_RAW = "fieldsV1"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
#: A Timestamp of today: tag and five bytes of seconds, tag and zero nanoseconds.
_TIME_SIZE = 8
#: Around an object in a watch: length of the frame, type of the event, magic number, kind and version.
_ENVELOPE = 60


class Encodings(NamedTuple):
    """Bytes of the first list of one agent, by how it is sent; ``bare`` is a streaming list without managedFields."""

    items: int
    items_gzip: int
    lines: int
    lines_gzip: int
    members_gzip: int
    bare: int
    bare_gzip: int
    bare_members_gzip: int
    protobuf: int


class Encoder:
    """Adds up the sizes of objects as a list, as a stream, and with each line as a gzip member of its own."""

    def __init__(self) -> None:
        self._items, self._lines, self._bare = _gzip(), _gzip(), _gzip()
        self._sizes = [0] * len(Encodings._fields)

    def add(self, item: dict[str, Any], encoded: bytes, line: bytes) -> None:
        """Add one object: itself, its JSON in a list, and its line in a stream."""
        bare = line.replace(encoded[1:], msgspec.json.encode(managed.without(item))[1:])
        self._add(
            len(encoded) + 1,
            len(self._items.compress(encoded + b",")),
            len(line),
            len(self._lines.compress(line)),
            len(gzipped(line)),
            len(bare),
            len(self._bare.compress(bare)),
            len(gzipped(bare)),
            protobuf_size(item) + _ENVELOPE,
        )

    def result(self) -> Encodings:
        """Return the sums."""
        self._add(0, len(self._items.flush()), 0, len(self._lines.flush()), 0, 0, len(self._bare.flush()), 0, 0)
        return Encodings(*self._sizes)

    def _add(self, *sizes: int) -> None:
        self._sizes = [total + more for total, more in zip(self._sizes, sizes, strict=True)]


def gzipped(line: bytes) -> bytes:
    """Return a line as a gzip member of its own."""
    member = _gzip()
    return member.compress(line) + member.flush()


def protobuf_size(value: Any, field: str = "") -> int:
    """Return the number of bytes of a value's content in protobuf; ``field`` is the name of its field."""
    if isinstance(value, str):
        return _TIME_SIZE if _TIME.fullmatch(value) else len(value.encode())
    if isinstance(value, bool):
        return 1
    if isinstance(value, int):
        return _varint(value)
    if field == _RAW:
        return _delimited(len(msgspec.json.encode(value)))
    if field in _MAPS:
        entries = ((len(name.encode()), protobuf_size(content)) for name, content in value.items())
        return sum(_delimited(_delimited(name) + _delimited(content)) for name, content in entries)
    return sum(_field(name, content) for name, content in value.items())


def _field(name: str, value: Any) -> int:
    if isinstance(value, list):
        return sum(_field(name, element) for element in value)
    size = protobuf_size(value, name)
    if isinstance(value, int):
        return 1 + size
    # The entries of a map are repeated fields of the message itself.
    return size if name in _MAPS else _delimited(size)


def _delimited(size: int) -> int:
    return 1 + _varint(size) + size


def _varint(value: int) -> int:
    return max(1, (value.bit_length() + 6) // 7)


def _gzip() -> zlib._Compress:
    return zlib.compressobj(GZIP_LEVEL, wbits=31)
