"""What a node has for ``doctor`` and ``migrate``: pieces of the kernel, what kube-proxy left, what others have.

Nothing is written. To find out whether the kernel has a piece it is asked for it, which may load a module (see
``requirements``), and a scheduler is tried on an address of TEST-NET-2 for a moment, as kube-proxy does.

Facts are fields: what is wrong and what helps come from the error that was raised, never from a split of its text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ipvs_proxy.kernel.filter import predecessors
from ipvs_proxy.kernel.filter.backend import AUTO
from ipvs_proxy.kernel.filter.beside import read_names
from ipvs_proxy.kernel.filter.ipset.names import definitions, name_of
from ipvs_proxy.kernel.filter.ipset.table import Sets
from ipvs_proxy.kernel.filter.iptables.iptables_mode import chains_of
from ipvs_proxy.kernel.filter.iptables.programs import NF_TABLES, Iptables, MissingNfTables, installed_variants
from ipvs_proxy.kernel.filter.iptables.removal import (
    are_beside_kube_proxy,
    is_of_ipvs_mode,
    is_ours_beside_iptables_mode,
    removal,
)
from ipvs_proxy.kernel.filter.iptables.saved import Saved, parse
from ipvs_proxy.kernel.filter.nftables.tables import has_kube_proxy_table, read_chains_before_ours
from ipvs_proxy.kernel.ipvs.table import Ipvs
from ipvs_proxy.kernel.links.addresses import Addresses
from ipvs_proxy.netlink.errors import MissingPiece, Unusable
from ipvs_proxy.node import instances, packet_filters, processes, requirements, sysctl
from ipvs_proxy.node.problem import Problem
from ipvs_proxy.node.processes import Process
from ipvs_proxy.plan import ownership
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.tables import Family, VirtualServerKey, family_of

#: The chain of a port of a Service in kube-proxy's iptables mode.
_SERVICE_CHAIN: Final = "\n:KUBE-SVC-"


@dataclass(slots=True, kw_only=True)
class Inventory:
    """What there is.

    ``kernel`` is the major and minor version. ``missing`` has the pieces that are missing, occupied or broken,
    ``flaws`` what else may keep traffic from flowing. ``unsupported`` says why a family cannot be served.
    ``packet_filter`` is the one that a start would choose now, and ``reason`` why; empty if none works.
    ``iptables_mode`` and ``ipvs_mode`` count the chains that only that mode has, by family label and variant of
    iptables (``("IPv4", "legacy")``). ``beside`` is whether there are rules of ours as they are beside a kube-proxy in
    another mode. ``sets`` counts the ipsets that are there, ``table`` is whether our table of nftables is, and
    ``before_ours`` are chains of others that decide before its.
    ``schedulers`` counts the virtual servers that are ours by their scheduler; ``foreign`` names those of others.
    ``holders`` are who listens on the TCP ports that were asked about. ``served`` are our virtual servers, ``tables``
    our addresses and sets, and ``rules`` what ``iptables-save`` prints, by family and variant.
    """

    kernel: sysctl.Version = (0, 0)
    missing: list[Problem] = field(default_factory=list)
    unsupported: Mapping[Family, str] = field(default_factory=dict)
    packet_filter: str = ""
    reason: str = ""
    iptables: Iptables | None = None
    beside: bool = False
    iptables_mode: dict[tuple[str, str], int] = field(default_factory=dict)
    ipvs_mode: dict[tuple[str, str], int] = field(default_factory=dict)
    nftables_mode: tuple[Family, ...] = ()
    link: bool = False
    addresses: int = 0
    sets: int = 0
    table: bool = False
    before_ours: list[str] = field(default_factory=list)
    schedulers: Counter[str] = field(default_factory=Counter)
    foreign: list[str] = field(default_factory=list)
    sysctls: list[sysctl.SysctlChange] = field(default_factory=list)
    flaws: list[Problem] = field(default_factory=list)
    agent: bool = False
    kube_proxy: Process | None = None
    holders: dict[int, Process] = field(default_factory=dict)
    served: list[VirtualServerKey] = field(default_factory=list)
    tables: KernelTables = field(default_factory=KernelTables)
    rules: dict[tuple[Family, str], str] = field(default_factory=dict)


def take_inventory(*, scheduler: str, strict_arp: bool, ports: Collection[int], packet_filter: str = AUTO) -> Inventory:
    """Look at the node, in the network namespace of this thread.

    ``scheduler``, ``strict_arp`` and ``packet_filter`` are the settings that the agent has or will have; ``ports``
    are TCP ports whose holders are looked for.

    Raises:
        Unusable: if this is no Linux, or if tables may not be read here.
        OSError, ValueError: if the kernel refuses to be read, or gives garbage.

    """
    requirements.require_linux()
    requirements.require_capabilities()
    found = Inventory(
        kernel=sysctl.kernel_version(),
        agent=instances.any_running(),
        kube_proxy=processes.running_kube_proxy(),
        nftables_mode=tuple(family for family in Family if has_kube_proxy_table(family)),
    )
    for port in ports:
        holder = processes.holder_of(port)
        if holder is not None:
            found.holders[port] = holder
    attempt(found, requirements.require_dummy)
    ledger = found.tables = _read_ledger(found)
    if attempt(found, requirements.require_ipvs):
        attempt(found, _read_ipvs, found, ledger, scheduler)
        attempt(found, _read_sysctls, found, strict_arp)
    attempt(found, _read_rules, found, packet_filter)
    # The table of nftables has the same name beside a kube-proxy; alone, nothing of that one's other modes is left.
    others = found.iptables_mode or found.nftables_mode
    found.beside |= found.table and bool(others) and not (found.sets or found.ipvs_mode)
    if Path("/proc/net/if_inet6").exists():
        attempt(found, _read_forwarding, found)
    return found


def attempt(found: Inventory, look: Callable[..., None], *arguments: Any) -> bool:
    """Look at something and note what is missing; return whether nothing is."""
    try:
        look(*arguments)
    except Unusable as error:
        found.missing.append(Problem(error.piece, error.remedy))
        return False
    return True


def _read_ledger(found: Inventory) -> KernelTables:
    """Read the addresses and sets that say which virtual servers are ours."""
    ledger = KernelTables()

    def read_link() -> None:
        with closing(Addresses()) as addresses:
            ledger.addresses = addresses.read()
            found.addresses = len(ledger.addresses)
            found.link = addresses.has_link()

    def read_sets() -> None:
        try:
            opened = Sets(definitions())
        except MissingPiece:  # a problem only if it is to be used
            return
        with closing(opened) as sets:
            present = sets.present()
            members = sets.read()
            ledger.entries |= members
            found.sets += len(present)
            unfit = [name for name in present if name not in map(name_of, members)]
        found.missing += [
            Problem(f"the set {name} is of another type than kube-proxy's", f"delete it (ipset destroy {name})")
            for name in unfit
        ]

    def read_table() -> None:
        members = predecessors.read_table()
        found.table = bool(members)
        found.before_ours = read_chains_before_ours() if members else []
        for role, entries in members.items():
            ledger.entries[role] = ledger.entries.get(role, set()) | entries

    attempt(found, read_link)
    attempt(found, read_sets)
    attempt(found, read_table)
    return ledger


def _read_ipvs(found: Inventory, ledger: KernelTables, scheduler: str) -> None:
    with closing(Ipvs()) as ipvs:
        table, is_ours = ipvs.read_virtual_servers(), ownership.ledger(ledger)
        for key, server in table.virtual_servers.items():
            if is_ours(key):
                found.schedulers[server.scheduler] += 1
                found.served.append(key)
            else:
                found.foreign.append(str(key))
        found.foreign += [
            f"mark {other.fwmark}" if other.fwmark else f"protocol {other.protocol}" for other in table.foreign
        ]
        if not any(server.scheduler == scheduler for server in table.virtual_servers.values()):
            ipvs.probe_scheduler(scheduler)


def _read_sysctls(found: Inventory, strict_arp: bool) -> None:
    found.sysctls = sysctl.find_changes(strict_arp=strict_arp)
    found.flaws = sysctl.kernel_problems()


def _read_forwarding(found: Inventory) -> None:
    """Read whether IPv6 is forwarded, if Services use it: ours, or kube-proxy's in another mode."""
    used = any(family_of(key.address) is Family.IPV6 for key in found.served)
    of_iptables_mode = any(
        _SERVICE_CHAIN in rules for (family, _), rules in found.rules.items() if family is Family.IPV6
    )
    if used or of_iptables_mode or Family.IPV6 in found.nftables_mode:
        found.flaws += sysctl.forwarding_problems()


