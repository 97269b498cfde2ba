"""Takes everything of ours off the node, and if asked what kube-proxy left in any of its modes; nothing of others.

The order is that of a removal (see ``plan.difference``): virtual servers first, as long as the link and the sets tell
which of them are ours; then the addresses, so that none leads to a port of the node itself while no rule guards it;
then the rules, and last the sets, which rules refer to. One part that cannot be removed does not hold back the others,
with one exception: while a virtual server of ours is left, link and sets stay, as without them no later run would know
it. Settings of the kernel (sysctls, timeouts) stay, as with kube-proxy.

What the kernel does not have (no ipset, or IPVS that is not loaded) has nothing to remove.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from errno import ESRCH
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Final, NamedTuple

from ipvs_proxy.kernel.filter.ipset.names import definitions
from ipvs_proxy.kernel.filter.ipset.table import Sets, describe_error
from ipvs_proxy.kernel.filter.iptables.programs import Iptables, MissingNfTables, installed_variants
from ipvs_proxy.kernel.filter.iptables.removal import Choice, is_ours_beside_iptables_mode, removal
from ipvs_proxy.kernel.filter.iptables.removal import is_ours as is_our_chain
from ipvs_proxy.kernel.filter.other_modes import chains_of, delete_table, has_table, is_of_iptables_mode
from ipvs_proxy.kernel.ipvs.table import READ_ATTEMPTS, Ipvs
from ipvs_proxy.kernel.links.addresses import LINK, Addresses
from ipvs_proxy.netlink.errors import MissingPiece
from ipvs_proxy.plan import ownership
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.tables import Family, Verb, VirtualServerKey, VirtualServerOperation

#: Exists while IPVS is loaded, in the network namespace of the thread that looks.
IPVS_LOADED: Final = Path("/proc/thread-self/net/ip_vs")
#: So many of what cannot be removed are named; of the rest, the number.
_NAMED: Final = 5

Network = IPv4Network | IPv6Network


class Result(NamedTuple):
    """What was removed (or with a dry run would be), one line for each kind; and what could not be, with the reason."""

    removed: list[str]
    problems: list[str]


def clean(*, kube_proxy: bool, dry_run: bool, exclude: Sequence[Network] = ()) -> Result:
    """Remove everything of ours in the network namespace of this thread, or say what would be removed.

    ``kube_proxy``: also what only kube-proxy's iptables and nftables modes have. What its IPVS mode leaves has our
    names and goes anyway. ``exclude``: networks whose virtual servers are never deleted. Nothing is raised: what goes
    wrong is in the result.
    """
    result = Result([], [])
    write = not dry_run
    with closing(Addresses()) as addresses, ExitStack() as stack:
        sets: Sets | None = None
        with _noting(result, "the sets"), suppress(MissingPiece):
            sets = stack.enter_context(closing(Sets(definitions())))
        all_gone = False
        with _noting(result, "the virtual servers"):
            ledger = KernelTables(addresses=addresses.read(), entries={} if sets is None else sets.read())
            all_gone = _remove_virtual_servers(ledger, exclude, result, write=write)
        if all_gone:
            with _noting(result, f"the link {LINK}"):
                _remove_link(addresses, result, write=write)
        with _noting(result, "the rules"):
            for variant in installed_variants():
                _remove_rules(variant, result, kube_proxy=kube_proxy, write=write)
        if sets is not None and all_gone:
            with _noting(result, "the sets"):
                _remove_sets(sets, result, write=write)
    for family in Family if kube_proxy else ():
        with _noting(result, f"the nftables table kube-proxy of {family.label}"):
            _remove_table(family, result, write=write)
    return result


@contextmanager
def _noting(result: Result, what: str) -> Iterator[None]:
    """Note why a part could not be removed, and go on."""
    try:
        yield
    except (OSError, ValueError) as error:
        result.problems.append(f"{what}: {error.strerror if isinstance(error, OSError) and error.strerror else error}")


def _remove_virtual_servers(ledger: KernelTables, exclude: Sequence[Network], result: Result, *, write: bool) -> bool:
    """Delete those that are ours; return whether none of them is left.

    A list that is taken while somebody else deletes can leave out some, so the end is a list without any of ours.
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
            if not write:
                deleted = len(ours)
                break
            codes = ipvs.apply([VirtualServerOperation(Verb.DELETE, server) for server in ours])
            outcomes = zip(ours, codes, strict=True)
            failed = {str(server.key): describe_error(code) for server, code in outcomes if code not in {0, ESRCH}}
            deleted += len(ours) - len(failed)
    if deleted:
        result.removed.append(_count(deleted, "virtual server"))
    for name, reason in list(failed.items())[:_NAMED]:
        result.problems.append(f"the virtual server {name}: {reason}")
    if len(failed) > _NAMED:
        result.problems.append(f"{len(failed) - _NAMED} more virtual servers")
    return not failed


def _is_in(key: VirtualServerKey, networks: Sequence[Network]) -> bool:
    address = ip_address(key.address)
    return any(address in network for network in networks)


def _remove_link(addresses: Addresses, result: Result, *, write: bool) -> None:
    if not addresses.has_link():
        return
    carried = len(addresses.read())
    if write:
        addresses.delete_link()
    result.removed.append(f"the link {LINK} with {_count(carried, 'address', 'addresses')}")


def _remove_rules(variant: Iptables, result: Result, *, kube_proxy: bool, write: bool) -> None:
    for family in Family:
        where = f"{family.label} {variant.backend}"
        with _noting(result, f"the rules of {where}"), suppress(MissingNfTables):
            saved = variant.save(family)
            found = removal(saved, _choice(saved, kube_proxy=kube_proxy))
            if found.text and write:
                variant.restore(family, found.text)
            if found.chains or found.jumps:
                counts = f"{_count(found.chains, 'chain')} and {_count(found.jumps, 'jump')}"
                result.removed.append(f"{counts} of {where}")
            result.problems.extend(f"the {where} {kept}" for kept in found.kept)


def _choice(saved: str, *, kube_proxy: bool) -> Choice:
    """Choose what goes of the rules: never what belongs to a kube-proxy that was rolled back to, unless asked to."""
    if kube_proxy:
        return lambda chain: is_our_chain(chain) or is_of_iptables_mode(chain)
    return is_ours_beside_iptables_mode if chains_of(saved) else is_our_chain


def _remove_sets(sets: Sets, result: Result, *, write: bool) -> None:
    names = sets.present()
    codes = sets.destroy(names) if write else [0] * len(names)
    outcomes = list(zip(names, codes, strict=True))
    destroyed = sum(not code for _, code in outcomes)
    if destroyed:
        result.removed.append(_count(destroyed, "set"))
    result.problems.extend(f"the set {name}: {describe_error(code)}" for name, code in outcomes if code)


def _remove_table(family: Family, result: Result, *, write: bool) -> None:
    if not has_table(family):
        return
    if write:
        delete_table(family)
    result.removed.append(f"the nftables table kube-proxy of {family.label}")


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
