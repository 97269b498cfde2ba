"""An endpoint that becomes ready gets its weight in steps, and whatever ends that ends at the full weight."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import manifests
from lab.agent import eventually, running_agent
from lab.topology import ADDRESSES, FAMILIES, Topology, topology
from lab.witness import weights
from tests.ring.scheduled import (
    FIRST_PORT,
    client_address,
    connections,
    done_since,
    give_client_addresses,
    listening,
    operations,
    service,
    shares,
    slices,
    vips_of,
)

NUMBER = 80
#: Equal weights are ten each, so that there are steps below.
FULL = 10
DURATION = 3


@pytest.fixture
def net() -> Iterator[Topology]:
    with topology() as net, listening(net, "pod1", "pod2", "pod3"):
        give_client_addresses(net)
        yield net


def write(directory: Path, *pods: str, duration: int = DURATION) -> None:
    wishes = {"slow-start": f"{duration}s", "drain-timeout": "0s"}
    manifests.write(directory, "web", service("web", NUMBER, wishes), *slices("web", *pods))


def weight(net: Topology, pod: str) -> set[int | None]:
    """Return the weights of a pod in both families; ``None`` for none."""
    return {weights(net, vips_of(NUMBER)[family], 80).get(ADDRESSES[pod][family]) for family in FAMILIES}


def test_a_new_endpoint_warms_up_and_a_restart_ends_at_the_full_weight(net: Topology, tmp_path: Path) -> None:
    manifests.write(tmp_path, "node", manifests.node())
    write(tmp_path, "pod1", "pod2")
    with running_agent(net, tmp_path) as agent:
        assert [weight(net, pod) for pod in ("pod1", "pod2")] == [{FULL}, {FULL}], "those from before the start"
        before = operations(net)
        write(tmp_path, "pod1", "pod2", "pod3")
        eventually(lambda: weight(net, "pod3") == {1})
        for vip in vips_of(NUMBER).values():
            family = "IPv6" if ":" in vip else "IPv4"
            with connections(net, vip, [(client_address(family, 1), FIRST_PORT + n) for n in range(42)]):
                assert shares(net, vip)["pod3"] in range(1, 14), "a share that is not yet the third"
        ramp: list[int | None] = [1]

        def is_full() -> bool:
            found = weight(net, "pod3")
            if len(found) == 1 and ramp[-1] not in found:
                ramp.extend(found)
            return found == {FULL}

        eventually(is_full)
        assert len(ramp) >= 3, ramp
        assert ramp == sorted(ramp, key=lambda one: one or 0), ramp
        done = done_since(net, before)
        # A look comes each second at most, and some steps fall together.
        assert done["ipvs", "add"] == 2
        assert done["ipvs", "set"] in {2 * steps for steps in range(len(ramp) - 1, DURATION + 1)}, (done, ramp)
        assert [weight(net, pod) for pod in ("pod1", "pod2")] == [{FULL}, {FULL}], "nobody else's weight has changed"

        before = operations(net)
        time.sleep(1.2)
        assert done_since(net, before) == Counter(), "it is over"
        write(tmp_path, "pod1", "pod2", duration=60)
        eventually(lambda: weight(net, "pod3") == {None})
        write(tmp_path, "pod1", "pod2", "pod3", duration=60)
        eventually(lambda: weight(net, "pod3") == {1})
        agent.stop()
        assert weight(net, "pod3") == {1}
    with running_agent(net, tmp_path) as agent:
        assert agent.named("started")[0]["operations"] == 2
        assert [weight(net, pod) for pod in ("pod1", "pod2", "pod3")] == [{FULL}] * 3
