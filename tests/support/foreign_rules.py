"""Rules of other programs beside ours, as ``iptables-save`` prints them, and the Services that they affect."""

from __future__ import annotations

from collections.abc import Iterable

from ipvs_proxy.kernel.filter.foreign.rules import Destinations
from ipvs_proxy.plan.addresses import parse_address
from ipvs_proxy.plan.tables import Protocol, SetEntry, VirtualServerKey

OURS = '-A {} -m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
#: The rule by which the chain is recognized as one of IPVS mode.
SERVICES = "-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT"
OUR_MARKS = '-A {} -m comment --comment "ipvs-proxy clients in the cluster" -j IPVS-PROXY-{}'
GIVEN = "-A IPVS-PROXY-PREROUTING -j SET --map-set IPVS-PROXY-INTERNAL dst,dst --map-mark"
HOST_PORT = (
    "-A PREROUTING -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 80 -j DNAT --to-destination 10.244.1.3:8080"
)


def key(address: str, port: int = 80, protocol: Protocol = Protocol.TCP) -> VirtualServerKey:
    packed = parse_address(address)
    assert packed is not None
    return VirtualServerKey(packed, protocol, port)


VIP, OTHER, DNS, NODE_PORT = (
    key("10.96.1.1"),
    key("10.96.1.2", 443),
    key("10.96.0.10", 53, Protocol.UDP),
    key("192.0.2.1", 30080),
)
KEYS = (VIP, OTHER, DNS, NODE_PORT)
ADDRESSES = {found.address for found in (VIP, OTHER, DNS)}
MEMBERS = {
    "KUBE-CLUSTER-IP": {SetEntry(*found[:3]) for found in (VIP, OTHER, DNS)},
    "KUBE-IPVS-IPS": {SetEntry(found.address) for found in (VIP, OTHER, DNS)},
}
KNOWN = Destinations(KEYS, ADDRESSES, MEMBERS)


def saved(*, raw: Iterable[str] = (), mangle: Iterable[str] = (), nat: Iterable[str] = ()) -> str:
    text = ""
    for table, rules in (("raw", raw), ("mangle", mangle), ("nat", nat)):
        chains = dict.fromkeys(rule.split()[1] for rule in rules)
        text += f"*{table}\n" + "".join(f":{chain} - [0:0]\n" for chain in chains) + "\n".join(rules) + "\nCOMMIT\n"
    return text


def many(number: int) -> tuple[Destinations, list[VirtualServerKey]]:
    keys = [key(f"10.{96 + n // 62500}.{n // 250 % 250}.{n % 250 + 1}", 1 + n % 60000) for n in range(number)]
    return Destinations(keys, {found.address for found in keys}, {}), keys
