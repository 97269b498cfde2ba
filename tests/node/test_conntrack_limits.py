"""Limits of connection tracking against a tree of files like ``/proc/sys``."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipvs_proxy.node.conntrack_limits import LARGEST, Limits, largest_table, set_limits

DIRECTORY = "net/netfilter/nf_conntrack_"
DEFAULTS = {
    "max": "65536",
    "tcp_timeout_established": "432000",
    "tcp_timeout_close_wait": "60",
    "tcp_be_liberal": "0",
    "udp_timeout": "30",
    "udp_timeout_stream": "120",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "net/netfilter").mkdir(parents=True)
    for name, value in DEFAULTS.items():
        (tmp_path / f"{DIRECTORY}{name}").write_text(f"{value}\n")
    (tmp_path / "hashsize").write_text("16384\n")
    return tmp_path


def values(root: Path) -> dict[str, str]:
    return {name: (root / f"{DIRECTORY}{name}").read_text().strip() for name in DEFAULTS}


@pytest.mark.parametrize(
    ("max_per_core", "minimum", "cpus", "room"),
    [
        (32768, 131072, 2, 131072),
        (32768, 131072, 8, 262144),
        (32768, 131072, 64, LARGEST),
        (32768, 2_000_000, 2, 2_000_000),
        (32768, 2_000_000, 32, LARGEST),
        (0, 131072, 8, 0),
    ],
)
def test_room_for_connections_is_kube_proxys(max_per_core: int, minimum: int, cpus: int, room: int) -> None:
    assert largest_table(max_per_core, minimum, cpus) == room


def test_what_differs_is_written_and_the_rest_left(root: Path) -> None:
    limits = Limits(32768, 131072, tcp_established=86400, tcp_close_wait=60, tcp_be_liberal=True, udp_stream=300.9)
    changes, refusals = set_limits(limits, cpus=8, root=root, hash_size=root / "hashsize")
    assert refusals == []
    assert [change.name for change in changes] == [
        "nf_conntrack_max",
        "hashsize",
        "nf_conntrack_tcp_timeout_established",
        "nf_conntrack_udp_timeout_stream",
        "nf_conntrack_tcp_be_liberal",
    ]
    wanted = {"max": "262144", "tcp_timeout_established": "86400", "tcp_be_liberal": "1", "udp_timeout_stream": "300"}
    assert values(root) == DEFAULTS | wanted
    assert (root / "hashsize").read_text() == "65536"
    assert set_limits(limits, cpus=8, root=root, hash_size=root / "hashsize") == ([], [])


def test_zero_leaves_everything(root: Path) -> None:
    assert set_limits(Limits(), root=root, hash_size=root / "hashsize") == ([], [])
    assert values(root) == DEFAULTS


def test_the_limit_of_connections_is_never_lowered(root: Path) -> None:
    (root / f"{DIRECTORY}max").write_text("1000000\n")
    changes, refusals = set_limits(Limits(32768, 131072), cpus=8, root=root, hash_size=root / "hashsize")
    assert [(change.name, change.wanted) for change in changes] == [("hashsize", "65536")]
    assert refusals == []
    assert values(root)["max"] == "1000000"


def test_large_table_of_hashes_is_left(root: Path) -> None:
    (root / "hashsize").write_text("999999\n")
    set_limits(Limits(32768, 131072), cpus=8, root=root, hash_size=root / "hashsize")
    assert (root / "hashsize").read_text() == "999999\n"


def test_refusal_is_told_with_its_remedy_and_keeps_nothing_back(root: Path) -> None:
    (root / f"{DIRECTORY}max").unlink()
    changes, refusals = set_limits(Limits(32768, 131072, udp=10), cpus=8, root=root, hash_size=root / "hashsize")
    assert [change.name for change in changes] == ["nf_conntrack_udp_timeout"]
    (refusal,) = refusals
    assert refusal.endswith("nf_conntrack_max cannot be set to 262144 (No such file or directory): set it on the node")
    assert (root / "hashsize").read_text() == "16384\n"
