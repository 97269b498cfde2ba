"""Splits chunks of bytes into lines of any length up to a bound.

The API sends an EndpointSlice with a thousand endpoints as one line of a few hundred kilobytes. The line readers of
HTTP libraries give up long before that. The pieces of a line are joined once, when it is complete, so the cost is
proportional to its length. Only the beginning of an oversized line is kept, which may show what it was about.
"""

from __future__ import annotations

from typing import Final, NamedTuple

#: Maximum size of an object in bytes. etcd accepts 1.5 MiB, to which JSON adds field names and escapes.
MAX_OBJECT: Final = 16 * 2**20
#: Bytes kept of anything larger.
HEAD: Final = 4096


class TooLong(NamedTuple):
    """An object or line above the bound: its beginning, and its full size in bytes."""

    head: bytes
    size: int


class LineSplitter:
    """Collects chunks and returns complete lines, without their line ends.

    Bytes after the last line end are kept for the next chunk. ``limit`` is the maximum size of a line in bytes.
    """

    def __init__(self, limit: int = MAX_OBJECT) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes | TooLong]:
        """Process a chunk and return the lines that it completes, without blank ones. A long line is a ``TooLong``."""
        *complete, rest = chunk.split(b"\n")
        if not complete:
            self._add(rest)
            return []
        self._add(complete[0])
        first = self._take()
        self._add(rest)
        limit = self._limit
        others = (line if len(line) <= limit else TooLong(line[:HEAD], len(line)) for line in complete[1:])
        return [line for line in (first, *others) if isinstance(line, TooLong) or line.strip()]

    @property
    def rest(self) -> bytes:
        """The beginning of the line that is not complete yet, at most ``HEAD`` bytes."""
        return b"".join(self._pieces)[:HEAD]

    def _add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= self._limit:
            self._pieces.append(piece)
        elif len(self._pieces) != 1 or len(self._pieces[0]) != HEAD:
            self._pieces = [b"".join([*self._pieces, piece])[:HEAD]]

    def _take(self) -> bytes | TooLong:
        line, size = b"".join(self._pieces), self._size
        self._pieces, self._size = [], 0
        return line if size <= self._limit else TooLong(line, size)
