"""Splits a JSON list into its items while its chunks arrive, each item of bounded size.

Invariant: neither the whole response nor an oversized item is ever in memory. This matters because a server that serves
a list from its cache ignores ``limit`` and sends all objects.

The rest of the document is kept with ``0`` in place of each item. It has the list's kind, its resource version and its
commas, and is checked at the end. Only brackets and strings are examined here. Whether an item is valid JSON is up to
its decoder.
"""

from __future__ import annotations

import re
from typing import Final

from ipvs_proxy.kube.lines import HEAD, MAX_OBJECT, TooLong

#: Matches up to the next bracket outside of strings (group 1). If there is none, it matches to the end of the chunk,
#: which may be inside a string (group 2), and between a backslash and the character that it escapes (group 3). Takes
#: linear time, because one of these always follows the last complete string. No quantifier is possessive: before Python
#: 3.11.5, a possessive quantifier inside another one matches wrongly (gh-106052).
_TO_BRACKET: Final = re.compile(
    rb'[^"\[\]{}]*(?:"[^"\\]*(?:\\.[^"\\]*)*"[^"\[\]{}]*)*(?:([\[\]{}])|("[^"\\]*(?:\\.[^"\\]*)*(\\?))\Z|\Z)',
    re.DOTALL,
)
#: Matches the rest of a string that began in an earlier chunk. Group 1 is its closing quote, if the chunk has it; group
#: 2 is a backslash at the end of the chunk.
_REST_OF_STRING: Final = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*(?:(")|(\\?)\Z)', re.DOTALL)
_OPENING, _OBJECT = b"[{", ord("{")
#: What precedes the items.
_ITEMS: Final = re.compile(rb'"items"\s*:\s*\[\Z')
#: Bytes before the items that are searched for it.
_NEAR: Final = 64
#: Number of brackets that are open around an item.
_LEVEL: Final = 2


class OutsideTooLongError(ValueError):
    """The document without its items exceeds the bound, so it is not a list."""


class ItemSplitter:
    """Collects chunks and returns the items that they complete.

    ``limit`` is the maximum size in bytes of an item, and of the document without its items.
    """

    def __init__(self, limit: int = MAX_OBJECT) -> None:
        self._limit = limit
        self._outside = bytearray()
        self._item = bytearray()
        self._size = 0
        self._depth = 0
        self._among_items = False
        self._in_item = False
        self._in_string = False
        #: A backslash at the end of a chunk. The character that it escapes comes with the next chunk.
        self._held = b""

    @property
    def outside(self) -> bytes:
        """The document, with ``0`` in place of each item."""
        return bytes(self._outside)

    def feed(self, chunk: bytes) -> list[bytes | TooLong]:
        """Process a chunk and return the items that it completes. An oversized item is a ``TooLong``.

        Raises:
            OutsideTooLongError: the document without its items exceeds the limit, so it cannot be a list.

        """
        chunk, self._held = self._held + chunk, b""
        items: list[bytes | TooLong] = []
        kept = 0
        for found in _TO_BRACKET.finditer(chunk, self._end_string(chunk)):
            if not found.lastindex or found[2]:
                self._in_string |= found[2] is not None
                self._held = found[3] or self._held
                break
            at = found.end() - 1
            if chunk[at] in _OPENING:
                if self._depth == _LEVEL and self._among_items and chunk[at] == _OBJECT:
                    self._keep(chunk[kept:at])
                    kept, self._in_item = at, True
                self._depth += 1
                if self._depth == _LEVEL:
                    self._keep(chunk[kept : at + 1])
                    kept = at + 1
                    self._among_items = _ITEMS.search(self._outside[-_NEAR:]) is not None
            else:
                self._depth -= 1
                if self._depth == _LEVEL and self._in_item:
                    self._keep(chunk[kept : at + 1])
                    kept = at + 1
                    items.append(self._take())
                elif self._depth < _LEVEL:
                    self._among_items = False
        self._keep(chunk[kept : len(chunk) - len(self._held)])
        return items

    def _end_string(self, chunk: bytes) -> int:
        """Return the offset at which a string from an earlier chunk ends.

        This is 0 if no string is open, and the length of the chunk if the string does not end in it.
        """
        if not self._in_string:
            return 0
        found = _REST_OF_STRING.match(chunk)
        if found is None or not found[1]:
            self._held = found[2] if found else b""
            return len(chunk)
        self._in_string = False
        return found.end()

    def _keep(self, piece: bytes) -> None:
        if self._in_item:
            self._size += len(piece)
            if self._size <= self._limit:
                self._item += piece
            elif len(self._item) != HEAD:
                self._item = (self._item + piece)[:HEAD]
        else:
            self._outside += piece
            if len(self._outside) > self._limit:
                raise OutsideTooLongError

    def _take(self) -> bytes | TooLong:
        item = bytes(self._item) if self._size <= self._limit else TooLong(bytes(self._item), self._size)
        self._item, self._size, self._in_item = bytearray(), 0, False
        self._outside += b"0"
        return item
