"""Endpoints that get no new connections, by weight 0 or by a limit, and go on with those that they have."""

from __future__ import annotations

import json
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lab import manifests
from lab.agent import Agent, eventually, running_agent
from lab.manifests import PORTS, TARGET_PORTS
from lab.topology import ADDRESSES, FAMILIES, Topology, exchange, servers, topology
from lab.witness import weights
from tests.ring.scheduled import (
    FIRST_PORT,
    client_address,
    connections,
    entries,
    give_client_addresses,
    service,
    slices,
    vips_of,
)
from tests.ring.silence import silence

PODS = ("pod1", "pod2")
MAINTAINED, LIMITED, STAGED = 60, 61, 62
#: Seconds after which a drain would cut connections, and after which the kernel forgets those of UDP.
DEADLINE, UDP_TIMEOUT = 1, 2


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with topology() as net, servers(net, PODS, {"TCP": TARGET_PORTS["TCP"], "UDP": TARGET_PORTS["UDP"]}):
        give_client_addresses(net)
        yield net


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("manifests")
    manifests.write(directory, "node", manifests.node())
    set_weights(directory, "")
    limits = {"max-connections": "4", "weights": "zone=zone-b:3"}
    manifests.write(directory, "limited", service("limited", LIMITED, limits), *slices("limited", *PODS))
    limits = {"max-connections": "4", "min-connections": "2"}
    manifests.write(
        directory, "staged", service("staged", STAGED, limits, ("UDP",)), *slices("staged", "pod1", protocols=("UDP",))
    )
    return directory


@pytest.fixture(scope="module")
def agent(net: Topology, directory: Path) -> Iterator[Agent]:
    flags = ("--drain-timeout", f"{DEADLINE}s", "--ipvs-udp-timeout", f"{UDP_TIMEOUT}s")
    with running_agent(net, directory, *flags) as agent:
        yield agent


def set_weights(directory: Path, rules: str) -> None:
    wishes = {"weights": rules} if rules else {}
    manifests.write(directory, "web", service("web", MAINTAINED, wishes), *slices("web", *PODS))


def state(net: Topology) -> Any:
    with net.inside("node"), urllib.request.urlopen("http://127.0.0.1:10249/state") as response:
        return json.load(response)


def have(net: Topology, **wanted: int) -> bool:
    """Return whether pods have these weights in both families."""
    return all(
        weights(net, vips_of(MAINTAINED)[family], 80) == {ADDRESSES[pod][family]: wanted[pod] for pod in wanted}
        for family in FAMILIES
    )


def test_weight_0_is_maintenance_and_no_drain(net: Topology, directory: Path, agent: Agent) -> None:
    set_weights(directory, "")
    vips = vips_of(MAINTAINED)
    with ExitStack() as stack:
        kept = {}
        for family in FAMILIES:
            opened = [stack.enter_context(net.connect("client", vips[family], 80)) for _ in PODS]
            kept |= {(family, exchange(client)[0]): client for client in opened}
        assert len(kept) == 4
        set_weights(directory, "zone=zone-a:0")
        eventually(lambda: have(net, pod1=0, pod2=1))
        for vip in vips.values():
            assert {net.ask("client", vip, 80)[0] for _ in range(20)} == {"pod2"}
        # Everybody: new connections are refused, as those of a Service without endpoints.
        set_weights(directory, "*:0")
        eventually(lambda: have(net, pod1=0, pod2=0))
        for vip in vips.values():
            with pytest.raises(OSError):
                net.ask("client", vip, 80, timeout=silence(net))
        time.sleep(2 * DEADLINE)
        assert {key: exchange(client)[0] for key, client in kept.items()} == {key: key[1] for key in kept}
        assert have(net, pod1=0, pod2=0)
        assert (state(net)["draining"], agent.named("drained")) == (0, [])
        set_weights(directory, "zone=zone-a:2")
        eventually(lambda: have(net, pod1=2, pod2=1))
        for vip in vips.values():
            assert {net.ask("client", vip, 80)[0] for _ in range(6)} == set(PODS)
        assert {key: exchange(client)[0] for key, client in kept.items()} == {key: key[1] for key in kept}


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("family", FAMILIES)
def test_an_endpoint_gets_no_more_connections_than_its_limit(net: Topology, family: str) -> None:
    vip = vips_of(LIMITED)[family]
    shown = net.run("node", "ipvsadm", "-Ln", "--thresholds")
    real = f"[{ADDRESSES['pod1'][family]}]" if family == "IPv6" else ADDRESSES["pod1"][family]
    assert [f"{real}:8080", "4", "0"] in [line.split()[1:4] for line in shown.splitlines()], shown
    # By its weight, pod2 would get six of these.
    with connections(net, vip, [(client_address(family, 1), FIRST_PORT + number) for number in range(8)]) as opened:
        assert Counter(exchange(client)[0] for client in opened) == {"pod1": 4, "pod2": 4}
        with pytest.raises(OSError):
            net.ask("client", vip, 80, timeout=silence(net))
        assert all(exchange(client)[0] in PODS for client in opened)
    # Both sides have closed them. The kernel counts them until it forgets them, in two minutes.
    eventually(lambda: {entry.state for entry in entries(net, vip)} == {"TIME_WAIT"})
    with pytest.raises(OSError):
        net.ask("client", vip, 80, timeout=silence(net))


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_endpoint_gets_new_connections_when_it_has_fewer_than_the_lower_limit(
    net: Topology, family: str
) -> None:
    vip = vips_of(STAGED)[family]
    with ExitStack() as stack:

        def connect() -> bool:
            client = stack.enter_context(net.connect("client", vip, PORTS["UDP"], "UDP", timeout=silence(net)))
            try:
                return exchange(client)[0] == "pod1"
            except OSError:
                return False

        goes_on = stack.enter_context(net.connect("client", vip, PORTS["UDP"], "UDP"))
        stays = stack.enter_context(net.connect("client", vip, PORTS["UDP"], "UDP"))
        assert [exchange(client)[0] for client in (goes_on, stays)] == ["pod1", "pod1"]
        assert [connect() for _ in range(3)] == [True, True, False]
        assert len(entries(net, vip)) == 4
        refused_at: set[int] = set()
        begun = time.monotonic()
        while True:
            exchange(goes_on)
            if time.monotonic() - begun < UDP_TIMEOUT:
                exchange(stays)
            before = len(entries(net, vip))
            if connect():
                break
            refused_at.add(before)
            assert time.monotonic() - begun < 10 * UDP_TIMEOUT, refused_at
            time.sleep(0.1)
        # It had 1 and has 2 now, and at 2 it had got none.
        assert len(entries(net, vip)) == 2
        assert refused_at >= {4, 2}
