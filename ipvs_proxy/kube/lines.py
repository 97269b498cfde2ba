"""From chunks of bytes to lines, of any length up to a bound.

The API sends an EndpointSlice of a thousand endpoints as one line of some hundred kilobytes; the line readers of HTTP
libraries stop long before that. Pieces of a line are joined once, when it is complete, so the cost follows the bytes.
Of a line beyond the bound only the beginning is kept, which may tell what it was about.
"""

from __future__ import annotations

from typing import Final, NamedTuple

#: Bytes of one object. etcd takes 1.5 MiB, to which JSON adds names of fields and escapes.
MAX_OBJECT: Final = 16 * 2**20
#: Bytes that are kept of what is larger.
HEAD: Final = 4096


class TooLong(NamedTuple):
    """What is beyond the bound: its beginning, and how many bytes it has."""

    head: bytes
    size: int


class LineSplitter:
    """Collects chunks and gives complete lines, without their ends.

    What follows the last line end is kept for the next chunk; ``rest`` is its beginning.
    """

    def __init__(self, limit: int = MAX_OBJECT) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes | TooLong]:
        """Take a chunk; return the lines that it completes, empty ones left out."""
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
        """The beginning of the line that is not complete yet."""
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