def _read_rules(found: Inventory, packet_filter: str) -> None:
    """Read the rules of all variants of iptables; where there are no programs, the names of the kernel's chains."""
    attempt(found, _choose, found, packet_filter)
    families = [family for family in Family if family not in found.unsupported]
    try:
        variants = installed_variants()
    except MissingPiece:
        for family in families:
            _count_chains(found, (family.label, NF_TABLES), read_names(family))
        return
    for variant in variants:
        for family in families:
            with suppress(MissingNfTables):
                saved = found.rules[family, variant.backend] = variant.save(family)
                _count_chains(found, (family.label, variant.backend), parse(saved))


def _choose(found: Inventory, packet_filter: str) -> None:
    host = packet_filters.choose(packet_filter)
    found.packet_filter, found.reason = host.packet_filter, host.reason
    found.iptables, found.unsupported = host.iptables, host.unsupported


def _count_chains(found: Inventory, where: tuple[str, str], saved: Saved) -> None:
    of_iptables_mode = sum(map(len, chains_of(saved).values()))
    of_ipvs_mode = removal(saved, is_of_ipvs_mode if are_beside_kube_proxy(saved) else is_ours_beside_iptables_mode)
    found.beside = found.beside or are_beside_kube_proxy(saved)
    if of_iptables_mode:
        found.iptables_mode[where] = of_iptables_mode
    if of_ipvs_mode.chains or of_ipvs_mode.kept:
        found.ipvs_mode[where] = of_ipvs_mode.chains + len(of_ipvs_mode.kept)
