"""Which chains and jumps of a node are ours or kube-proxy's, and the text that takes them away.

Pure: text in, text out. What goes is told by the names of chains. A rule that leads to such a chain goes with it if it
is a jump as all proxies make them: in a built-in chain, with a comment of theirs, or with nothing but its target (some
versions of iptables lose comments). Any other rule that leads there is somebody else's: it stays, and so does the
chain, empty.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from ipvs_proxy.kernel.filter.iptables.render import (
    CHAINS,
    FILTER,
    FIREWALL,
    FORMER_CHAINS,
    FORWARD,
    MARK_MASQUERADE,
    NAT,
    POSTROUTING,
    SERVICES,
    Chain,
)

#: All jumps of kube-proxy, whatever its mode and version, and ours.
_COMMENT: Final = re.compile(r'--comment "(?:kubernetes|kube-proxy|ipvs-proxy) [^"]*" ')
_BARE_WORDS: Final = 4  # -A INPUT -j KUBE-FIREWALL
_OURS: Final = frozenset((*CHAINS, *FORMER_CHAINS))
#: Those of them that kube-proxy's iptables mode has, too.
_SHARED: Final = frozenset(
    {
        *(Chain(NAT, name) for name in (SERVICES, POSTROUTING, MARK_MASQUERADE)),
        *(Chain(FILTER, name) for name in (FORWARD, FIREWALL)),
    }
)

Choice = Callable[[Chain], bool]


class Removal(NamedTuple):
    """What is to go from one family's rules, and how.

    ``text`` is the input of ``iptables-restore --noflush``, empty if there is nothing to write. ``kept`` says of each
    chain that has to stay which rule leads to it.
    """

    text: str
    chains: int
    jumps: int
    kept: tuple[str, ...]


def is_ours(chain: Chain) -> bool:
    """Return whether a chain is one that this agent makes, or kube-proxy in its IPVS mode."""
    return chain in _OURS


def is_ours_beside_iptables_mode(chain: Chain) -> bool:
    """Return whether a chain is ours where kube-proxy's iptables mode is in use: what both have is its own then."""
    return chain in _OURS and chain not in _SHARED


def removal(saved: str, goes: Choice) -> Removal:
    """Return what takes the chains away that ``goes`` chooses, from the output of ``iptables-save``."""
    lines: list[str] = []
    kept: list[str] = []
    chains = jumps = 0
    for table, built_in, names, rules in _tables(saved):
        # In the order of the text, and quick to look up: iptables mode has tens of thousands of chains.
        going = dict.fromkeys(name for name in names if goes(Chain(table, name)))
        leading = [rule for rule in rules if _target(rule) in going and _source(rule) not in going]
        own = [rule for rule in leading if _is_jump(rule, built_in)]
        foreign = {_target(rule): rule for rule in leading if not _is_jump(rule, built_in)}
        full = {_source(rule) for rule in rules}
        emptied = [name for name in going if name not in foreign or name in full]
        kept += [
            f"{table} chain {name}, left empty: a rule of somebody else leads to it ({rule})"
            for name, rule in foreign.items()
        ]
        chains += len(going) - len(foreign)
        jumps += len(own)
        if emptied or own:
            lines.append(f"*{table}")
            lines += [f":{name} - [0:0]" for name in emptied]
            lines += ["-D" + rule.removeprefix("-A") for rule in own]
            lines += [f"-X {name}" for name in going if name not in foreign]
            lines.append("COMMIT")
    return Removal("\n".join(lines) + "\n" if lines else "", chains, jumps, tuple(kept))


def _tables(saved: str) -> list[tuple[str, set[str], list[str], list[str]]]:
    """Return of each table its name, its built-in chains, its other chains, and its rules."""
    tables: list[tuple[str, set[str], list[str], list[str]]] = []
    for line in saved.split("\n"):
        if line.startswith("*"):
            tables.append((line[1:], set(), [], []))
        elif tables and line.startswith(":"):
            name, policy, *_ = [*line[1:].split(" "), "-"]
            if policy == "-":
                tables[-1][2].append(name)
            else:
                tables[-1][1].add(name)
        elif tables and line.startswith("-A "):
            tables[-1][3].append(line)
    return tables


def _source(rule: str) -> str:
    return rule.split(" ", 2)[1]


def _target(rule: str) -> str:
    return rule.rsplit(" ", 1)[1]


def _is_jump(rule: str, built_in: set[str]) -> bool:
    return _source(rule) in built_in and (len(rule.split(" ")) == _BARE_WORDS or bool(_COMMENT.search(rule)))
