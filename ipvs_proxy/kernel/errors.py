"""What the kernel layer raises when it cannot work at all."""

from __future__ import annotations


class Unusable(OSError):  # noqa: N818  the name says what is wrong
    """A piece of the kernel is missing or occupied: the text is one line that names it and the remedy."""


class MissingPiece(Unusable):
    """Something that the agent needs is missing on this node: ``str()`` is one line with the piece and the remedy."""

    def __init__(self, piece: str, remedy: str) -> None:
        super().__init__(f"{piece}: {remedy}")
        self.piece = piece
        self.remedy = remedy
