"""Which of the two worlds of rules a node uses, nf_tables or legacy: the decision alone, from what was seen in them.

The default of an image says nothing about the node it runs on, so what is in the kernel decides, as with the wrappers
that kube-proxy's image has: first the kubelet's hint, then, on nodes whose kubelet leaves none, where the rules are.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ipvs_proxy.kernel.filter.iptables.saved import Saved

#: Chains of the mangle table by which the kubelet shows where it keeps rules.
_HINTS: Final = ("KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY")


class World(NamedTuple):
    """What was seen in one world, in both families: whether the kubelet's hint is there, and the number of rules."""

    hint: bool = False
    rules: int = 0

    def __add__(self, other: object) -> World:
        """Put together what was seen in two families."""
        if not isinstance(other, World):
            return NotImplemented
        return World(self.hint or other.hint, self.rules + other.rules)


def look(saved: Saved) -> World:
    """Return what the rules of one family show."""
    hint = any(chain in table.chains for table in saved.values() for chain in _HINTS)
    return World(hint, sum(len(rules) for table in saved.values() for rules in table.chains.values()))


def choose_backend(default: str, here: World, other: str, there: World) -> tuple[str, str]:
    """Return the world to use, and why. ``here`` is what was seen in the default one, ``there`` in the other one."""
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
