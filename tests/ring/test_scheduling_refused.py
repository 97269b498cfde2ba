"""Wishes about scheduling that cannot be granted: the Service is served as the agent's settings say, and told so."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import manifests
from lab.agent import Agent, eventually, running_agent
from lab.topology import ADDRESSES, FAMILIES, Topology, topology
from tests.ring.scheduled import answering, saved, service, slices, vips_of
from tests.support.cluster import Cluster, kubeconfig, listen, serving

API, PORT = ADDRESSES["peer"]["IPv4"], 6443
PODS = ("pod1", "pod2")
WEIGHT, CILIUMS = "ipvs-proxy.io/weight", "service.cilium.io/weight"
#: An agent that knows one more scheduler than the kernel has, as one that is newer than its kernel.
NEWER = """
from ipvs_proxy.plan import annotations
annotations.SCHEDULERS |= {"newest"}
from ipvs_proxy.cli import main
main()
"""

#: (annotations of the Service, those of pod1's EndpointSlices, the reason that its owner is told)
WISHES: tuple[tuple[dict[str, str], dict[str, str], str], ...] = (
    ({"scheduler": "newest"}, {}, "no-such-scheduler"),
    ({"scheduler": "rr,lc"}, {}, "invalid-scheduler"),
    ({"scheduler-flags": "fast"}, {}, "invalid-scheduler-flags"),
    ({"scheduler-flags": "sh-port"}, {}, "flags-of-another-scheduler"),
    ({"one-packet": "yes"}, {}, "invalid-one-packet"),
    ({"max-connections": "many"}, {}, "invalid-connection-limit"),
    ({"min-connections": "5"}, {}, "invalid-connection-limit"),
    ({"weights": "*:1, *:2"}, {}, "invalid-weights"),
    ({"slow-start": "2h"}, {}, "invalid-slow-start"),
    ({}, {WEIGHT: "65536"}, "invalid-endpoint-weight"),
    ({}, {CILIUMS: "-1"}, "invalid-endpoint-weight"),
)
#: What each of them gets.
USUAL = "-A -s rr\n-a -r {}:8080 -m -w 1\n-a -r {}:8080 -m -w 1"


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with topology() as net, answering(net, *PODS):
        yield net


@pytest.fixture(scope="module")
def cluster(net: Topology) -> Iterator[Cluster]:
    cluster = Cluster()
    cluster.apply(manifests.node())
    for number, (wishes, of_slices, _) in enumerate(WISHES, 1):
        pieces = slices(f"web-{number}", *PODS, annotations={"pod1": of_slices})
        cluster.apply(service(f"web-{number}", number, wishes), *pieces)
    with net.inside("peer"):
        listening = listen(API, PORT)
    with serving(cluster, listening):
        yield cluster


@pytest.fixture(scope="module")
def agent(net: Topology, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    path: Path = kubeconfig(tmp_path_factory.mktemp("kubeconfig"), API, PORT)
    with running_agent(net, path, program=(sys.executable, "-c", NEWER)) as agent:
        assert cluster.watched_from
        yield agent


def told(cluster: Cluster) -> Counter[tuple[str, str]]:
    """Return the Service and the reason of each event that says it is served otherwise."""
    found = [event for event in cluster.events if event.get("reason") == "ServedOtherwise"]
    return Counter((event["regarding"]["name"], reason_in(event["note"])) for event in found)


def reason_in(note: str) -> str:
    return note.partition(";")[0].rpartition(" ")[2]


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("number", range(1, len(WISHES) + 1))
def test_what_cannot_be_granted_is_served_with_the_agents_settings(net: Topology, number: int, family: str) -> None:
    vip = vips_of(number)[family]
    brackets = "[{}]" if family == "IPv6" else "{}"
    assert saved(net, vip) == USUAL.format(*(brackets.format(ADDRESSES[pod][family]) for pod in PODS))
    assert {net.ask("client", vip, 80)[0] for _ in range(4)} == set(PODS)


@pytest.mark.usefixtures("agent")
def test_the_owner_is_told_once(cluster: Cluster) -> None:
    # Of an EndpointSlice of either family.
    wanted = Counter(
        {
            (f"web-{number}", reason): len(FAMILIES) if of_slices else 1
            for number, (_, of_slices, reason) in enumerate(WISHES, 1)
        }
    )
    eventually(lambda: told(cluster) == wanted)
    # Planned again: it is still so, and no news.
    for number, (wishes, _, _) in enumerate(WISHES[:2], 1):
        found = service(f"web-{number}", number, wishes)
        found["spec"]["externalIPs"] = ["203.0.114.9"]
        cluster.apply(found)
    other = service("other", 99, {"scheduler": "newest"})
    cluster.apply(other, *slices("other", *PODS))
    eventually(lambda: told(cluster)["other", "no-such-scheduler"])
    assert told(cluster) - wanted == {("other", "no-such-scheduler"): 1}


def test_the_kernel_is_asked_once_and_the_log_says_what_to_do(agent: Agent) -> None:
    found = [(event["scheduler"], event["remedy"]) for event in agent.named("scheduler_missing")]
    assert found == [("newest", "load the module ip_vs_newest")]
