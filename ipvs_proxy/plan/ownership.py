"""Which virtual servers of the kernel are ours: the kernel itself keeps the ledger.

A virtual server is ours if a member of our sets names it, if its mark is one of ours, or if its address is on our link
and no set names that address as an external or load balancer address. Such an address may be shared with somebody else:
kube-vip, say, balances the control plane at the address of a Service, on another port. The sets are kube-proxy's, so
what kube-proxy left is taken over too; where another packet filter comes, the members are handed over to its sets. And
sets live exactly as long as the IPVS table, until the node restarts, which a file would not. What other programs
balance (keepalived, say) is in none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from operator import itemgetter

from ipvs_proxy.plan import roles
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.tables import (
    Family,
    Protocol,
    Role,
    SetEntry,
    SetEntryOperation,
    Verb,
    VirtualServerKey,
    family_of,
)

_EXTERNAL = (roles.LOAD_BALANCER, roles.EXTERNAL_IP, roles.EXTERNAL_IP_LOCAL)
_EXACT = (roles.CLUSTER_IP, *_EXTERNAL, roles.LEAVING)


def ledger(actual: KernelTables) -> Callable[[VirtualServerKey], bool]:
    """Return what tells whether a virtual server is ours, by what else the kernel holds now.

    To be made anew when that has changed: which addresses are shared is found out once, when it is first asked for.
    """

    @cache
    def shared(family: Family) -> frozenset[bytes]:
        found = {entry.address for role in _EXTERNAL for entry in actual.entries.get(role[family], ())}
        return frozenset(found.difference(entry.address for entry in actual.entries.get(roles.CLUSTER_IP[family], ())))

    def is_ours(key: VirtualServerKey) -> bool:
        if key.mark:
            return True
        family = family_of(key.address)
        return _is_named(key, actual) or (key.address in actual.addresses and key.address not in shared(family))

    return is_ours


def has_family(actual: KernelTables, family: Family) -> bool:
    """Return whether a virtual server of a family may be ours, by what the kernel holds besides; or is known to be.

    A thread may call it while the tables change: no table is walked through in Python, only lists of what it has.
    """
    length = 4 if family is Family.IPV4 else 16
    return (
        any(members for role, members in list(actual.entries.items()) if role.family is family)
        or length in map(len, list(actual.addresses))
        or length in map(len, map(itemgetter(0), list(actual.virtual_servers)))
    )


def handed_over(
    left: Mapping[Role, Collection[SetEntry]], own: Mapping[Role, Collection[SetEntry]]
) -> Iterator[SetEntryOperation]:
    """Return what adds to our sets the members that an agent with another packet filter has ``left`` in its own.

    ``own`` has the members of the sets that we have, by role. An address that has a mark there keeps it.
    """
    for role, members in left.items():
        if role in own:
            known = {entry._replace(mark=0) for entry in own[role]}
            for entry in members:
                if entry._replace(mark=0) not in known:
                    yield SetEntryOperation(Verb.ADD, role, entry)


def _is_named(key: VirtualServerKey, actual: KernelTables) -> bool:
    family, protocol = family_of(key.address), Protocol(key.protocol)
    exact = SetEntry(key.address, key.protocol, key.port)
    if any(exact in actual.entries.get(role[family], ()) for role in _EXACT):
        return True
    member = exact if protocol is Protocol.SCTP else SetEntry(port=key.port)
    return member in actual.entries.get(roles.NODE_PORTS[protocol][family], ())
