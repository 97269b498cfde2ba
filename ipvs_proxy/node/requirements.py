"""What the agent requires of a node: it is checked before anything is touched.

The first piece that is missing ends the start with one line. Every check asks the kernel or a program to do the thing
itself, or the nearest thing that leaves no trace. Lists of modules are not read: they leave out what is built in,
differ between distributions, and do not exist in a container.
"""

from __future__ import annotations

import subprocess
import sys
from errno import EOPNOTSUPP
from pathlib import Path
from typing import Final

from ipvs_proxy.kernel.filter.backend import AUTO
from ipvs_proxy.kernel.ipvs.table import Ipvs
from ipvs_proxy.kernel.links.codec import encode_new_dummy
from ipvs_proxy.netlink.errors import MODULES_PACKAGE, SHORTAGES, Busy, MissingPiece, describe
from ipvs_proxy.netlink.socket import NETLINK_ROUTE, NetlinkSocket
from ipvs_proxy.netlink.wire import attribute
from ipvs_proxy.node import packet_filters
from ipvs_proxy.node.packet_filters import Host

PROC: Final = Path("/proc")

#: Bits of linux/capability.h. NET_RAW: iptables asks ipset about a set through a raw socket, and its legacy variant
#: opens one for every table.
_CAPABILITIES: Final = (("NET_ADMIN", 1 << 12), ("NET_RAW", 1 << 13))
_LINK_ADDRESS: Final = 1  # IFLA_ADDRESS of linux/if_link.h


def require_all(packet_filter: str = AUTO) -> Host:
    """Check everything, in the order in which it is needed, in the network namespace of this thread.

    ``packet_filter`` is the setting. It is for the caller to decide whether the families that work are enough.

    Raises:
        MissingPiece: for the first piece that is missing.
        Unusable: if a piece is there but does not work.

    """
    require_linux()
    require_capabilities(packet_filter)
    require_ipvs()
    require_dummy()
    return packet_filters.choose(packet_filter)


def require_linux(platform: str = sys.platform) -> None:
    """Make sure that this is Linux."""
    if platform != "linux":
        raise MissingPiece(f"this system is {platform}, not Linux", "IPVS is a part of the Linux kernel, run it there")


def require_capabilities(packet_filter: str = AUTO, proc: Path = PROC) -> None:
    """Make sure that this process may change networks, and for iptables open raw sockets, here and now.

    Where it is still to be seen whether iptables is used, that counts as if it were.
    """
    # CapEff of proc(5)
    status = (proc / "self/status").read_text(encoding="ascii", errors="replace")
    effective = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0")
    needed = _CAPABILITIES if packet_filters.may_use_iptables(packet_filter) else _CAPABILITIES[:1]
    missing = [name for name, bit in needed if not int(effective, 16) & bit]
    if missing:
        raise MissingPiece(
            f"the {'capability' if len(missing) == 1 else 'capabilities'} {' and '.join(f'CAP_{n}' for n in missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing",
            f"run as root, in a container with securityContext.capabilities.add: "
            f"[{', '.join(name for name, _ in needed)}]",
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
        raise Busy(f"the kernel cannot be asked for dummy links: {describe(code)}")
    if code == EOPNOTSUPP:
        raise MissingPiece(
            "the kernel has no dummy links", f"load the module dummy on the node (modprobe dummy), {MODULES_PACKAGE}"
        )


def _load_ipvs() -> None:
    """Try to load IPVS. It may be built in, and a container may have no modprobe: the caller sees whether it helped."""
    try:
        subprocess.run(["modprobe", "-a", "ip_vs"], check=False, capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return
