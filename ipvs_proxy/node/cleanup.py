"""Takes everything of ours off the node, and if asked what kube-proxy left in any of its modes; nothing of others.

The order is that of a removal (see ``plan.difference``): virtual servers first, while the link and the sets still tell
which of them are ours; then the addresses, so that none leads to a port of the node itself while no rule guards it;
then the rules; and last the sets, which rules refer to. A part that cannot be removed does not hold back the others,
with one exception: while a virtual server of ours is left, link and sets stay, because without them no later run would
recognise it. Settings of the kernel (sysctls, timeouts) stay, as with kube-proxy.

A kernel without ipset, or with IPVS not loaded, has nothing of that kind to remove.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from errno import ESRCH
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Final

from ipvs_proxy.kernel.filter.backend import Cleaning, Traces, counted
from ipvs_proxy.kernel.filter.ipset_iptables import IpsetIptablesTraces
from ipvs_proxy.kernel.filter.nftables_filter import NftablesTraces
from ipvs_proxy.kernel.ipvs.table import READ_ATTEMPTS, Ipvs
from ipvs_proxy.kernel.links.addresses import LINK, Addresses
from ipvs_proxy.netlink.errors import describe
from ipvs_proxy.plan import ownership
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.tables import Role, SetEntry, Verb, VirtualServerKey, VirtualServerOperation

#: What each packet filter may have left.
_TRACES: Final = (IpsetIptablesTraces, NftablesTraces)
#: Exists while IPVS is loaded, in the network namespace of the thread that looks.
IPVS_LOADED: Final = Path("/proc/thread-self/net/ip_vs")
#: At most this many virtual servers that cannot be removed are named; the rest are counted.
_NAMED: Final = 5

Network = IPv4Network | IPv6Network


def clean(*, kube_proxy: bool, dry_run: bool, exclude: Sequence[Network] = ()) -> Cleaning:
    """Remove everything of ours in the network namespace of this thread, or say what would be removed.

    ``kube_proxy``: also what only kube-proxy's iptables and nftables modes have. What its IPVS mode leaves has our
    names and goes anyway. ``exclude``: networks whose virtual servers are never deleted. Nothing is raised: what goes
    wrong is in the cleaning.
    """
    cleaning = Cleaning([], [])
    with ExitStack() as stack:
        addresses = stack.enter_context(closing(Addresses()))
        every: list[Traces] = [stack.enter_context(closing(traces(cleaning))) for traces in _TRACES]
        all_gone = False
        with cleaning.noting("the virtual servers"):
            ledger = KernelTables(addresses=addresses.read(), entries=_read_all(every))
            all_gone = _remove_virtual_servers(ledger, exclude, cleaning, dry_run=dry_run)
        if all_gone:
            with cleaning.noting(f"the link {LINK}"):
                _remove_link(addresses, cleaning, dry_run=dry_run)
        for traces in every:
            traces.remove(cleaning, kube_proxy=kube_proxy, with_sets=all_gone, dry_run=dry_run)
    return cleaning


def _read_all(every: Iterable[Traces]) -> dict[Role, set[SetEntry]]:
    """Read the members by role, whichever packet filter has them."""
    found: dict[Role, set[SetEntry]] = {}
    for traces in every:
        for role, members in traces.read().items():
            found.setdefault(role, set()).update(members)
    return found


def _remove_virtual_servers(
    ledger: KernelTables, exclude: Sequence[Network], cleaning: Cleaning, *, dry_run: bool
) -> bool:
    """Delete those that are ours; return whether none of them is left.

    A list that is taken while somebody else deletes may miss some, so it is taken again until none of ours is in it.
    """
    if not IPVS_LOADED.exists():
        return True
    deleted = 0
    is_ours = ownership.ledger(ledger)
    failed: dict[str, str] = {}
    with closing(Ipvs()) as ipvs:
        for _ in range(READ_ATTEMPTS):
            listed = ipvs.read_virtual_servers().virtual_servers
            ours = [server for key, server in listed.items() if is_ours(key) and not _is_in(key, exclude)]
            failed = {}
            if not ours:
                break
            if dry_run:
                deleted = len(ours)
                break
            codes = ipvs.apply([VirtualServerOperation(Verb.DELETE, server) for server in ours])
            outcomes = zip(ours, codes, strict=True)
            failed = {str(server.key): describe(code) for server, code in outcomes if code not in {0, ESRCH}}
            deleted += len(ours) - len(failed)
    if deleted:
        cleaning.removed.append(counted(deleted, "virtual server"))
    for name, reason in list(failed.items())[:_NAMED]:
        cleaning.problems.append(f"the virtual server {name}: {reason}")
    if len(failed) > _NAMED:
        cleaning.problems.append(f"{len(failed) - _NAMED} more virtual servers")
    return not failed


def _is_in(key: VirtualServerKey, networks: Sequence[Network]) -> bool:
    address = ip_address(key.address)
    return any(address in network for network in networks)


def _remove_link(addresses: Addresses, cleaning: Cleaning, *, dry_run: bool) -> None:
    if not addresses.has_link():
        return
    carried = len(addresses.read())
    if not dry_run:
        addresses.delete_link()
    cleaning.removed.append(f"the link {LINK} with {counted(carried, 'address', 'addresses')}")
