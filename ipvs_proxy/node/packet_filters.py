"""Which packet filter this node gets, and what each needs of it.

``auto`` goes by what is there already: an agent that starts again, or takes over from kube-proxy, stays with what has
served the Services until now. Where nothing is there, iptables is the choice if all of it works, as it has been with
kube-proxy; else nftables. What hangs or is short of something is no reason to choose another one.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import ENOENT, EPROTONOSUPPORT
from pathlib import Path
from shutil import which
from struct import pack
from typing import Final, NamedTuple

from ipvs_proxy.kernel.filter import predecessors
from ipvs_proxy.kernel.filter.backend import AUTO, IPTABLES, NFTABLES
from ipvs_proxy.kernel.filter.ipset.table import Sets
from ipvs_proxy.kernel.filter.iptables.programs import NF_TABLES, Iptables, choose_variant
from ipvs_proxy.kernel.filter.nftables.names import TABLE_NAME
from ipvs_proxy.kernel.filter.nftables.sets import open_netfilter
from ipvs_proxy.kernel.filter.nftables.tables import has_kube_proxy_table, has_own_table
from ipvs_proxy.netlink.errors import MODULES_PACKAGE, MissingPiece, Unusable, is_passing
from ipvs_proxy.netlink.socket import NETLINK_NETFILTER, NetlinkSocket
from ipvs_proxy.netlink.wire import Request, attribute, text_attribute
from ipvs_proxy.plan.tables import Family

PROC: Final = Path("/proc")
#: NFNL_SUBSYS_NFT_COMPAT and NFNL_MSG_COMPAT_GET of linux/netfilter.
_GET_EXTENSION: Final = 11 << 8
#: The modules of the matches and targets of our rules that nf_tables has nothing of its own for.
_MATCHES: Final = {"set": "xt_set", "addrtype": "xt_addrtype", "conntrack": "xt_conntrack"}
_TARGETS: Final = {"MASQUERADE": "xt_MASQUERADE", "MARK": "xt_mark"}


class Host(NamedTuple):
    """What the checks found: the programs to use, the families that work, and why a family does not.

    ``iptables`` is ``None`` if nftables is the packet filter; ``reason`` says why it is which.
    """

    iptables: Iptables | None
    families: tuple[Family, ...]
    unsupported: dict[Family, str]
    reason: str = ""

    @property
    def packet_filter(self) -> str:
        """The packet filter, in the words of the setting."""
        return NFTABLES if self.iptables is None else IPTABLES


def may_use_iptables(setting: str) -> bool:
    """Return whether iptables is the packet filter, or may turn out to be."""
    return setting == IPTABLES or (setting == AUTO and not has_own_table())


def choose(setting: str) -> Host:
    """Choose the packet filter, as the setting says, and make sure that it works.

    Raises:
        MissingPiece: if a piece of it is missing; with ``auto``, if one is missing for either.
        Unusable: if a piece is there but does not work.

    """
    if setting != AUTO:
        return _require_chosen(setting)
    first, reason = _find_traces() or (IPTABLES, "iptables and ipset work here")
    other = NFTABLES if first == IPTABLES else IPTABLES
    try:
        return _REQUIRE[first](reason)
    except MissingPiece as error:
        if is_passing(error):
            raise
        try:
            return _REQUIRE[other](f"{first} does not work here: {error}")
        except MissingPiece as also:
            raise MissingPiece(f"{error.piece}, and {also.piece}", f"{error.remedy}; or {also.remedy}") from also


def _require_chosen(setting: str) -> Host:
    try:
        return _REQUIRE[setting]("the setting says so")
    except MissingPiece as error:
        other = NFTABLES if setting == IPTABLES else IPTABLES
        try:
            _REQUIRE[other]("")
        except Unusable:
            raise error from None
        remedy = f"{error.remedy}; or use --packet-filter {other}, all of which is here"
        raise MissingPiece(error.piece, remedy) from error


def _find_traces() -> tuple[str, str] | None:
    """Return the packet filter that has served this node until now, and what shows it."""
    if has_own_table():
        return NFTABLES, f"the table {TABLE_NAME} of an earlier agent is here"
    if predecessors.count_sets():
        return IPTABLES, "the ipsets of an earlier agent, or of kube-proxy's IPVS mode, are here"
    if predecessors.has_chains():
        return IPTABLES, "kube-proxy's chains of iptables are here"
    if any(map(has_kube_proxy_table, Family)):
        return NFTABLES, "the table of kube-proxy's nftables mode is here"
    return None


def _require_iptables(reason: str) -> Host:
    require_ipset()
    iptables = choose_variant()
    families, unsupported = supported_families(iptables)
    for family in families:
        require_extensions(iptables, family)
    return Host(iptables, families, unsupported, reason)


def _require_nftables(reason: str) -> Host:
    require_nftables()
    return Host(None, *supported_families(None), reason)


_REQUIRE: Final[dict[str, Callable[[str], Host]]] = {IPTABLES: _require_iptables, NFTABLES: _require_nftables}


def require_ipset() -> None:
    """Make sure that the kernel has ipset and lets us use it."""
    Sets([]).close()


def require_nftables() -> None:
    """Make sure that the kernel has nf_tables and lets us use it, and that there is a program to write rules with."""
    open_netfilter().close()
    if not which("nft"):
        raise MissingPiece("the program nft was not found in PATH", "install the package nftables")


def require_extensions(iptables: Iptables, family: Family) -> None:
    """Make sure that the kernel has the matches and targets of our rules.

    A kernel without ``nft_compat`` cannot be asked. The variant nf_tables cannot do without; where legacy is in use,
    the first write of the rules fails if one is missing.
    """
    for extensions, is_target in ((_MATCHES, False), (_TARGETS, True)):
        for name, module in extensions.items():
            has = has_extension(name, family, is_target=is_target)
            if has is None and iptables.backend == NF_TABLES:
                raise MissingPiece(
                    f"the kernel has no {family.label} extensions of iptables for nf_tables",
                    f"load the module nft_compat on the node (modprobe nft_compat), {MODULES_PACKAGE}",
                )
            if has is False:
                raise MissingPiece(
                    f"the kernel lacks the iptables extension {name}",
                    f"load the module {module} on the node (modprobe {module}), {MODULES_PACKAGE}",
                )


def has_extension(name: str, family: Family, *, is_target: bool = False) -> bool | None:
    """Return whether the kernel has a match or target, loading its module if need be; ``None`` if it cannot say."""
    payload = pack("=BBH", family, 0, 0) + text_attribute(1, name) + attribute(2, bytes(4))
    payload += attribute(3, is_target.to_bytes(4, "big"))
    with NetlinkSocket(NETLINK_NETFILTER) as socket:
        try:
            socket.ask(Request(_GET_EXTENSION, payload))
        except OSError as error:
            if error.errno == ENOENT:
                return False
            # It has another revision (EPROTONOSUPPORT of ``xt_find_revision``), or there is nobody to answer.
            return True if error.errno == EPROTONOSUPPORT else None
    return True


def supported_families(iptables: Iptables | None, *, proc: Path = PROC) -> tuple[tuple[Family, ...], dict[Family, str]]:
    """Return the families that can be served, IPv4 first, and for the others the reason why not.

    Without ``iptables``, which some hosts have for one family, all is a matter of the kernel's protocols.

    Raises:
        MissingPiece: if there is none.
        Unusable: if the kernel is short of something just now, so that this is not known.

    """
    unsupported: dict[Family, str] = {}
    if not (proc / "net/if_inet6").exists():
        unsupported[Family.IPV6] = "the kernel has no IPv6 (it is not built in, or off with ipv6.disable=1)"
    elif _text(proc / "sys/net/ipv6/conf/all/disable_ipv6") == "1":
        unsupported[Family.IPV6] = "sysctl net.ipv6.conf.all.disable_ipv6 is 1"
    for family in Family:
        if family not in unsupported and iptables is not None:
            try:
                iptables.check_nat(family)
            except Unusable as error:
                if is_passing(error):
                    raise
                unsupported[family] = str(error)
    families = tuple(family for family in Family if family not in unsupported)
    if not families:
        reasons = "; ".join(f"{family.label}: {unsupported[family]}" for family in Family)
        raise MissingPiece("neither IPv4 nor IPv6 can be served", reasons)
    return families, unsupported


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
