"""UDP that is scheduled packet by packet: one socket's packets go to all endpoints, and whatever they answer is lost.

The kernel does not translate answers to such packets ("no reply is expected", ``ip_vs_nfct.c``): they come from the
endpoint's own address. That suits logs and not DNS. A client that is masqueraded hears nothing at all and loses packets
besides, as the connection tracker drops those that leave by another link than the one before (``nf_nat_oif_changed``).
None of that depends on ``net.ipv4.vs.conntrack`` or ``snat_reroute`` in a way that would help.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from lab import manifests
from lab.agent import Agent, running_agent
from lab.manifests import PORTS, TARGET_PORTS
from lab.topology import ADDRESSES, FAMILIES, Topology, topology
from tests.ring.scheduled import service, slices, vips_of
from tests.ring.silence import silence

PODS = ("pod1", "pod2")
NUMBER, PACKETS = 90, 8
#: Addresses of a load balancer whose clients keep their own.
KEEPING = {"IPv4": "203.0.112.90", "IPv6": "fd00:1b::90"}


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with topology() as net:
        yield net


@pytest.fixture(scope="module")
def agent(net: Topology, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    directory = tmp_path_factory.mktemp("manifests")
    manifests.write(directory, "node", manifests.node())
    found = service("logs", NUMBER, {"one-packet": "true"}, ("TCP", "UDP"))
    found["spec"] |= {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32_090}
    found["status"]["loadBalancer"]["ingress"] = [{"ip": address} for address in KEEPING.values()]
    manifests.write(directory, "logs", found, *slices("logs", *PODS, protocols=("TCP", "UDP")))
    with running_agent(net, directory) as agent:
        yield agent


@pytest.fixture(scope="module")
def arrived(net: Topology) -> Iterator[list[tuple[str, str]]]:
    """The packets that have come to endpoints, which answer each of them: the pod, and the source that it saw."""
    found: list[tuple[str, str]] = []

    def answer(one: socket.socket, pod: str) -> None:
        with suppress(OSError):
            while True:
                _, peer = one.recvfrom(64)
                if peer is None:  # shut down
                    return
                found.append((pod, peer[0]))
                one.sendto(pod.encode(), peer)

    with ExitStack() as stack:
        for pod in PODS:
            for family, address in ADDRESSES[pod].items():
                with net.inside(pod):
                    one = stack.enter_context(udp(family))
                one.bind((address, TARGET_PORTS["UDP"]))
                stack.callback(wake, one)
                threading.Thread(target=answer, args=(one, pod), daemon=True).start()
        yield found


def wake(one: socket.socket) -> None:
    """End the wait for a packet."""
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


def udp(family: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if family == "IPv6" else socket.AF_INET, socket.SOCK_DGRAM)


def send(net: Topology, place: str, address: str, family: str, patience: float | None = None) -> Counter[str]:
    """Send packets from one socket, each after the answer to the one before; count the answers by their source.

    Without ``patience`` in seconds, an answer is waited for as long as tells that there is none.
    """
    answers: Counter[str] = Counter()
    with net.inside(place):
        client = udp(family)
    with client:
        client.settimeout(patience or silence(net))
        for _ in range(PACKETS):
            client.sendto(b"line", (address, PORTS["UDP"]))
            try:
                answers[client.recvfrom(64)[1][0]] += 1
            except TimeoutError:
                answers[""] += 1
    return answers


@pytest.mark.parametrize("family", FAMILIES)
def test_only_udp_is_scheduled_by_packets(net: Topology, agent: Agent, family: str) -> None:
    shown = net.run("node", "ipvsadm", "-Sn")
    vip = f"[{vips_of(NUMBER)[family]}]" if family == "IPv6" else vips_of(NUMBER)[family]
    assert f"-A -u {vip}:53 -s rr -o\n" in shown
    assert f"-A -t {vip}:80 -s rr\n" in shown
    told = [(event["where"], event["reason"]) for event in agent.named("served_otherwise")]
    assert told == [("service ring/logs port tcp TCP annotation ipvs-proxy.io/one-packet", "one-packet-is-for-udp")]


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", ["pod", "outside"])
def test_a_client_that_keeps_its_address_reaches_all_endpoints_and_they_answer_as_themselves(
    net: Topology, arrived: list[tuple[str, str]], place: str, family: str
) -> None:
    client, address = ("pod3", vips_of(NUMBER)[family]) if place == "pod" else ("client", KEEPING[family])
    arrived.clear()
    answers = send(net, client, address, family, patience=10.0)
    assert Counter(arrived) == {(pod, ADDRESSES[client][family]): PACKETS // 2 for pod in PODS}
    assert answers == {ADDRESSES[pod][family]: PACKETS // 2 for pod in PODS}


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_client_that_is_masqueraded_loses_packets_and_hears_nothing(
    net: Topology, arrived: list[tuple[str, str]], family: str
) -> None:
    arrived.clear()
    answers = send(net, "client", vips_of(NUMBER)[family], family)
    assert answers == {"": PACKETS}
    assert {source for _, source in arrived} == {ADDRESSES["node"][family]}
    assert len(arrived) < PACKETS
