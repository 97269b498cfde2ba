"""What the agent requires of a node: it is checked before anything is touched.

The first piece that is missing ends the start with one line. Every check asks the kernel or a program to do the thing
itself, or the nearest thing that leaves no trace. Lists of modules are not read: they leave out what is built in,
differ between distributions, and do not exist in a container.
"""

from __future__ import annotations

import subprocess
import sys
from errno import ENOENT, EOPNOTSUPP
from pathlib import Path
from shutil import which
from struct import pack
from typing import Final, NamedTuple

from ipvs_proxy.kernel.filter.backend import AUTO, NFTABLES
from ipvs_proxy.kernel.filter.ipset.table import Sets, describe_error
from ipvs_proxy.kernel.filter.iptables.programs import Iptables, choose_variant
from ipvs_proxy.kernel.filter.nftables.sets import open_netfilter
from ipvs_proxy.kernel.ipvs.table import Ipvs
from ipvs_proxy.kernel.links.codec import encode_new_dummy
from ipvs_proxy.netlink.errors import SHORTAGES, Busy, MissingPiece, Unusable, is_passing
from ipvs_proxy.netlink.socket import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket
from ipvs_proxy.netlink.wire import Request, attribute, text_attribute
from ipvs_proxy.plan.tables import Family

PROC: Final = Path("/proc")

#: Bits of linux/capability.h. NET_RAW: iptables asks ipset about a set through a raw socket, and its legacy variant
#: opens one for every table.
_CAPABILITIES: Final = {"NET_ADMIN": 1 << 12, "NET_RAW": 1 << 13}
_LINK_ADDRESS: Final = 1  # IFLA_ADDRESS of linux/if_link.h
#: NFNL_SUBSYS_NFT_COMPAT and NFNL_MSG_COMPAT_GET of linux/netfilter.
_GET_EXTENSION: Final = 11 << 8

_MODULES_PACKAGE: Final = "or install the package that has all of the kernel's modules"


class Host(NamedTuple):
    """What the checks found: the programs to use, the families that work, and why a family does not.

    ``iptables`` is ``None`` if nftables is the packet filter.
    """

    iptables: Iptables | None
    families: tuple[Family, ...]
    unsupported: dict[Family, str]


def require_all(packet_filter: str = AUTO) -> Host:
    """Check everything, in the order in which it is needed, in the network namespace of this thread.

    ``packet_filter`` is the setting. It is for the caller to decide whether the families that work are enough.

    Raises:
        MissingPiece: for the first piece that is missing.
        Unusable: if a piece is there but does not work.

    """
    require_linux()
    require_capabilities()
    require_ipvs()
    require_dummy()
    if packet_filter == NFTABLES:
        require_nftables()
        return Host(None, *supported_families(None))
    require_ipset()
    iptables = choose_variant()
    families, unsupported = supported_families(iptables)
    for family in families:
        require_set_match(family)
    return Host(iptables, families, unsupported)


def require_linux(platform: str = sys.platform) -> None:
    """Make sure that this is Linux."""
    if platform != "linux":
        raise MissingPiece(f"this system is {platform}, not Linux", "IPVS is a part of the Linux kernel, run it there")


def require_capabilities(proc: Path = PROC) -> None:
    """Make sure that this process may change networks and open raw sockets, here and now (CapEff of proc(5))."""
    status = (proc / "self/status").read_text(encoding="ascii", errors="replace")
    effective = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0")
    missing = [name for name, bit in _CAPABILITIES.items() if not int(effective, 16) & bit]
    if missing:
        raise MissingPiece(
            f"the {'capability' if len(missing) == 1 else 'capabilities'} {' and '.join(f'CAP_{n}' for n in missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing",
            f"run as root, in a container with securityContext.capabilities.add: [{', '.join(_CAPABILITIES)}]",
        )


def require_ipvs() -> None:
    """Make sure that the kernel has IPVS and lets us use it, loading its module if need be."""
    try:
        Ipvs().close()
    except MissingPiece:
        _load_ipvs()
        Ipvs().close()


def require_dummy() -> None:
    """Make sure that the kernel can make dummy links, without making one.

    The driver is asked for a link with an impossible address, which it refuses (``dummy_validate`` of
    drivers/net/dummy.c); a kernel without the driver answers something else.
    """
    request = encode_new_dummy("ipvs-probe")
    request = request._replace(payload=request.payload + attribute(_LINK_ADDRESS, bytes(6)))
    with NetlinkSocket(NETLINK_ROUTE) as socket:
        (code,) = socket.execute([request])
    if code in SHORTAGES:
        raise Busy(f"the kernel cannot be asked for dummy links: {describe_error(code)}")
    if code == EOPNOTSUPP:
        raise MissingPiece(
            "the kernel has no dummy links", f"load the module dummy on the node (modprobe dummy), {_MODULES_PACKAGE}"
        )


def require_ipset() -> None:
    """Make sure that the kernel has ipset and lets us use it."""
    Sets([]).close()


def require_nftables() -> None:
    """Make sure that the kernel has nf_tables and lets us use it, and that there is a program to write rules with."""
    open_netfilter().close()
    if not which("nft"):
        raise MissingPiece("the program nft was not found in PATH", "install the package nftables")


def require_set_match(family: Family) -> None:
    """Make sure that rules can refer to sets.

    A kernel without nf_tables cannot be asked; there the first write of the rules fails instead.
    """
    if not has_extension("set", family):
        raise MissingPiece(
            "the kernel lacks the iptables extension set",
            f"load the module xt_set on the node (modprobe xt_set), {_MODULES_PACKAGE}",
        )


def has_extension(name: str, family: Family) -> bool:
    """Return whether the kernel has an iptables match, loading its module if need be; true if it cannot be asked."""
    payload = pack("=BBH", family, 0, 0) + text_attribute(1, name) + attribute(2, bytes(4)) + attribute(3, bytes(4))
    with NetlinkSocket(NETLINK_NETFILTER) as socket:
        try:
            socket.ask(Request(_GET_EXTENSION, payload))
        except OSError as error:
            return error.errno != ENOENT
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


def _load_ipvs() -> None:
    """Try to load IPVS. It may be built in, and a container may have no modprobe: the caller sees whether it helped."""
    try:
        subprocess.run(["modprobe", "-a", "ip_vs"], check=False, capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
