"""The agent as the image has it: from its read-only root, with the chart's capabilities, in both variants of iptables."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.agent import eventually, running_agent
from lab.manifests import PORTS, TARGET_PORTS
from lab.packet_filter import IPTABLES, NFTABLES
from lab.topology import FAMILIES, Topology, servers, topology
from lab.witness import assert_as_planned
from tests.ring.web_service import PODS, VIPS, set_endpoints, write_objects
from tests.support.confined import capabilities_of_the_chart

#: Seen from here; in a virtual machine it is the host's.
IMAGE = Path(os.environ.get("RING_IMAGE") or Path(__file__).parents[2] / "dist/rootfs")
#: What the kubelet does for a container of the chart: the root, what is mounted into it, and the rights.
CONTAINER = """\
set -e
for place in proc sys dev; do mount --rbind /$place "$0/$place"; done
for place in tmp run; do mount -t tmpfs none "$0/$place"; done
mkdir -p "$0$1"
mount --bind "$1" "$0$1"
mount -o remount,bind,ro "$0" 2>/dev/null || true
shift
exec chroot "$0" setpriv --no-new-privs --inh-caps=-all "$@"
"""


@pytest.fixture
def net() -> Iterator[Topology]:
    assert IMAGE.is_dir(), f"{IMAGE} is missing, run: make image"
    with topology() as net, servers(net, PODS, TARGET_PORTS):
        yield net


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_objects(tmp_path)


def container(directory: Path, capabilities: list[str]) -> tuple[str, ...]:
    bounds = "--bounding-set=-all," + ",".join(f"+{name.lower()}" for name in capabilities)
    path = "PATH=/opt/ipvs-proxy/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return ("unshare", "--mount", "sh", "-c", CONTAINER, str(IMAGE), str(directory), bounds, "env", "-i", path)


@pytest.mark.packet_filter(IPTABLES)
@pytest.mark.parametrize("variant", ["nf_tables", "legacy"])
def test_image_serves_follows_and_repairs_in_the_variant_of_the_node(
    variant: str, net: Topology, directory: Path
) -> None:
    if variant == "legacy":
        # As a kubelet does, in both families; the programs of the node load the modules, the image has none.
        for program in ("iptables-legacy", "ip6tables-legacy"):
            net.run("node", program, "-t", "mangle", "-N", "KUBE-IPTABLES-HINT")
    prefix = container(directory, capabilities_of_the_chart(IPTABLES))
    with net.inside("node"):
        everything = container(directory, ["net_admin", "net_raw", "sys_module"])
        subprocess.run([*everything, "ipvs-proxy", "--init-only"], check=True, capture_output=True, timeout=120)
    with running_agent(net, directory, "--ipvs-sync-period=2s", prefix=prefix, program=("ipvs-proxy",)) as agent:
        assert agent.named("iptables")[0]["variant"] == variant
        assert agent.named("family_unsupported") == []
        assert_as_planned(net, directory)
        assert {net.ask("client", VIPS[family], PORTS["TCP"])[0] for family in FAMILIES for _ in "1234"} == set(PODS)
        program = "iptables-legacy-save" if variant == "legacy" else "iptables-nft-save"
        assert "-j KUBE-SERVICES" in net.run("node", program)
        set_endpoints(directory, "pod1")
        eventually(lambda: assert_as_planned(net, directory) is None)
        agent.stop()


@pytest.mark.packet_filter(NFTABLES)
def test_image_serves_a_node_without_iptables_and_ipset(net: Topology, directory: Path) -> None:
    prefix = container(directory, capabilities_of_the_chart(NFTABLES))
    with running_agent(net, directory, "--ipvs-sync-period=2s", prefix=prefix, program=("ipvs-proxy",)) as agent:
        assert_as_planned(net, directory)
        assert {net.ask("client", VIPS[family], PORTS["TCP"])[0] for family in FAMILIES for _ in "1234"} == set(PODS)
        net.run("node", "nft", "delete", "table", "inet", "ipvs-proxy")
        eventually(lambda: assert_as_planned(net, directory) is None)
        agent.stop()
