"""From chunks of a list in JSON to its items, one by one, each of bounded size.

A server that serves a list from its cache pays no heed to ``limit`` and sends all there is. Neither the answer as a
whole nor one monstrous item in it is ever in memory: what is left of the document, with ``0`` in place of each item,
has the list's kind, its version and its commas, and is judged at the end. Only brackets are looked at; whether an item
is JSON is for its decoder to say.
"""

from __future__ import annotations

import re
from typing import Final

from ipvs_proxy.kube.lines import HEAD, MAX_OBJECT, TooLong

#: All up to the next bracket that is in no string (group 1), else to the end of the chunk, which may be within a string
#: (group 2) and between a backslash and what it escapes (group 3). Linear: where strings that are complete end, one of
#: these is. Not possessive, which before Python 3.11.5 is wrong where one is in another (gh-106052).
_TO_BRACKET: Final = re.compile(
    rb'[^"\[\]{}]*(?:"[^"\\]*(?:\\.[^"\\]*)*"[^"\[\]{}]*)*(?:([\[\]{}])|("[^"\\]*(?:\\.[^"\\]*)*(\\?))\Z|\Z)',
    re.DOTALL,
)
#: The rest of a string that began in an earlier chunk, and its end, if that is there (group 1).
_REST_OF_STRING: Final = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*(?:(")|(\\?)\Z)', re.DOTALL)
_OPENING, _OBJECT = b"[{", ord("{")
#: What stands before the items, as far as it is looked back for.
_ITEMS: Final = re.compile(rb'"items"\s*:\s*\[\Z')
_NEAR: Final = 64
#: So many brackets are around an item.
_LEVEL: Final = 2


class OutsideTooLongError(ValueError):
    """What is outside of the items is beyond the bound: it is no list."""


class ItemSplitter:
    """Collects chunks and gives the items that they complete; ``outside`` is the document without them."""

    def __init__(self, limit: int = MAX_OBJECT) -> None:
        self._limit = limit
        self._outside = bytearray()
        self._item = bytearray()
        self._size = 0
        self._depth = 0
        self._among_items = False
        self._in_item = False
        self._in_string = False
        #: A backslash at the end of a chunk; what it escapes comes with the next one.
        self._held = b""

    @property
    def outside(self) -> bytes:
        """The document, with ``0`` in place of each item."""
        return bytes(self._outside)

    def feed(self, chunk: bytes) -> list[bytes | TooLong]:
        """Take a chunk; return the items that it completes.

        Raises:
            OutsideTooLongError: this cannot be a list.

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
        """Return where the string ends that an earlier chunk began: the length of the chunk if that is not in it."""
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
