"""What ``iptables-save`` prints, read once: tables, their chains, and the rules of each chain.

Pure, and the only parser of that text. Whatever the text, it never fails: a line that is none of the three kinds is
passed over. A node may have tens of thousands of rules; each line is looked at once, and rules stay text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class SavedTable:
    """One table.

    ``chains`` has the rules of each chain (``-A INPUT -j DROP``) in their order, chains in the order of the text; a
    chain without rules has an empty list. ``policies`` has the built-in chains with what becomes of a packet that no
    rule decides about (``ACCEPT``); all other chains are somebody's.
    """

    chains: dict[str, list[str]] = field(default_factory=dict)
    policies: dict[str, str] = field(default_factory=dict)

    def rules(self) -> Iterator[str]:
        """Return the rules of all chains."""
        for rules in self.chains.values():
            yield from rules


#: Tables by name.
Saved = Mapping[str, SavedTable]


def parse(text: str) -> Saved:
    """Read the output of ``iptables-save`` for one family."""
    tables: dict[str, SavedTable] = {}
    table = SavedTable()  # what comes before the first table belongs to none
    for line in text.split("\n"):
        if line.startswith("-A "):
            table.chains.setdefault(source_of(line), []).append(line)
        elif line.startswith(":"):
            name, policy, *_ = [*line[1:].split(" "), "-"]
            table.chains.setdefault(name, [])
            if policy != "-":
                table.policies[name] = policy
        elif line.startswith("*"):
            table = tables.setdefault(line[1:].strip(), SavedTable())
    return tables


def source_of(rule: str) -> str:
    """Return the chain that a rule is in."""
    return rule.split(" ", 2)[1]


def target_of(rule: str) -> str:
    """Return the last word of a rule: the chain that it leads to, if it is a plain jump."""
    return rule.rsplit(" ", 1)[1]
