"""What the kernel layer raises when it cannot work at all."""

from __future__ import annotations


class Unusable(OSError):  # noqa: N818  the name says what is wrong
    """A piece of the kernel is missing or occupied: the text is one line that names it and the remedy."""
