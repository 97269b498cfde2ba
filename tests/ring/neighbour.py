"""A kube-proxy 1.36 in iptables or nftables mode, as far as the kernel sees it: what it writes, and when.

The Service ``ring/other`` is served by its rules, with a cluster IP and a node port in both families. The rules are
those of pkg/proxy/iptables and pkg/proxy/nftables of Kubernetes 1.36 with a clusterCIDR; its restart in nftables mode
does what ``CleanupLeftovers`` of pkg/proxy/ipvs does.
"""

from __future__ import annotations

import re
from typing import Final

from lab.topology import ADDRESSES, CLUSTER_CIDR, FAMILIES, Topology

MODES: Final = ("iptables", "nftables")
OTHER: Final = {"IPv4": "10.96.0.50", "IPv6": "fd00:10:96::50"}
#: Of a Service without endpoints.
EMPTY: Final = {"IPv4": "10.96.0.51", "IPv6": "fd00:10:96::51"}
NODE_PORT: Final = 30050
ENDPOINT: Final = "pod2"
_SERVICE_CIDRS: Final = {"IPv4": "10.96.0.0/16", "IPv6": "fd00:10:96::/112"}
_POD_CIDRS: Final = dict(zip(FAMILIES, CLUSTER_CIDR.split(","), strict=True))
_PROGRAMS: Final = {"IPv4": "iptables", "IPv6": "ip6tables"}
_SETS: Final = [
    "LOOP-BACK",
    "CLUSTER-IP",
    "LOAD-BALANCER",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-SOURCE-CIDR",
    "LOAD-BALANCER-SOURCE-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "NODE-PORT-TCP",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
]

#: Table, built-in chain, what the jump has in front of its comment, the comment, and the chain that it leads to.
_JUMPS: Final = (
    ("filter", "INPUT", "NEW", "kubernetes externally-visible service portals", "KUBE-EXTERNAL-SERVICES"),
    ("filter", "FORWARD", "NEW", "kubernetes externally-visible service portals", "KUBE-EXTERNAL-SERVICES"),
    ("filter", "INPUT", "", "kubernetes health check service ports", "KUBE-NODEPORTS"),
    ("filter", "FORWARD", "NEW", "kubernetes service portals", "KUBE-SERVICES"),
    ("filter", "OUTPUT", "NEW", "kubernetes service portals", "KUBE-SERVICES"),
    ("filter", "FORWARD", "", "kubernetes forwarding rules", "KUBE-FORWARD"),
    ("filter", "INPUT", "NEW", "kubernetes load balancer firewall", "KUBE-PROXY-FIREWALL"),
    ("filter", "OUTPUT", "NEW", "kubernetes load balancer firewall", "KUBE-PROXY-FIREWALL"),
    ("filter", "FORWARD", "NEW", "kubernetes load balancer firewall", "KUBE-PROXY-FIREWALL"),
    ("nat", "OUTPUT", "", "kubernetes service portals", "KUBE-SERVICES"),
    ("nat", "PREROUTING", "", "kubernetes service portals", "KUBE-SERVICES"),
    ("nat", "POSTROUTING", "", "kubernetes postrouting rules", "KUBE-POSTROUTING"),
)
_IPTABLES: Final = """\
*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*filter
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-PROXY-CANARY - [0:0]
-A KUBE-SERVICES -m comment --comment "ring/empty:tcp has no endpoints" -m tcp -p tcp -d {empty} --dport 80 -j REJECT
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" \
-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
{chains}-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
{rules}-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" \
-m addrtype --dst-type LOCAL{not_loopback} -j KUBE-NODEPORTS
COMMIT
"""
_NFTABLES: Final = """\
table {ip} kube-proxy {{
  comment "rules for kube-proxy"
  set cluster-ips {{ type {type}; elements = {{ {cluster_ips} }} }}
  set nodeport-ips {{ type {type}; elements = {{ {node} }} }}
  set hairpin-connections {{
    type {type} . {type} . inet_proto . inet_service
    elements = {{ {endpoint} . {endpoint} . tcp . 8080 }}
  }}
  chain service-X {{ meta l4proto tcp dnat {ip} to numgen random mod 1 map {{ 0 : {endpoint} . 8080 }}; }}
  chain external-X {{ jump mark-for-masquerade; goto service-X; }}
  chain reject-chain {{ reject; }}
  chain mark-for-masquerade {{ meta mark set meta mark | 0x4000; }}
  map service-ips {{
    type {type} . inet_proto . inet_service : verdict
    {service_ips}
  }}
  map service-nodeports {{
    type inet_proto . inet_service : verdict
    {node_ports}
  }}
  map no-endpoint-services {{
    type {type} . inet_proto . inet_service : verdict
    elements = {{ {empty} . tcp . 80 : goto reject-chain }}
  }}
  map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}
  map firewall-ips {{ type {type} . inet_proto . inet_service : verdict; }}
  chain firewall-check {{ {ip} daddr . meta l4proto . th dport vmap @firewall-ips; }}
  chain service-endpoints-check {{ {ip} daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
  chain nodeport-endpoints-check {{
    {ip} daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
  }}
  chain cluster-ips-check {{
    {ip} daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"
    {ip} daddr {{ {services} }} drop comment "Drop traffic to unallocated ClusterIPs"
  }}
  chain services {{
    {ip} daddr @cluster-ips {ip} saddr != {pods} meta mark set meta mark | 0x4000
    {ip} daddr . meta l4proto . th dport vmap @service-ips
    {ip} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
  }}
  chain masquerading {{
    meta mark & 0x4000 != 0 meta mark set meta mark ^ 0x4000 masquerade fully-random
    ct status dnat {ip} saddr . {ip} daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random
  }}
  chain filter-prerouting-pre-dnat {{
    type filter hook prerouting priority -110; ct state new jump firewall-check
  }}
  chain filter-output-pre-dnat {{
    type filter hook output priority -110; ct state new jump firewall-check
  }}
  chain filter-input {{
    type filter hook input priority 0
    ct state new jump nodeport-endpoints-check
    ct state new jump service-endpoints-check
  }}
  chain filter-forward {{
    type filter hook forward priority 0
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }}
  chain filter-output {{
    type filter hook output priority 0
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }}
  chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}
  chain nat-output {{ type nat hook output priority -100; jump services; }}
  chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading; }}
}}
"""


