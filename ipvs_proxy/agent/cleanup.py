"""Takes away from a node what this agent keeps there, and on request what kube-proxy left in any mode; nothing else.

What is ours is what the agent itself would take over: see ``plan.ownership``. Chains and sets have kube-proxy's names,
so what its IPVS mode left goes as well. Foreign virtual servers, rules, sets and addresses stay; a chain of ours that a
rule of somebody else leads to stays too, empty. Sysctls and modules are left as they are, as kube-proxy leaves them.

The order lets no packet reach what it must not: addresses go first, so that nothing on the node answers for a Service,
then virtual servers, then the rules that guarded them, then the sets that rules referred to. Every step is tried,
whatever became of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ipvs_proxy.kernel.addresses import LINK, Addresses
from ipvs_proxy.kernel.errors import MissingPiece, Unusable
from ipvs_proxy.kernel.iptables import Iptables, installed_variants
from ipvs_proxy.kernel.iptables_render import RuleSettings
from ipvs_proxy.kernel.ipvs import Ipvs
from ipvs_proxy.kernel.leftovers import Leftovers
from ipvs_proxy.kernel.rules import IptablesRules
from ipvs_proxy.kernel.sets import Sets, describe_error
from ipvs_proxy.plan import ownership
from ipvs_proxy.plan.difference import KernelTables
from ipvs_proxy.plan.sets import definitions
from ipvs_proxy.plan.tables import Family, Verb, VirtualServer, VirtualServerOperation

_FAULTS = (OSError, ValueError, Unusable)


class Step(NamedTuple):
    """One kind of thing to remove: what there is of it, in words, and how it is removed."""

    found: str
    remove: Callable[[], object]


class Report(NamedTuple):
    """What was removed, or is to be, what stays because it is of others, and what could not be removed."""

    removed: list[str]
    kept: list[str]
    failures: list[str]


def clean_up(*, kube_proxy: bool, dry_run: bool) -> Report:
    """Remove everything; with ``dry_run`` only look.

    Raises:
        Unusable: if the node cannot be looked at, such as without the capability CAP_NET_ADMIN.

    """
    steps, kept, failures = _look(kube_proxy=kube_proxy)
    removed: list[str] = []
    for step in steps:
        try:
            if not dry_run:
                step.remove()
            removed.append(step.found)
        except _FAULTS as error:
            failures.append(f"{step.found}: {error}")
    return Report(removed, kept, failures)


def _look(*, kube_proxy: bool) -> tuple[list[Step], list[str], list[str]]:
    """Look for everything before anything is removed: what is ours is told by the other tables."""
    families = tuple(Family) if Path("/proc/net/if_inet6").exists() else (Family.IPV4,)
    addresses = Addresses()
    sets = Sets([definition for family in Family for definition in definitions(family).values()])
    tables = KernelTables(addresses=addresses.read(), entries=sets.read())
    steps: list[Step] = []
    if addresses.has_link():
        steps.append(Step(f"the link {LINK} with {_count(tables.addresses, 'address', 'es')}", addresses.delete_link))
    ours, foreign = _virtual_servers(tables)
    if ours:
        real_servers = [key for server in ours for key in server.real_servers]
        found = f"{_count(ours, 'virtual server')} with {_count(real_servers, 'real server')}"
        steps.append(Step(found, partial(_delete_virtual_servers, ours)))
    failures: list[str] = []
    for iptables in installed_variants():
        for family in families:
            try:
                steps += _rules(iptables, family, kube_proxy=kube_proxy)
            except _FAULTS as error:
                failures.append(f"the rules of {family.label} in {iptables.backend}: {error}")
    if tables.entries:
        steps.append(Step(_count(tables.entries, "ipset"), partial(_destroy, sets, list(tables.entries))))
    kept = [f"{_count(foreign, 'virtual server')} of others"] if foreign else []
    return steps, kept, failures


def _virtual_servers(tables: KernelTables) -> tuple[list[VirtualServer], list[VirtualServer]]:
    """Give the virtual servers that are ours, and the others; none where the kernel has no IPVS."""
    try:
        found = Ipvs().read().virtual_servers
    except MissingPiece:
        return [], []
    ours = {key: server for key, server in found.items() if ownership.is_ours(key, tables)}
    return list(ours.values()), [server for key, server in found.items() if key not in ours]


def _delete_virtual_servers(servers: Sequence[VirtualServer]) -> None:
    results = Ipvs().apply([VirtualServerOperation(Verb.DELETE, server) for server in servers])
    _require(zip(map(str, (server.key for server in servers)), results, strict=True))


def _rules(iptables: Iptables, family: Family, *, kube_proxy: bool) -> list[Step]:
    """Give the steps for the rules of one family in one of iptables' two worlds."""
    steps: list[Step] = []
    rules = IptablesRules(family, RuleSettings(), iptables=iptables)
    chains = rules.read().chains
    where = f"of {family.label} in {iptables.backend}"
    if chains:
        steps.append(Step(f"{_count(chains, 'chain')} {where}", rules.cleanup))
    if kube_proxy:
        leftovers = Leftovers(iptables, (family,))
        found = leftovers.find()
        if found:
            steps.append(Step(f"{'; '.join(found)} ({iptables.backend})", leftovers.remove))
    return steps


def _destroy(sets: Sets, names: Sequence[str]) -> None:
    _require(zip(names, sets.destroy(names), strict=True))


def _require(results: Iterable[tuple[str, int]]) -> None:
    """Raise for all that failed together."""
    failed = [f"{name}: {describe_error(code)}" for name, code in results if code]
    if failed:
        raise Unusable("; ".join(failed))


def _count(things: Iterable[object], word: str, plural: str = "s") -> str:
    number = len(list(things))
    return f"{number} {word}{'' if number == 1 else plural}"
