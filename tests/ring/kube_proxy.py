"""What kube-proxy leaves on a node in each of its modes, written with the tools of others; and what else is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from lab.topology import ADDRESSES, Topology
from tests.support.other_modes import SAVED

#: The virtual server that IPVS mode has here, and its endpoint.
VIP = "10.96.0.30"

#: The programs of each variant of iptables, by family.
PROGRAMS = {
    "nf_tables": {"IPv4": "iptables", "IPv6": "ip6tables"},
    "legacy": {"IPv4": "iptables-legacy", "IPv6": "ip6tables-legacy"},
}

_SETS = (
    "LOOP-BACK hash:ip,port,ip",
    "CLUSTER-IP hash:ip,port",
    "EXTERNAL-IP hash:ip,port",
    "EXTERNAL-IP-LOCAL hash:ip,port",
    "LOAD-BALANCER hash:ip,port",
    "LOAD-BALANCER-FW hash:ip,port",
    "LOAD-BALANCER-LOCAL hash:ip,port",
    "LOAD-BALANCER-SOURCE-IP hash:ip,port,ip",
    "LOAD-BALANCER-SOURCE-CIDR hash:ip,port,net",
    "NODE-PORT-TCP bitmap:port",
    "NODE-PORT-LOCAL-TCP bitmap:port",
    "NODE-PORT-UDP bitmap:port",
    "NODE-PORT-LOCAL-UDP bitmap:port",
    "NODE-PORT-SCTP-HASH hash:ip,port",
    "NODE-PORT-LOCAL-SCTP-HASH hash:ip,port",
    "HEALTH-CHECK-NODE-PORT bitmap:port",
    "IPVS-IPS hash:ip",
)

#: IPVS mode with one ClusterIP Service.
_RULES = """\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-MARK-MASQ - [0:0]
-I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -s 127.0.0.0/8 -j RETURN
-A KUBE-SERVICES -m comment --comment "Kubernetes service cluster ip + port for masquerade purpose" \
-m set --match-set KUBE-CLUSTER-IP dst,dst ! -s 10.244.0.0/16 -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
-A KUBE-POSTROUTING -m mark ! --mark 0x00004000/0x00004000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x00004000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x00004000
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SOURCE-RANGES-FIREWALL - [0:0]
:KUBE-IPVS-FILTER - [0:0]
:KUBE-IPVS-OUT-FILTER - [0:0]
-I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-I INPUT -m comment --comment "kubernetes health check rules" -j KUBE-NODE-PORT
-I INPUT -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
-I FORWARD -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
-I INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER
-I OUTPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-OUT-FILTER
-A KUBE-SOURCE-RANGES-FIREWALL -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x00004000/0x00004000 -j ACCEPT
-A KUBE-NODE-PORT -m comment --comment "Kubernetes health check node port" \
-m set --match-set KUBE-HEALTH-CHECK-NODE-PORT dst -j ACCEPT
-A KUBE-IPVS-FILTER -m set --match-set KUBE-CLUSTER-IP dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set KUBE-IPVS-IPS dst -j REJECT
COMMIT
"""

#: Of kubelet, of a network plugin and of an administrator.
_OTHERS = """\
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*nat
:KUBE-KUBELET-CANARY - [0:0]
:CNI-HOSTPORT - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -s 203.0.113.77/32 -j DROP
COMMIT
"""
_NOT_KUBE_PROXYS = re.compile(r"KUBELET|HINT|KUBE-FIREWALL|MINE")


def leave_others(net: Topology) -> None:
    """Put what is not of any proxy on the node: in IPVS, on a link, in a set, in rules and in nftables."""
    node, pod = ADDRESSES["node"]["IPv4"], ADDRESSES["pod2"]["IPv4"]
    table = "".join(
        f"-A {name} -s wlc\n-a {name} -r {pod}:8080 -m -w 3\n" for name in ("-t 192.0.2.77:99", f"-t {node}:8888")
    )
    net.run("node", "ipvsadm", "-R", text=table + f"-A -f 77 -s rr\n-a -f 77 -r {pod}:0 -m -w 1\n")
    net.run("node", "ip", "link", "add", "other0", "type", "dummy")
    net.run("node", "ip", "address", "add", "192.0.2.77/32", "dev", "other0")
    net.run("node", "ipset", "restore", text="create MINE hash:ip\nadd MINE 192.0.2.9\n")
    net.run("node", "iptables-restore", "--noflush", text=_OTHERS)
    net.run("node", "nft", "add", "table", "ip", "mine")


def leave_ipvs_mode(net: Topology) -> None:
    """Put on the node what IPVS mode leaves: one Service with one endpoint, and the node port 30123."""
    node, pod = ADDRESSES["node"]["IPv4"], ADDRESSES["pod1"]["IPv4"]
    net.run("node", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/vs/conntrack")
    net.run("node", "ip", "link", "add", "kube-ipvs0", "type", "dummy")
    net.run("node", "ip", "address", "add", f"{VIP}/32", "dev", "kube-ipvs0")
    lines = []
    for name, kind in (line.split() for line in _SETS):
        for prefix, family in (("KUBE-", "inet"), ("KUBE-6-", "inet6")):
            options = "range 0-65535" if kind == "bitmap:port" else f"family {family} hashsize 1024 maxelem 65536"
            lines.append(f"create {(prefix + name)[:31]} {kind} {options}")
    lines += [f"add KUBE-CLUSTER-IP {VIP},tcp:80", f"add KUBE-IPVS-IPS {VIP}", "add KUBE-NODE-PORT-TCP 30123"]
    net.run("node", "ipset", "restore", text="\n".join(lines) + "\n")
    table = "".join(
        f"-A -t {address} -s rr\n-a -t {address} -r {pod}:8080 -m -w 1\n" for address in (f"{VIP}:80", f"{node}:30123")
    )
    net.run("node", "ipvsadm", "-R", text=table)
    net.run("node", "iptables-restore", "--noflush", text=_RULES)


def leave_iptables_mode(net: Topology, variant: str = "nf_tables") -> None:
    """Put on the node what iptables mode leaves, in both families."""
    kept = "\n".join(line for line in SAVED.splitlines() if not _NOT_KUBE_PROXYS.search(line)) + "\n"
    other = kept.replace("10.244.1.2:8080", "[fd00::2]:8080").replace("icmp-port", "icmp6-port")
    other = other.replace("10.96.0.8", "fd00::8").replace("/32", "/128")
    for family, text in (("IPv4", kept), ("IPv6", other)):
        net.run("node", f"{PROGRAMS[variant][family]}-restore", "--noflush", text=text)


def leave_nftables_mode(net: Topology) -> None:
    """Put on the node what nftables mode leaves: a table of each family with a chain that has a rule."""
    chain = "chain services {\ntype nat hook output priority -100;\ncounter\n}"
    text = "".join(f"table {family} kube-proxy {{\n{chain}\n}}\n" for family in ("ip", "ip6"))
    net.run("node", "nft", "-f", "-", text=text)


def witnessed(net: Topology) -> dict[str, list[str]]:
    """Return all that independent tools print of the node, without what tells nothing: counters, the built-in chains that
    a variant of iptables makes at its first use, and the addresses that the kernel gives to links by itself."""
    found = {
        "ipvs": net.run("node", "ipvsadm", "-Sn").splitlines(),
        # Where a member is in its set depends on a number that the kernel chooses for each set.
        "sets": sorted(re.sub(r" initval 0x\w+", "", net.run("node", "ipset", "save")).splitlines()),
        "links": re.findall(r"^\d+: ([^:@]+)", net.run("node", "ip", "-o", "link"), re.MULTILINE),
        "addresses": re.findall(
            r"^\d+: (\S+ +inet6? (?!fe80)\S+)", net.run("node", "ip", "-o", "address"), re.MULTILINE
        ),
        "nftables": [
            line for line in net.run("node", "nft", "list", "tables").splitlines() if re.search("kube-proxy|mine", line)
        ],
    }
    for variant, programs in PROGRAMS.items():
        for family, program in programs.items():
            found[f"{variant} {family}"] = _rules(net.run("node", f"{program}-save"))
    return found


def _rules(saved: str) -> list[str]:
    """Return the chains that somebody made and the rules, each with its table."""
    lines: list[str] = []
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line
        elif line.startswith("-A") or (line.startswith(":") and " - " in line):
            lines.append(f"{table} {line.split(' [')[0]}")
    return lines


def ipvs_proxy(net: Topology, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command of ours on the node."""
    command = [sys.executable, "-m", "ipvs_proxy", *arguments]
    with net.inside("node"):
        return subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, timeout=120, cwd=Path(__file__).parents[2]
        )
