"""Virtual servers that nobody wants any more and that drain all the same, and what has to stay with each.

A virtual server at a cluster IP needs its address until its last connection has ended. One at an external or load
balancer address does not keep it: that address may be another host's, which this node does not reach before it is off
our link. While another Service has the address it drains, and a set says that it is ours; with the last of them it goes
at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet

from ipvs_proxy.plan import roles
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import Protocol, Role, SetEntry, VirtualServer, VirtualServerKey, family_of

#: An address, or a member with its role.
Anchor = bytes | tuple[Role, SetEntry]

_EXTERNAL = (roles.LOAD_BALANCER, roles.EXTERNAL_IP, roles.EXTERNAL_IP_LOCAL, roles.LEAVING)


class DrainingVirtualServers:
    """The virtual servers that drain although nobody wants them, and what has to stay with them."""

    def __init__(self) -> None:
        self._keys: dict[VirtualServerKey, TableKeys] = {}
        self._held: Counter[Anchor] = Counter()
        self._external: dict[bytes, set[VirtualServerKey]] = {}

    def hold(self, key: VirtualServerKey, *, external: bool) -> None:
        """Have everything stay that a virtual server needs; ``external``: its address is no cluster IP."""
        if key in self._keys:
            return
        if external:
            self._external.setdefault(key.address, set()).add(key)
        self._keys[key] = remains = TableKeys(entries={ledger_entry(key)}) if external else remains_of(key)
        self._held.update(remains.addresses)
        self._held.update(remains.entries)

    def release(self, key: VirtualServerKey) -> None:
        """Let it go: the virtual server is gone, or wanted again."""
        remains = self._keys.pop(key, None)
        if remains is None:
            return
        anchors: set[Anchor] = {*remains.addresses, *remains.entries}
        for anchor in anchors:
            self._held[anchor] -= 1
            if not self._held[anchor]:
                del self._held[anchor]
        others = self._external.get(key.address, set())
        others.discard(key)
        if not others:
            self._external.pop(key.address, None)

    def holds(self, anchor: Anchor) -> bool:
        """Return whether an address or a member has to stay."""
        return anchor in self._held

    def external_at(self, address: bytes) -> AbstractSet[VirtualServerKey]:
        """Return those at an external or load balancer address."""
        return self._external.get(address, frozenset())

    def keys(self) -> AbstractSet[VirtualServerKey]:
        """Return all of them: a view that follows changes."""
        return self._keys.keys()

    def __contains__(self, key: VirtualServerKey) -> bool:
        return key in self._keys


def remains_of(key: VirtualServerKey) -> TableKeys:
    """Return what may outlast a virtual server: its address, and what says that it is ours (see ``ownership``)."""
    if key.mark:
        return TableKeys()
    family = family_of(key.address)
    exact = SetEntry(key.address, key.protocol, key.port)
    node_port = (roles.NODE_PORTS[Protocol(key.protocol)][family], exact)
    if key.protocol != Protocol.SCTP:
        node_port = (node_port[0], SetEntry(port=key.port))
    return TableKeys(addresses={key.address}, entries={(roles.IPVS_IPS[family], SetEntry(key.address)), node_port})


def ledger_entry(key: VirtualServerKey) -> tuple[Role, SetEntry]:
    """Return the member that says that a leaving virtual server is ours."""
    return roles.LEAVING[family_of(key.address)], SetEntry(key.address, key.protocol, key.port)


def is_external(key: VirtualServerKey, entries: Mapping[Role, Collection[SetEntry]]) -> bool:
    """Return whether the members of sets name a virtual server as one at an external or load balancer address."""
    if key.mark:
        return False
    family, exact = family_of(key.address), SetEntry(key.address, key.protocol, key.port)
    if exact in entries.get(roles.CLUSTER_IP[family], ()):
        return False
    return any(exact in entries.get(role[family], ()) for role in _EXTERNAL)


def drains(unwanted: VirtualServer) -> bool:
    """Return whether a virtual server that nobody wants has real servers that may have connections to finish."""
    return unwanted.key.protocol != Protocol.UDP and bool(unwanted.real_servers)
