"""What a migration finds on a node: the pieces of the kernel, what kube-proxy left, what is of others, who is at work.

Nothing is written. To find out whether the kernel has a piece it is asked for it, which may load a module (see
``preflight``), and a scheduler is tried on an address of TEST-NET-2 for a moment, as kube-proxy does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ipvs_proxy.kernel.filter.ipset.names import definitions, name_of
from ipvs_proxy.kernel.filter.ipset.table import Sets
from ipvs_proxy.kernel.filter.iptables.iptables_mode import chains_of
from ipvs_proxy.kernel.filter.iptables.programs import Iptables, MissingNfTables, choose_variant, installed_variants
from ipvs_proxy.kernel.filter.iptables.removal import is_ours_beside_iptables_mode, removal
from ipvs_proxy.kernel.filter.iptables.saved import parse
from ipvs_proxy.kernel.filter.nft.table import has_table
from ipvs_proxy.kernel.ipvs.table import Ipvs
from ipvs_proxy.kernel.links.addresses import Addresses
from ipvs_proxy.netlink.errors import Unusable
from ipvs_proxy.node import instances, processes, requirements, sysctl
from ipvs_proxy.node.processes import Process
from ipvs_proxy.plan import ownership
from ipvs_proxy.plan.difference import KernelTables
from ipvs_proxy.plan.tables import Family, VirtualServerKey, family_of

#: The chain of a port of a Service in kube-proxy's iptables mode.
_SERVICE_CHAIN: Final = "\n:KUBE-SVC-"


@dataclass(slots=True, kw_only=True)
class Survey:
    """What there is.

    ``missing`` are lines with a piece that is missing or occupied, and the remedy. ``iptables_mode`` and ``ipvs_mode``
    count the chains that only that mode has, by family label and variant of iptables (``("IPv4", "legacy")``).
    ``schedulers`` counts the virtual servers that are ours by their scheduler; ``foreign`` names those of others.
    ``holders`` are who listens on the TCP ports that were asked about. ``served`` are our virtual servers, ``tables``
    our addresses and sets, and ``rules`` what ``iptables-save`` prints, by family and variant.
    """

    kernel: str = ""
    missing: list[str] = field(default_factory=list)
    unsupported: Mapping[Family, str] = field(default_factory=dict)
    iptables: Iptables | None = None
    iptables_mode: dict[tuple[str, str], int] = field(default_factory=dict)
    ipvs_mode: dict[tuple[str, str], int] = field(default_factory=dict)
    nftables_mode: tuple[Family, ...] = ()
    link: bool = False
    addresses: int = 0
    sets: int = 0
    schedulers: Counter[str] = field(default_factory=Counter)
    foreign: list[str] = field(default_factory=list)
    sysctls: list[sysctl.Change] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    agent: bool = False
    kube_proxy: Process | None = None
    holders: dict[int, Process] = field(default_factory=dict)
    served: list[VirtualServerKey] = field(default_factory=list)
    tables: KernelTables = field(default_factory=KernelTables)
    rules: dict[tuple[Family, str], str] = field(default_factory=dict)


def survey(*, scheduler: str, strict_arp: bool, ports: Collection[int]) -> Survey:
    """Look at the node, in the network namespace of this thread.

    Raises:
        Unusable: if this is no Linux, or if tables may not be read here.
        OSError, ValueError: if the kernel refuses to be read, or gives garbage.

    """
    requirements.require_linux()
    requirements.require_capabilities()
    found = Survey(
        kernel=".".join(map(str, sysctl.kernel_version())),
        agent=instances.is_running(),
        kube_proxy=processes.running_kube_proxy(),
        nftables_mode=tuple(family for family in Family if has_table(family)),
    )
    for port in ports:
        holder = processes.holder_of(port)
        if holder is not None:
            found.holders[port] = holder
    _attempt(found, requirements.require_dummy)
    ledger = found.tables = _read_ledger(found)
    if _attempt(found, requirements.require_ipvs):
        _attempt(found, _read_ipvs, found, ledger, scheduler)
        _attempt(found, _read_sysctls, found, strict_arp)
    _attempt(found, _read_rules, found)
    if Path("/proc/net/if_inet6").exists():
        _attempt(found, _read_forwarding, found)
    return found


def _attempt(found: Survey, look: Callable[..., None], *arguments: Any) -> bool:
    """Look at something; note what is missing, and tell whether nothing is."""
    try:
        look(*arguments)
    except Unusable as error:
        found.missing.append(str(error))
        return False
    return True


def _read_ledger(found: Survey) -> KernelTables:
    """Read what tells which virtual servers are ours."""
    ledger = KernelTables()

    def read_link() -> None:
        with closing(Addresses()) as addresses:
            ledger.addresses = addresses.read()
            found.addresses = len(ledger.addresses)
            found.link = addresses.has_link()

    def read_sets() -> None:
        with closing(Sets(definitions())) as sets:
            present = sets.present()
            ledger.entries = sets.read()
            found.sets = len(present)
            unfit = [name for name in present if name not in map(name_of, ledger.entries)]
        found.missing += [
            f"the set {name} is of another type than kube-proxy's: delete it (ipset destroy {name})" for name in unfit
        ]

    _attempt(found, read_link)
    _attempt(found, read_sets)
    return ledger


def _read_ipvs(found: Survey, ledger: KernelTables, scheduler: str) -> None:
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


def _read_sysctls(found: Survey, strict_arp: bool) -> None:
    found.sysctls = sysctl.drift(strict_arp=strict_arp)
    found.warnings = sysctl.kernel_warnings()


def _read_forwarding(found: Survey) -> None:
    """Read whether IPv6 is forwarded, if Services use it: ours, or kube-proxy's in another mode."""
    used = any(family_of(key.address) is Family.IPV6 for key in found.served)
    of_iptables_mode = any(
        _SERVICE_CHAIN in rules for (family, _), rules in found.rules.items() if family is Family.IPV6
    )
    if used or of_iptables_mode or Family.IPV6 in found.nftables_mode:
        found.warnings += sysctl.forwarding_warnings()


def _read_rules(found: Survey) -> None:
    found.iptables = choose_variant()
    families, found.unsupported = requirements.supported_families(found.iptables)
    for family in families:
        _attempt(found, requirements.require_set_match, family)
    for variant in installed_variants():
        for family in families:
            with suppress(MissingNfTables):
                _count_chains(found, variant, family)


def _count_chains(found: Survey, variant: Iptables, family: Family) -> None:
    saved = found.rules[family, variant.backend] = variant.save(family)
    where = family.label, variant.backend
    of_iptables_mode = sum(map(len, chains_of(parse(saved)).values()))
    of_ipvs_mode = removal(parse(saved), is_ours_beside_iptables_mode)
    if of_iptables_mode:
        found.iptables_mode[where] = of_iptables_mode
    if of_ipvs_mode.chains or of_ipvs_mode.kept:
        found.ipvs_mode[where] = of_ipvs_mode.chains + len(of_ipvs_mode.kept)
