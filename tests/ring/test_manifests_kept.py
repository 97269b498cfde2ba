"""Manifests on a file system that is mounted and unmounted under a running agent, with a real kernel behind it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import manifests
from lab.agent import eventually, running_agent
from lab.manifests import endpoint
from lab.topology import Topology, topology
from lab.witness import virtual_servers

ADDRESSES = [f"10.96.1.{number}" for number in range(1, 21)]


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with topology() as net:
        yield net


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "manifests"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", directory], check=True)
    manifests.write(directory, "node", manifests.node())
    for number, address in enumerate(ADDRESSES):
        name = f"web{number}"
        slices = manifests.slices(name, [endpoint("10.244.1.1")])
        manifests.write(directory, name, manifests.service(name, address), *slices)
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=False, capture_output=True)


def served(net: Topology) -> set[str]:
    return {address for address, _, _ in virtual_servers(net)}


def test_an_unmount_removes_nothing_and_an_empty_list_does(net: Topology, mounted: Path) -> None:
    with running_agent(net, mounted) as agent:
        eventually(lambda: served(net) == set(ADDRESSES))
        subprocess.run(["umount", "--lazy", mounted], check=True)
        agent.wait_for("manifests_kept")
        assert served(net) == set(ADDRESSES)
        manifests.write(mounted, "more", manifests.service("more", "10.96.2.1"))
        eventually(lambda: served(net) == {*ADDRESSES, "10.96.2.1"})
        (mounted / "removed.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": []}))
        eventually(lambda: served(net) == {"10.96.2.1"})
        agent.stop()


def test_a_file_that_is_cut_and_one_that_is_a_bomb_remove_nothing(net: Topology, mounted: Path) -> None:
    with running_agent(net, mounted) as agent:
        (mounted / "web0.json").write_text("")
        agent.wait_for("manifest_empty")
        bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
        )
        (mounted / "bomb.yaml").write_text(bomb)
        (mounted / "web1.json").write_text("{")
        agent.wait_for("manifest_unparsable", 2)
        assert served(net) == set(ADDRESSES)
        agent.stop()
