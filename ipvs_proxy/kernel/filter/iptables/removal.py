"""Which chains and jumps of a node are ours or kube-proxy's, and the text that takes them away.

Pure: rules in, text out. Chains are chosen by their names. A rule that leads to such a chain goes with it if it is a
jump as all proxies make them: in a built-in chain, with a comment of theirs, or with nothing but its target (some
versions of iptables lose comments). Any other rule that leads there is somebody else's: it stays, and so does the
chain, empty.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from ipvs_proxy.kernel.filter.iptables.chains import (
    BESIDE,
    CHAINS,
    FILTER,
    FIREWALL,
    FORMER_CHAINS,
    FORWARD,
    MARK_MASQUERADE,
    NAT,
    POSTROUTING,
    SERVICES,
    SERVICES_BESIDE,
    Chain,
)
from ipvs_proxy.kernel.filter.iptables.saved import Saved, source_of, target_of

#: All jumps of kube-proxy, whatever its mode and version, and ours.
_COMMENT: Final = re.compile(r'--comment "(?:kubernetes|kube-proxy|ipvs-proxy) [^"]*" ')
_BARE_WORDS: Final = 4  # -A INPUT -j KUBE-FIREWALL
_OURS: Final = frozenset((*CHAINS, *BESIDE.chains, *FORMER_CHAINS))
#: Those of them that kube-proxy's iptables mode has, too.
_SHARED: Final = frozenset(
    {
        *(Chain(NAT, name) for name in (SERVICES, POSTROUTING, MARK_MASQUERADE)),
        *(Chain(FILTER, name) for name in (FORWARD, FIREWALL)),
    }
)

Choice = Callable[[Chain], bool]


class Removal(NamedTuple):
    """What is to be removed from one family's rules, and how.

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


def is_of_ipvs_mode(chain: Chain) -> bool:
    """Return whether a chain is one that only kube-proxy's IPVS mode has, and this agent where it has taken over."""
    return is_ours_beside_iptables_mode(chain) and chain.name.startswith("KUBE-")


def are_beside_kube_proxy(saved: Saved) -> bool:
    """Return whether the rules of a family have ours as they are beside a kube-proxy in another mode."""
    return NAT in saved and SERVICES_BESIDE in saved[NAT].chains


def removal(saved: Saved, goes: Choice) -> Removal:
    """Return what takes the chains away that ``goes`` chooses, from all rules of a family."""
    lines: list[str] = []
    kept: list[str] = []
    chains = jumps = 0
    for table, found in saved.items():
        # In the order of the text, and quick to look up: iptables mode has tens of thousands of chains.
        names = (name for name in found.chains if name not in found.policies)
        going = dict.fromkeys(name for name in names if goes(Chain(table, name)))
        leading = [rule for rule in found.rules() if target_of(rule) in going and source_of(rule) not in going]
        own = [rule for rule in leading if _is_jump(rule, found.policies)]
        foreign = {target_of(rule): rule for rule in leading if not _is_jump(rule, found.policies)}
        emptied = [name for name in going if name not in foreign or found.chains[name]]
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


def _is_jump(rule: str, built_in: Collection[str]) -> bool:
    return source_of(rule) in built_in and (len(rule.split(" ")) == _BARE_WORDS or bool(_COMMENT.search(rule)))
