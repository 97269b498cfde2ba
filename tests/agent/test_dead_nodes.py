"""Which nodes count as dead, and how often the API is asked."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from ipvs_proxy.agent.sync.dead_nodes import ANSWER_AGE, ASKED_AT_ONCE, DeadNodes, is_dead
from ipvs_proxy.kube.objects import Node, NodeSpec, ObjectMeta, Taint


def node(*taints: str) -> Node:
    return Node(ObjectMeta("n"), NodeSpec(taints=[Taint(taint) for taint in taints]))


@pytest.mark.parametrize(
    ("found", "dead"),
    [
        (None, True),
        (node(), False),
        (node("node.kubernetes.io/not-ready"), False),
        (node("node.kubernetes.io/unschedulable", "node.kubernetes.io/unreachable"), True),
        (node("node.kubernetes.io/out-of-service"), True),
    ],
)
def test_a_node_is_dead_if_it_is_gone_or_lost(found: Node | None, dead: bool) -> None:
    assert is_dead(found) == dead


class Api:
    def __init__(self, **nodes: Node | Exception | None) -> None:
        self.nodes = nodes
        self.asked: list[str] = []
        self.now = 0.0

    async def get(self, name: str) -> Node | None:
        self.asked.append(name)
        found = self.nodes.get(name)
        if isinstance(found, Exception):
            raise found
        return found


async def test_an_answer_counts_for_a_while() -> None:
    api = Api(a=node(), b=None)
    dead = DeadNodes(api.get, clock=lambda: api.now)
    for _ in range(3):
        assert await dead.among({"a", "b"}) == {"b"}
    assert api.asked == ["a", "b"]
    api.now = ANSWER_AGE
    api.nodes = {"a": None, "b": node()}
    assert await dead.among({"a", "b"}) == {"a"}
    assert api.asked == ["a", "b", "a", "b"]


async def test_a_node_that_cannot_be_read_is_not_dead() -> None:
    api = Api(a=OSError("no route"))
    assert await DeadNodes(api.get, clock=lambda: 0.0).among({"a"}) == set()


async def test_a_round_asks_about_some_nodes_only() -> None:
    api = Api()
    names = {f"node-{number:03}" for number in range(100)}
    dead = DeadNodes(api.get, clock=lambda: 0.0)
    assert len(await dead.among(names)) == ASKED_AT_ONCE
    assert len(await dead.among(names)) == 2 * ASKED_AT_ONCE


async def test_a_name_of_any_length_is_quoted_in_part() -> None:
    name = "n\n" * 100_000
    with capture_logs() as logs:
        assert await DeadNodes(Api(**{name: OSError(name)}).get, clock=lambda: 0.0).among({name}) == set()
    [line] = logs
    assert len(line["node"] + line["error"]) < 500
    assert (line["node"] + line["error"]).isprintable()
