"""Which variant of iptables a node uses, nf_tables or legacy: only the decision, from what was seen of both.

The default of an image says nothing about the node that it runs on, so what is in the kernel decides, as in the
wrappers of kube-proxy's image: first the kubelet's hint; then, on nodes whose kubelet leaves none, where the rules are.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ipvs_proxy.kernel.filter.iptables.saved import Saved

#: Chains of the mangle table by which the kubelet shows where it keeps rules.
_HINTS: Final = ("KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY")


class Signs(NamedTuple):
    """What was seen of one variant, in both families: whether the kubelet's hint is there, and the number of rules."""

    hint: bool = False
    rules: int = 0

    def __add__(self, other: object) -> Signs:
        """Put together what was seen in two families."""
        if not isinstance(other, Signs):
            return NotImplemented
        return Signs(self.hint or other.hint, self.rules + other.rules)


def signs_of(saved: Saved) -> Signs:
    """Return what the rules of one family show."""
    hint = any(chain in table.chains for table in saved.values() for chain in _HINTS)
    return Signs(hint, sum(len(rules) for table in saved.values() for rules in table.chains.values()))


def choose_backend(default: str, here: Signs, other: str, there: Signs) -> tuple[str, str]:
    """Return the variant to use, and why. ``here`` is what was seen of the default one, ``there`` of the other one."""
    if here.hint:
        return default, "the kubelet's hint is there"
    if there.hint:
        return other, f"the kubelet keeps its rules in {other}, not in the default {default}"
    if there.rules > here.rules:
        return other, (
            f"the kubelet left no hint, and there are more rules in {other} ({there.rules}) "
            f"than in the default {default} ({here.rules})"
        )
    return default, "it is the node's default"
