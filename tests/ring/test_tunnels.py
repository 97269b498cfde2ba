"""The packet table through the tunnels of network plugins: who answers when the other node's pods are behind one.

A tunnel wraps a packet into another that this node sends, and that starts its own way through the rules and IPVS. What
the inner packet carries, such as a mark, the outer one inherits.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.agent import Agent, running_agent
from lab.manifests import TARGET_PORTS
from lab.topology import FAMILIES, TUNNELS, Topology, servers, topology
from tests.ring import answers

#: What does not go to the other node does not meet a tunnel.
ROWS = [row for row in answers.ROWS if row.endpoints != "none"]
EXTERNALLY_LOCAL = [row for row in ROWS if row.policy == "Local" and row.kind != "ClusterIP"]


@pytest.fixture(scope="module", params=TUNNELS)
def net(request: pytest.FixtureRequest) -> Iterator[Topology]:
    with topology(request.param) as net, servers(net, ("pod2", "pod4"), TARGET_PORTS):
        yield net


@pytest.fixture(scope="module", autouse=True)
def agent(net: Topology, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    directory = tmp_path_factory.mktemp("manifests")
    answers.write_services(directory)
    with running_agent(net, directory) as agent:
        yield agent


@pytest.mark.parametrize("family", FAMILIES)
def test_who_answers_through_a_tunnel(net: Topology, family: str) -> None:
    problems = [problem for row in ROWS for problem in answers.problems(net, row, family)]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("protocol", ["UDP", "SCTP"])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_protocols_take_the_tunnel_too(net: Topology, family: str, protocol: str) -> None:
    problems = [
        problem
        for row in EXTERNALLY_LOCAL
        for problem in answers.problems(net, row, family, protocol, columns=("pod", "node", "remote pod"))
    ]
    assert not problems, "\n".join(problems)
