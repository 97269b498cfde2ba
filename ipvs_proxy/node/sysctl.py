"""The kernel settings that IPVS with masquerading needs, as desired state: read, compare, write what differs.

The list is kube-proxy's, with one deliberate difference. From Linux 5.9 on, kube-proxy leaves ``conn_reuse_mode``
alone, because the kernel's default of 1 has been right since then. Here it is set: a 0 that somebody left in
sysctl.conf survives reboots, and sends new connections from a reused client port to real servers that are gone.

Invariant: a setting that is right is never written. So a read-only ``/proc/sys`` is no obstacle on a node that has been
prepared. Nothing is set back at the end. As with kube-proxy, IPv6 forwarding is never changed, since turning it on also
turns router advertisements off; ``forwarding_problems`` reports where it is missing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from ipvs_proxy.netlink.errors import Unusable
from ipvs_proxy.node.problem import Problem

PROC_SYS: Final = Path("/proc/sys")

Version = tuple[int, int]


class Sysctl(NamedTuple):
    """A setting, and when it applies: to kernels from ``since`` up to but not including ``until``.

    With ``strict_arp`` it applies only if that is configured.
    """

    name: str
    value: str
    since: Version = (0, 0)
    until: Version | None = None
    strict_arp: bool = False

    def applies(self, kernel: Version, *, strict_arp: bool) -> bool:
        """Return whether the setting is wanted on this kernel."""
        return (
            self.since <= kernel and (self.until is None or kernel < self.until) and (strict_arp or not self.strict_arp)
        )


#: Documentation/networking/ipvs-sysctl.rst and ip-sysctl.rst of the kernel say what each of them does.
SYSCTLS: Final = (
    Sysctl("net/ipv4/vs/conntrack", "1"),
    Sysctl("net/ipv4/vs/conn_reuse_mode", "0", since=(4, 1), until=(5, 9)),
    Sysctl("net/ipv4/vs/conn_reuse_mode", "1", since=(5, 9)),
    Sysctl("net/ipv4/vs/expire_nodest_conn", "1"),
    Sysctl("net/ipv4/vs/expire_quiescent_template", "1"),
    Sysctl("net/ipv4/ip_forward", "1"),
    Sysctl("net/ipv4/conf/all/arp_ignore", "1", strict_arp=True),
    Sysctl("net/ipv4/conf/all/arp_announce", "2", strict_arp=True),
)


class SysctlChange(NamedTuple):
    """A setting that is not as it should be. ``name`` has slashes, as below ``/proc/sys``."""

    name: str
    found: str
    wanted: str

    @property
    def dotted_name(self) -> str:
        """The name as ``sysctl`` takes it."""
        return _dotted(self.name)

    def __str__(self) -> str:
        return f"sysctl {self.dotted_name} is {self.found}, wanted {self.wanted}"


def find_changes(*, strict_arp: bool = False, root: Path = PROC_SYS) -> list[SysctlChange]:
    """Return the settings that are not as they should be.

    Raises:
        Unusable: if a setting or the kernel's version cannot be read.

    """
    kernel = kernel_version(root)
    wanted = [sysctl for sysctl in SYSCTLS if sysctl.applies(kernel, strict_arp=strict_arp)]
    found = [_read(root, sysctl.name) for sysctl in wanted]
    return [
        SysctlChange(sysctl.name, value, sysctl.value)
        for sysctl, value in zip(wanted, found, strict=True)
        if value != sysctl.value
    ]


def make_changes(*, strict_arp: bool = False, root: Path = PROC_SYS) -> list[SysctlChange]:
    """Write the settings that are not as they should be; return what was changed.

    Raises:
        Unusable: if a setting cannot be read or written. Those before it in the list have been written by then.

    """
    changes = find_changes(strict_arp=strict_arp, root=root)
    for change in changes:
        _write(root, change)
    return changes


def kernel_problems(root: Path = PROC_SYS) -> list[Problem]:
    """Return what in this kernel may keep traffic from flowing, whatever its settings.

    Raises:
        Unusable: if its version cannot be read.

    """
    kernel = kernel_version(root)
    if kernel >= (5, 9):
        return []
    text = (
        f"Linux {kernel[0]}.{kernel[1]} cannot balance a reused client port well: such connections are delayed "
        "by a second or sent to an endpoint that is gone"
    )
    return [Problem(text, "use Linux 5.9 or later")]


def forwarding_problems(root: Path = PROC_SYS) -> list[Problem]:
    """Return a problem if IPv6 is not forwarded, which matters once Services use it.

    Raises:
        Unusable: if the setting cannot be read.

    """
    name = "net/ipv6/conf/all/forwarding"
    if _read(root, name) != "0":
        return []
    text = (
        f"sysctl {_dotted(name)} is 0: the answers of IPv6 endpoints are not forwarded to clients in pods or on "
        "other hosts"
    )
    return [Problem(text, f"set it to 1 if this node serves them (sysctl -w {_dotted(name)}=1)")]


def kernel_version(root: Path = PROC_SYS) -> Version:
    """Return the kernel's major and minor version.

    Raises:
        Unusable: if it cannot be read.

    """
    release = _read(root, "kernel/osrelease")
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None:
        raise Unusable(f"{root}/kernel/osrelease says {release!r}, which is no version of Linux")
    return int(found[1]), int(found[2])


def _read(root: Path, name: str) -> str:
    path = root / name
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        remedy = (
            "load the module ip_vs; conntrack needs a kernel with CONFIG_IP_VS_NFCT"
            if name.startswith("net/ipv4/vs/")
            else f"mount {PROC_SYS} of the node's network namespace"
        )
        raise Unusable(f"sysctl {_dotted(name)} does not exist", remedy) from None
    except OSError as error:
        raise Unusable(f"sysctl {_dotted(name)} cannot be read from {path}: {error.strerror}") from error


def _write(root: Path, change: SysctlChange) -> None:
    try:
        (root / change.name).write_text(change.wanted, encoding="ascii")
    except OSError as error:
        raise Unusable(
            f"{change}, and cannot be written ({error.strerror})",
            f"set it on the node (sysctl -w {change.dotted_name}={change.wanted}), or run this agent with {PROC_SYS} "
            "writable",
        ) from error


def _dotted(name: str) -> str:
    return name.replace("/", ".")
