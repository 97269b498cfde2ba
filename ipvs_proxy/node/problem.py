"""What is wrong with a node, in two fields: whoever prints it decides how they are joined."""

from __future__ import annotations

from typing import NamedTuple


class Problem(NamedTuple):
    """What is wrong, and what to do about it; ``remedy`` is empty where nothing is known to help."""

    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.text}; {self.remedy}" if self.remedy else self.text
