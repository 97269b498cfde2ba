"""Finds out whether other nodes are dead, by asking the API about the few that matter.

Nodes other than our own are not watched: their updates would cost more than all Services together. Only a node whose
endpoint has stopped serving while connections to it stay open is asked about, and not again for some seconds.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable

import structlog

from ipvs_proxy.kube.objects import Node
from ipvs_proxy.kube.texts import quote

log = structlog.get_logger(__name__)

#: Seconds for which an answer counts.
ANSWER_AGE = 10.0
#: Nodes that are asked about in one round.
ASKED_AT_ONCE = 16

#: Taints of a node that the control plane has lost, or that an administrator has declared out of service (Kubernetes
#: documentation, "Taints and Tolerations" and "Non-graceful node shutdown handling").
_DEAD = frozenset(("node.kubernetes.io/unreachable", "node.kubernetes.io/out-of-service"))


class DeadNodes:
    """Remembers for a while what the API said about nodes."""

    def __init__(
        self, get_node: Callable[[str], Awaitable[Node | None]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take what returns a Node by its name, or ``None`` if there is none; it may raise any exception."""
        self._get_node = get_node
        self._clock = clock
        self._answers: dict[str, tuple[float, bool]] = {}

    async def among(self, names: Iterable[str]) -> set[str]:
        """Return those of some nodes that are dead. One that cannot be asked about is not."""
        now = self._clock()
        self._answers = {name: answer for name, answer in self._answers.items() if now - answer[0] < ANSWER_AGE}
        wanted = set(names)
        for name in sorted(wanted.difference(self._answers))[:ASKED_AT_ONCE]:
            self._answers[name] = (now, await self._ask(name))
        return {name for name in wanted if self._answers.get(name, (now, False))[1]}

    async def _ask(self, name: str) -> bool:
        try:
            node = await self._get_node(name)
        except Exception as error:  # noqa: BLE001  whatever went wrong, nothing is known of the node
            log.warning("node_not_readable", node=quote(name), error=quote(str(error)) or type(error).__name__)
            return False
        return is_dead(node)


def is_dead(node: Node | None) -> bool:
    """Return whether a node is gone from the cluster, or lost."""
    return node is None or any(taint.key in _DEAD for taint in node.spec.taints or ())
