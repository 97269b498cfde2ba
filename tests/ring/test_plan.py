"""A plan against an empty kernel on a node that has IPVS: only where it is asked for."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from lab import manifests
from lab.agent import PROGRAM, command, running_agent
from lab.topology import ADDRESSES, CLUSTER_CIDR, topology
from tests.ring.kube_proxy import witnessed

VIP = "10.96.0.60"
WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


def test_offline_an_empty_kernel_is_assumed_and_without_it_never_where_there_is_ipvs(tmp_path: Path) -> None:
    manifests.write(tmp_path, "node", manifests.node())
    service = manifests.service("web", VIP)
    manifests.write(
        tmp_path, "service", service, *manifests.slices("web", [manifests.endpoint(ADDRESSES["pod1"]["IPv4"])])
    )
    flags = ("--manifests", str(tmp_path), "--hostname-override", "node", "--cluster-cidr", CLUSTER_CIDR)
    with topology() as net, running_agent(net, tmp_path):
        before = witnessed(net)
        with net.inside("node"):
            refused, offline = (
                subprocess.run(
                    [*WITHOUT_RIGHTS, *PROGRAM, "plan", *flags, *more], capture_output=True, text=True, check=False
                )
                for more in ((), ("--offline", "-o", "json"))
            )
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.endswith("; or use --offline to plan against an empty kernel\n"), refused.stderr
        assert offline.returncode == 2, offline.stderr
        objects = {change["object"] for change in json.loads(offline.stdout)["changes"]}
        assert {"link kube-ipvs0", "KUBE-CLUSTER-IP", f"{VIP}:80/TCP rr", f"{VIP} on kube-ipvs0"} <= objects
        assert "nothing would change" in command(net, "plan", *flags)
        assert witnessed(net) == before
