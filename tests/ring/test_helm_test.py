"""What the pod of ``helm test`` runs, as that pod runs it: it ends well beside an agent that is, and says what is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import manifests
from lab.agent import running_agent
from lab.manifests import endpoint
from lab.topology import ADDRESSES, Topology, topology
from tests.helm.helm import template

VIP = "10.96.0.1"


@pytest.fixture
def net() -> Iterator[Topology]:
    with topology() as net:
        yield net


@pytest.fixture(scope="module")
def containers() -> dict[str, list[str]]:
    """The arguments of each container, by its name."""
    done = template({}, "--show-only", "templates/tests/agent.yaml")
    return {found["name"]: found["args"] for found in yaml.safe_load(done.stdout)["spec"]["containers"]}


def run(net: Topology, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a container's command on the node without any capability; that nobody can too, tests of the image say."""
    powerless = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    with net.inside("node"):
        return subprocess.run(
            [*powerless, sys.executable, "-m", "ipvs_proxy", *arguments], capture_output=True, text=True, check=False
        )


def in_default(*objects: dict[str, Any]) -> list[dict[str, Any]]:
    return [one | {"metadata": one["metadata"] | {"namespace": "default"}} for one in objects]


def test_it_ends_well_beside_an_agent_that_serves_and_finds_a_table_that_is_wrong(
    net: Topology, tmp_path: Path, containers: dict[str, list[str]]
) -> None:
    manifests.write(tmp_path, "node", manifests.node())
    manifests.write(tmp_path, "service", *in_default(manifests.service("kubernetes", VIP)))
    slices = manifests.slices("kubernetes", [endpoint(ADDRESSES["pod1"]["IPv4"])])
    manifests.write(tmp_path, "slices", *in_default(*slices))
    # An audit an hour away repairs nothing in between.
    with running_agent(net, tmp_path, "--ipvs-sync-period", "1h"):
        for name, arguments in containers.items():
            done = run(net, arguments)
            assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        net.run("node", "ipvsadm", "-C")
        ended = {name: run(net, arguments).returncode for name, arguments in containers.items()}
        assert ended == {"status": 0, "service": 0, "differences": 2}


def test_it_fails_where_no_agent_answers_and_where_the_service_is_not_served(
    net: Topology, tmp_path: Path, containers: dict[str, list[str]]
) -> None:
    for name, arguments in containers.items():
        done = run(net, arguments)
        assert (done.returncode, "no agent answers at 127.0.0.1:10249" in done.stderr) == (1, True), name
    manifests.write(tmp_path, "node", manifests.node())
    with running_agent(net, tmp_path):
        done = run(net, containers["service"])
    assert (done.returncode, "kubernetes" in done.stderr) == (1, True)
