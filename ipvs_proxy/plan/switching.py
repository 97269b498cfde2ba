"""Has new connections wait while their virtual server gets another scheduler.

The kernel takes the old scheduler away, waits until nobody uses it (``synchronize_rcu`` in ``ip_vs_edit_service``,
net/netfilter/ipvs/ip_vs_ctl.c: some ten milliseconds), and only then binds the new one. A connection that begins in
between is refused. So its first packet is dropped meanwhile, by a member of the role ``NO_LOCAL`` that comes before and
goes after: TCP and SCTP send it again a second later. Connections that are open notice nothing.

**The invariant: the member is there only around the one operation.** Where a crash leaves it, nobody wants it, and a
start takes it away. A virtual server with a mark has no such member, as members are about addresses.
"""

from __future__ import annotations

from collections.abc import Iterable

from ipvs_proxy.plan import roles
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.tables import Operation, SetEntry, SetEntryOperation, Verb, VirtualServerOperation, family_of


def keep_waiting(operations: Iterable[Operation], desired: DesiredTables, actual: KernelTables) -> list[Operation]:
    """Return operations with a member before and after each one that changes a scheduler.

    ``actual`` is the mirror as it is before them. Where the member is wanted, or is there, all is dropped anyway.
    """
    guarded: list[Operation] = []
    for operation in operations:
        if isinstance(operation, VirtualServerOperation) and _switches(operation, actual):
            key = operation.virtual_server.key
            role, entry = roles.NO_LOCAL[family_of(key.address)], SetEntry(*key[:3])
            if (role, entry) not in desired.entries and entry not in actual.entries.get(role, ()):
                add, delete = (SetEntryOperation(verb, role, entry) for verb in (Verb.ADD, Verb.DELETE))
                guarded += [add, operation, delete]
                continue
        guarded.append(operation)
    return guarded


def _switches(operation: VirtualServerOperation, actual: KernelTables) -> bool:
    server = operation.virtual_server
    if operation.verb is not Verb.SET or server.key.mark:
        return False
    known = actual.virtual_servers.get(server.key)
    return known is not None and known.scheduler != server.scheduler
