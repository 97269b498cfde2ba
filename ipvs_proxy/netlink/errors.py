"""Errors of the kernel that end work with one line, and those that pass by themselves."""

from __future__ import annotations

import os
from errno import EAGAIN, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM
from typing import Final

#: It is not known whether the kernel carried an operation out.
UNKNOWN: Final = -1
#: The kernel, or this process, is short of memory, buffers or descriptors (netlink(7), socket(2)).
SHORTAGES: Final = frozenset({EAGAIN, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, UNKNOWN})

#: The end of a remedy that begins with a module of the kernel.
MODULES_PACKAGE: Final = (
    "or install the package that has all of the kernel's modules (kernel-modules-extra on RHEL and its family)"
)


class Unusable(OSError):  # noqa: N818  the name says what is wrong
    """A piece of this node is missing, occupied or broken: ``str()`` is one line with the piece and the remedy.

    The remedy is empty where none is known.
    """

    def __init__(self, piece: str, remedy: str = "") -> None:
        super().__init__(f"{piece}: {remedy}" if remedy else piece)
        self.piece = piece
        self.remedy = remedy


class Busy(Unusable):
    """It is in use just now, or the kernel is short of something: the next attempt may work."""


class MissingPiece(Unusable):
    """Something that the agent needs is missing on this node."""

    def __init__(self, piece: str, remedy: str) -> None:
        super().__init__(piece, remedy)


def describe(code: int) -> str:
    """Say what the result of an operation means: an errno, or ``UNKNOWN``."""
    return "unknown: no answer from the kernel" if code == UNKNOWN else os.strerror(code)


def is_passing(error: BaseException | None) -> bool:
    """Return whether an error, or one that caused it, passes by itself."""
    while error is not None:
        if isinstance(error, Busy) or (isinstance(error, OSError) and error.errno in SHORTAGES):
            return True
        error = error.__cause__
    return False
