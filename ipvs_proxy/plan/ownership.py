"""Which virtual servers of the kernel are ours: the kernel itself keeps the ledger.

A virtual server is ours if its address is on our link, if a member of our sets names it, or if its mark is one of ours.
The sets are kube-proxy's, so what kube-proxy left is taken over too; and sets live exactly as long as the IPVS table,
until the node restarts, which a file would not. What other programs balance (keepalived, say) is in none of them.
"""

from __future__ import annotations

from ipvs_proxy.plan import sets
from ipvs_proxy.plan.difference import KernelTables
from ipvs_proxy.plan.tables import Protocol, SetEntry, VirtualServerKey, family_of

_SETS_OF_ADDRESSES = (sets.CLUSTER_IP, sets.LOAD_BALANCER, sets.EXTERNAL_IP, sets.EXTERNAL_IP_LOCAL)


def is_ours(key: VirtualServerKey, actual: KernelTables) -> bool:
    """Tell whether a virtual server is ours, by what else the kernel holds."""
    if key.mark or key.address in actual.addresses:
        return True
    names = sets.names(family_of(key.address))

    def has(base: str, entry: SetEntry) -> bool:
        return entry in actual.entries.get(names[base], ())

    exact = SetEntry(key.address, key.protocol, key.port)
    if any(has(base, exact) for base in _SETS_OF_ADDRESSES):
        return True
    protocol = Protocol(key.protocol)
    return has(sets.NODE_PORT_SETS[protocol], exact if protocol is Protocol.SCTP else SetEntry(port=key.port))
