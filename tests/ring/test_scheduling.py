"""How the kernel shares out connections as Services ask for it by annotation: real packets, counted by ``ipvsadm``."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest

from lab import manifests
from lab.agent import Agent, eventually, running_agent
from lab.topology import ADDRESSES, FAMILIES, Topology, topology
from lab.witness import weights
from tests.ring.scheduled import (
    FIRST_PORT,
    client_address,
    connections,
    entries,
    give_client_addresses,
    listening,
    saved,
    service,
    shares,
    slices,
    vips_of,
)

CONNECTIONS = 1_000
PODS = ("pod1", "pod2", "pod3")
SLOW = "pod1"
OURS, CILIUMS = "ipvs-proxy.io/weight", "service.cilium.io/weight"


class Case(NamedTuple):
    """What a Service and the slices of its pods are annotated with, its scheduler, and who gets how many connections."""

    annotations: dict[str, str]
    scheduler: str
    shares: dict[str, int]
    slices: Mapping[str, dict[str, str]] = MappingProxyType({})


CASES = {
    "in turns": Case({"scheduler": "rr"}, "rr", {"pod1": 500, "pod2": 500}),
    "by weights of zones": Case(
        {"scheduler": "wrr", "weights": "zone=zone-b:3, *:1"}, "wrr", {"pod1": 250, "pod2": 750}
    ),
    "by weights of EndpointSlices, without a scheduler": Case(
        {}, "wrr", {"pod1": 10, "pod2": 90}, {"pod1": {OURS: "10", CILIUMS: "90"}, "pod2": {CILIUMS: "90"}}
    ),
    "by both": Case(
        {"weights": "zone=zone-a:2"}, "wrr", {"pod1": 40, "pod2": 60}, {"pod2": {OURS: "3"}}
    ),
    "where it is": Case({"weights": "node=other:0, local:7", "scheduler": "lc"}, "wlc", {"pod1": 50, "pod2": 50}),
    "by least connections": Case({"scheduler": "lc"}, "lc", {"pod1": 50, "pod2": 50}),
}  # fmt: skip
NUMBERS = {name: number for number, name in enumerate([*CASES, "slow", "sh", "mh", "mh-port"], 10)}
#: Services whose clients are to stay with one endpoint; ``mh`` looks at the client's port unless it is told otherwise.
STEADY = {
    "sh": {"scheduler": "sh", "drain-timeout": "0s"},
    "mh": {"scheduler": "mh", "scheduler-flags": "", "drain-timeout": "0s"},
    "mh-port": {"scheduler": "mh", "drain-timeout": "0s"},
}
#: The port of endpoints that answer and close, but for a slow one.
ANSWERING = 8081


def write_services(directory: Path) -> None:
    for node in ("node", "other"):
        manifests.write(directory, node, manifests.node(node))
    for name, case in CASES.items():
        number = NUMBERS[name]
        pieces = slices(f"case-{number}", *case.shares, annotations=case.slices)
        manifests.write(directory, f"case-{number}", service(f"case-{number}", number, case.annotations), *pieces)
    pieces = slices("slow", "pod1", "pod2")
    for piece in pieces:
        piece["ports"][0]["port"] = ANSWERING
    manifests.write(directory, "slow", service("slow", NUMBERS["slow"], {"scheduler": "lc"}), *pieces)
    write_steady(directory, *PODS)


def write_steady(directory: Path, *pods: str) -> None:
    for name, wishes in STEADY.items():
        manifests.write(directory, name, service(name, NUMBERS[name], wishes), *slices(name, *pods))


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with topology() as net, listening(net, *PODS):
        give_client_addresses(net)
        yield net


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("manifests")
    write_services(directory)
    return directory


@pytest.fixture(scope="module")
def agent(net: Topology, directory: Path) -> Iterator[Agent]:
    with running_agent(net, directory) as agent:
        yield agent


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CASES)
def test_connections_are_shared_out_as_the_service_asks(net: Topology, name: str, family: str) -> None:
    case, vip = CASES[name], vips_of(NUMBERS[name])[family]
    assert f"-s {case.scheduler}" in saved(net, vip)
    sources = [
        (client_address(family, NUMBERS[name]), FIRST_PORT + number) for number in range(sum(case.shares.values()))
    ]
    with connections(net, vip, sources):
        pass
    assert shares(net, vip) == case.shares


@contextmanager
def answering(net: Topology, family: str) -> Iterator[None]:
    """Have both pods answer with their name; the slow one is never done with a connection."""
    held: list[socket.socket] = []

    def answer(listening: socket.socket, pod: str) -> None:
        with suppress(OSError):
            while True:
                accepted = listening.accept()[0]
                accepted.sendall(pod.encode())
                if pod == SLOW:
                    held.append(accepted)
                else:
                    accepted.close()

    with listening(net, "pod1", "pod2", port=ANSWERING) as found:
        for (pod, of_family), one in found.items():
            if of_family == family:
                threading.Thread(target=answer, args=(one, pod), daemon=True).start()
        yield
        for one in found.values():
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for one in held:
            one.close()


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("family", FAMILIES)
def test_least_connection_spares_an_endpoint_that_takes_long(net: Topology, family: str) -> None:
    vip = vips_of(NUMBERS["slow"])[family]
    answered = Counter[str]()
    with answering(net, family), ExitStack() as stack:
        for number in range(CONNECTIONS):
            with connections(net, vip, [(client_address(family, 9), FIRST_PORT + number)]) as (client,):
                pod = client.recv(16).decode()
                answered[pod] += 1
                if pod == SLOW:
                    stack.enter_context(client.dup())
                else:
                    assert client.recv(16) == b"", "the endpoint is done"
    # One that is done counts as the 256th part of one that is not (ip_vs_lc.c), for as long as the kernel keeps it.
    assert answered.total() == CONNECTIONS
    assert answered[SLOW] in range(2, 10), answered


def choices(net: Topology, name: str, family: str, ports: range) -> dict[tuple[str, int], str]:
    """Have each of 50 clients open connections from these ports; return which endpoint each source got."""
    sources = [(client_address(family, client), port) for client in range(100, 150) for port in ports]
    vip = vips_of(NUMBERS[name])[family]
    with connections(net, vip, sources):
        pass
    found = {(entry.address, entry.port): entry.place for entry in entries(net, vip)}
    return {source: found[source] for source in sources}


def test_a_client_stays_with_its_endpoint_on_every_node(net: Topology, directory: Path, agent: Agent) -> None:
    """On nodes to which the endpoints came in another order only with mh, as sh numbers them in that order."""
    assert agent.named("started")
    cases = [(name, family) for name in STEADY for family in FAMILIES]
    few, many = range(FIRST_PORT, FIRST_PORT + 4), range(FIRST_PORT, FIRST_PORT + CONNECTIONS // 50)
    first = {case: choices(net, *case, few if case[0] == "mh-port" else many) for case in cases}
    for (name, family), found in first.items():
        assert set(found.values()) == set(PODS), "nobody is left out"
        most = max(len({place for (other, _), place in found.items() if other == client}) for client, _ in found)
        assert most == (3 if name == "mh-port" else 1), (name, family, "endpoints of one client")
    with topology() as other, listening(other, *PODS):
        give_client_addresses(other)
        with running_agent(other, directory, "--hostname-override", "other"):
            for case in cases:
                found = choices(other, *case, few[:2])
                assert found.items() <= first[case].items(), case
            for pods in (PODS[1:], PODS):
                write_steady(directory, *pods)
                eventually(lambda pods=pods: all(have(other, name, pods) for name in STEADY))
            for name, family in cases:
                found = choices(other, name, family, few[2:])
                same = found.items() & first[name, family].items()
                assert (len(same) > len(found) * 0.95) is (name != "sh"), (name, family, len(same))


def have(net: Topology, name: str, pods: Sequence[str]) -> bool:
    """Return whether a Service has just these pods as real servers."""
    return all(
        weights(net, vips_of(NUMBERS[name])[family], 80) == {ADDRESSES[pod][family]: 1 for pod in pods}
        for family in FAMILIES
    )
