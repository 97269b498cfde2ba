"""From chunks of bytes to lines, of any length.

The API sends an EndpointSlice of a thousand endpoints as one line of some hundred kilobytes; the line readers of HTTP
libraries stop long before that. Pieces of a line are joined once, when it is complete, so the cost follows the bytes.
"""

from __future__ import annotations


class LineSplitter:
    """Collects chunks and gives complete lines, without their ends.

    What follows the last line end is kept for the next
    chunk.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take a chunk; give the lines that it completes, empty ones left out."""
        *complete, rest = chunk.split(b"\n")
        if not complete:
            self._pieces.append(rest)
            return []
        complete[0] = b"".join([*self._pieces, complete[0]])
        self._pieces = [rest]
        return [line for line in complete if line.strip()]
