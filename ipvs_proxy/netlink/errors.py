"""What the kernel layer raises when it cannot work, and which of its errors pass by themselves."""

from __future__ import annotations

import os
from errno import EAGAIN, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM
from typing import Final

#: The fate of an operation is not known: the kernel may have carried it out or not.
UNKNOWN: Final = -1
#: The kernel, or this process, is short of memory, buffers or descriptors (netlink(7), socket(2)).
SHORTAGES: Final = frozenset({EAGAIN, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, UNKNOWN})


class Unusable(OSError):  # noqa: N818  the name says what is wrong
    """A piece of the kernel is missing or occupied: the text is one line that names it and the remedy."""


class Busy(Unusable):
    """It is only occupied, or the kernel is short of something: it may work the next time."""


class MissingPiece(Unusable):
    """Something that the agent needs is missing on this node: ``str()`` is one line with the piece and the remedy."""

    def __init__(self, piece: str, remedy: str) -> None:
        super().__init__(f"{piece}: {remedy}")
        self.piece = piece
        self.remedy = remedy


def describe(code: int) -> str:
    """Say what the result of an operation means: an errno, or ``UNKNOWN``."""
    return "unknown: no answer from the kernel" if code == UNKNOWN else os.strerror(code)


def is_passing(error: BaseException | None) -> bool:
    """Return whether an error, or one that it comes from, is of a kind that passes by itself."""
    while error is not None:
        if isinstance(error, Busy) or (isinstance(error, OSError) and error.errno in SHORTAGES):
            return True
        error = error.__cause__
    return False
