"""Causes of trouble: what an operator or another program does to a node. Each is undone at the end."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lab.topology import Topology
from tests.ring.silence import silence

#: What kube-proxy's iptables mode left in the variant that is not in use: a Service, when it had another pod.
LEGACY: Final = """\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-6IM33IEVEEV7U3GP - [0:0]
:KUBE-SEP-AYWFBD2ZCPNVSBGX - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -d ADDRESS/32 -p tcp -m comment --comment "shop/files:tcp cluster IP" -m tcp --dport 80 -j KUBE-SVC-6IM33IEVEEV7U3GP
-A KUBE-SVC-6IM33IEVEEV7U3GP -m comment --comment "shop/files:tcp" -j KUBE-SEP-AYWFBD2ZCPNVSBGX
-A KUBE-SEP-AYWFBD2ZCPNVSBGX -p tcp -m comment --comment "shop/files:tcp" -m tcp -j DNAT --to-destination POD:8080
COMMIT
"""


#: A command on a host whose network manager takes all links: in a /run of its own, so that the host's stays as it is.
NETWORKD: Final = """\
set -e
mount -t tmpfs none /run && mount -t sysfs -o ro none /sys && mkdir -p /run/systemd/network
printf '[Match]\\nName=kube-*\\n[Network]\\nLinkLocalAddressing=no\\n' > /run/systemd/network/all.network
/lib/systemd/systemd-networkd > /run/log 2>&1 &
networkd=$!
for attempt in $(seq 300); do
    grep -qs ADMIN_STATE=configured /run/systemd/netif/links/$(cat /sys/class/net/kube-ipvs0/ifindex) && break
    sleep 0.1
done
status=0
"$@" || status=$?
kill -KILL $networkd
exit $status
"""


@contextmanager
def sysctl(net: Topology, **settings: str) -> Iterator[None]:
    """Set sysctls on the node for a while; the names are below net, with ``__`` for a slash."""
    with net.inside("node"):
        paths = {Path("/proc/sys/net", name.replace("__", "/")): value for name, value in settings.items()}
        before = {path: path.read_text() for path in paths}

    def write_all(values: dict[Path, str]) -> None:
        with net.inside("node"):
            for path, value in values.items():
                path.write_text(value)

    write_all(paths)
    try:
        yield
    finally:
        write_all(before)


@contextmanager
def rules(net: Topology, *lines: str) -> Iterator[None]:
    """Have rules of iptables on the node for a while."""
    undo = {"-A": "-D", "-I": "-D", "DROP": "ACCEPT"}
    for line in lines:
        net.run("node", "iptables", "-w", *line.split())
    try:
        yield
    finally:
        for line in lines:
            verb, *rest = line.split()
            last = undo.get(rest[-1], rest[-1]) if verb == "-P" else rest[-1]
            net.run("node", "iptables", "-w", undo.get(verb, verb), *rest[:-1], last)


@contextmanager
def announcing(net: Topology, directory: Path) -> Iterator[None]:
    """Run a process with the name of MetalLB's."""
    shutil.copy("/bin/sleep", directory / "speaker")
    with net.inside("node"):
        process = subprocess.Popen([directory / "speaker", "600"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def answers_arp(net: Topology, address: str) -> bool:
    """Return whether the node answers a client that asks for a Service's address on their common network."""
    net.run("client", "ip", "route", "replace", f"{address}/32", "dev", "uplink")
    try:
        return net.ask("client", address, 80, timeout=silence(net))[0].startswith("pod")
    except OSError:
        return False
    finally:
        net.run("client", "ip", "route", "delete", f"{address}/32", "dev", "uplink")
