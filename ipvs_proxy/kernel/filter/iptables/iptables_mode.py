"""What kube-proxy leaves behind of its iptables mode, and the text that takes it away. Pure.

In iptables mode every Service has chains of its own, and kube-proxy itself leaves them when its mode changes to IPVS.
Chains of the same name in both modes (KUBE-SERVICES of the nat table, say) are not touched here: our own write sets
them. The rules that led to what goes are deleted with it; a chain that a rule of somebody else leads to stays, empty.
The kubelet's own chains stay as they are.
"""

from __future__ import annotations

import re
from typing import Final

from ipvs_proxy.kernel.filter.iptables.chains import Chain
from ipvs_proxy.kernel.filter.iptables.saved import Saved, target_of

#: Chains that only iptables mode has, by table.
_CHAINS: Final = {
    "nat": re.compile(r"KUBE-(NODEPORTS|PROXY-CANARY|(SVC|SVL|EXT|FW|SEP|XLB)-[A-Z0-9]{16})"),
    "filter": re.compile(r"KUBE-(SERVICES|EXTERNAL-SERVICES|NODEPORTS|PROXY-CANARY)"),
    "mangle": re.compile(r"KUBE-PROXY-CANARY"),
}
#: Jumps of iptables mode to a chain that IPVS mode has too, which IPVS mode makes in other places.
_JUMP: Final = '--comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL'


def chains_of(saved: Saved) -> dict[str, list[str]]:
    """Return the chains of iptables mode by table, from all rules of a family."""
    found = {
        name: [chain for chain in table.chains if is_of_iptables_mode(Chain(name, chain))]
        for name, table in saved.items()
    }
    return {name: chains for name, chains in found.items() if chains}


def is_of_iptables_mode(chain: Chain) -> bool:
    """Return whether a chain is one that only iptables mode has."""
    return chain.table in _CHAINS and bool(_CHAINS[chain.table].fullmatch(chain.name))


def takedown(saved: Saved) -> str:
    """Return the input of ``iptables-restore --noflush`` that takes iptables mode down; empty if there is nothing."""
    chains = chains_of(saved)
    lines: list[str] = []
    for table, found in saved.items():
        gone = frozenset(chains.get(table, ()))
        jumps = [
            rule
            for chain, rules in found.chains.items()
            for rule in rules
            if rule.endswith(_JUMP) or (chain in found.policies and target_of(rule) in gone)
        ]
        foreign = {
            target_of(rule)
            for chain, rules in found.chains.items()
            if chain not in found.policies and chain not in gone and not chain.startswith("KUBE-")
            for rule in rules
        }
        if not gone and not jumps:
            continue
        lines.append(f"*{table}")
        lines += [f":{name} - [0:0]" for name in chains.get(table, ())]
        lines += ["-D" + jump.removeprefix("-A") for jump in jumps]
        lines += [f"-X {name}" for name in chains.get(table, ()) if name not in foreign]
        lines.append("COMMIT")
    return "\n".join(lines) + "\n" if lines else ""
