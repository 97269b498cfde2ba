"""Whether anybody but us has changed the rules of the network namespace since we last looked.

Every transaction of nf_tables raises the generation by one, whoever makes it (``nf_tables_commit``). We know which
generations are ours: the kernel says so in its answer. So as long as the generation is the one behind the last that was
looked at, but for ours, there is nothing to look at.

The invariant: whatever was true when ``verified`` was called is still true while ``is_verified`` says so, but for what
our own transactions have changed.
"""

from __future__ import annotations

from threading import Lock


class Generation:
    """The last generation of which all is known. Any thread may use it."""

    def __init__(self) -> None:
        self._known: int | None = None
        self._lock = Lock()

    def verified(self, number: int) -> None:
        """Note that all is known of a generation."""
        with self._lock:
            self._known = number

    def is_verified(self, number: int) -> bool:
        """Return whether all is known of a generation."""
        with self._lock:
            return self._known == number

    def advance(self, number: int) -> None:
        """Note that a transaction of ours made a generation. If it is not the next one, somebody else made others."""
        with self._lock:
            self._known = number if self._known is not None and following(self._known) == number else None

    def forget(self) -> None:
        """Note that nothing is known any more."""
        with self._lock:
            self._known = None


def following(number: int) -> int:
    """Return the generation after one: it has 32 bits, and is never 0 (``nf_tables_commit``)."""
    return (number + 1) & 0xFFFF_FFFF or 1