def sync(net: Topology, mode: str, *more: dict[str, str]) -> None:
    """Write what a full sync writes; ``more`` are cluster IPs by family that lead to the same endpoint."""
    if mode == "nftables":
        net.run("node", "nft", "-f", "-", text="".join(_nftables(family, more) for family in FAMILIES))
        return
    for family, program in _PROGRAMS.items():
        net.run("node", f"{program}-restore", "-w", "5", "--noflush", "--counters", text=_iptables(family, more))
        present = net.run("node", f"{program}-save")
        for table, source, state, comment, target in _JUMPS:
            jump = f'{source} {f"-m conntrack --ctstate {state} " * bool(state)}-m comment --comment "{comment}"'
            if f"-A {jump} -j {target}" not in _table(present, table):
                text = f"*{table}\n-I {jump} -j {target}\nCOMMIT\n"
                net.run("node", f"{program}-restore", "-w", "5", "--noflush", text=text)


def restart(net: Topology, mode: str) -> None:
    """Do what kube-proxy does at its start: only in nftables mode it clears IPVS mode away first, in its order."""
    if mode == "nftables":
        net.run("node", "ipvsadm", "-C")
        net.run("node", "ip", "link", "delete", "kube-ipvs0")
        for name in _SETS:
            # A set that a rule refers to stays, which kube-proxy logs.
            net.run("node", "sh", "-c", f"ipset destroy KUBE-{name} 2>/dev/null || true")
    sync(net, mode)


def rules_of_kube_proxy(net: Topology) -> str:
    """Return all that kube-proxy has on the node, as independent tools print it, without counters."""
    text = ""
    for program in _PROGRAMS.values():
        table = ""
        for line in net.run("node", f"{program}-save").splitlines():
            table = line if line.startswith("*") else table
            if re.match(r":KUBE-|-A KUBE-", line) or re.search(r" -j KUBE-\S+$", line):
                text += f"{program} {table} {line.split(' [')[0]}\n"
    for family in ("ip", "ip6"):
        text += net.run("node", "sh", "-c", f"nft list table {family} kube-proxy 2>/dev/null || true")
    return text


def _table(saved: str, table: str) -> str:
    return saved.split(f"*{table}\n", 1)[-1].split("COMMIT", 1)[0]


def _iptables(family: str, more: tuple[dict[str, str], ...]) -> str:
    endpoint, pods = ADDRESSES[ENDPOINT][family], _POD_CIDRS[family]
    names = [f"{number:0>16}".replace("0", "A").replace("1", "B") for number in range(len(more) + 1)]
    chains = rules = ""
    for name, addresses in zip(names, (OTHER, *more), strict=True):
        vip, what = addresses[family], '-m comment --comment "ring/other:tcp"'
        chains += "".join(f":KUBE-{kind}-{name} - [0:0]\n" for kind in ("SVC", "EXT", "SEP"))
        to_vip = f"{what} -m tcp -p tcp -d {vip} --dport 80"
        rules += f"-A KUBE-SERVICES {to_vip} -j KUBE-SVC-{name}\n"
        rules += f"-A KUBE-SVC-{name} {to_vip} ! -s {pods} -j KUBE-MARK-MASQ\n"
        rules += f"-A KUBE-SVC-{name} {what} -j KUBE-SEP-{name}\n"
        rules += f"-A KUBE-SEP-{name} {what} -s {endpoint} -j KUBE-MARK-MASQ\n"
        target = f"[{endpoint}]:8080" if ":" in endpoint else f"{endpoint}:8080"
        rules += f"-A KUBE-SEP-{name} {what} -m tcp -p tcp -j DNAT --to-destination {target}\n"
        rules += f"-A KUBE-EXT-{name} {what} -j KUBE-MARK-MASQ\n-A KUBE-EXT-{name} -j KUBE-SVC-{name}\n"
    rules += f'-A KUBE-NODEPORTS -m comment --comment "ring/other:tcp" -m tcp -p tcp --dport {NODE_PORT} '
    rules += f"-j KUBE-EXT-{names[0]}\n"
    not_loopback = "" if family == "IPv4" else " ! -d ::1/128"
    return _IPTABLES.format(empty=EMPTY[family], chains=chains, rules=rules, not_loopback=not_loopback)


def _nftables(family: str, more: tuple[dict[str, str], ...]) -> str:
    ip = "ip" if family == "IPv4" else "ip6"
    served = [addresses[family] for addresses in (OTHER, *more)]
    members = ", ".join(f"{vip} . tcp . 80 : goto service-X" for vip in served)
    return f"table {ip} kube-proxy\ndelete table {ip} kube-proxy\n" + _NFTABLES.format(
        ip=ip,
        type="ipv4_addr" if family == "IPv4" else "ipv6_addr",
        cluster_ips=", ".join([*served, EMPTY[family]]),
        node=ADDRESSES["node"][family],
        endpoint=ADDRESSES[ENDPOINT][family],
        service_ips=f"elements = {{ {members} }}",
        node_ports=f"elements = {{ tcp . {NODE_PORT} : goto external-X }}",
        empty=EMPTY[family],
        services=_SERVICE_CIDRS[family],
        pods=_POD_CIDRS[family],
    )
