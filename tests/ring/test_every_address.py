"""Every kind of address with real packets, as ``tests.ring.answers`` has it; one agent serves all of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.agent import Agent, running_agent
from lab.manifests import TARGET_PORTS
from lab.topology import FAMILIES, Topology, servers, topology
from tests.ring.answers import ROWS, Row, check, problems, request, write_services
from tests.ring.silence import Outcome, Request, outcomes


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with topology() as net, servers(net, ("pod2", "pod4"), TARGET_PORTS):
        yield net


@pytest.fixture(scope="module", autouse=True)
def agent(net: Topology, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    directory = tmp_path_factory.mktemp("manifests")
    write_services(directory)
    with running_agent(net, directory) as agent:
        yield agent


@pytest.fixture(scope="module")
def refused_late(net: Topology, agent: Agent) -> dict[Request, Outcome]:
    """What becomes of the node's own requests over IPv6 that are to be refused: all at once, as each takes a second."""
    requests = [request(row, "node", "IPv6") for row in ROWS if row.cells["node"] == "refused"]
    return outcomes(net, requests, 2.5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_who_answers_and_which_source_it_sees(
    net: Topology, row: Row, family: str, refused_late: dict[Request, Outcome]
) -> None:
    found = problems(net, row, family, refused_late=refused_late)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", ["UDP", "SCTP"])
@pytest.mark.parametrize("kind", ["NodePort", "LoadBalancer", "ExternalIP"])
def test_other_protocols_take_the_same_way(net: Topology, kind: str, protocol: str, family: str) -> None:
    for row in ROWS:
        if row.kind == kind and row.endpoints == "here+there":
            for column in ("pod", "outside"):
                check(net, row, column, family, protocol)
