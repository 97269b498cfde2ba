"""Whose connections are masqueraded: what the configuration says about packet rules, whichever back end writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Final, NamedTuple

from ipvs_proxy.plan.marks import CLASS_BIT

#: kube-proxy's bit of the packet mark, unless the configuration has another one.
MASQUERADE_BIT: Final = 14
#: What both the kernel and iptables take as the name of a network interface.
_INTERFACE_NAME: Final = re.compile(r"[^\s/:+!\"'\\-][^\s/:+!\"'\\]*")
#: Bytes of a name without its NUL (``IFNAMSIZ`` in linux/if.h is 16); iptables' ``+`` for a prefix counts as one.
_INTERFACE_NAME_LENGTH: Final = 15


class Interface(NamedTuple):
    """The network interface through which local pods send; all whose names begin with ``name`` if ``is_prefix``."""

    name: str
    is_prefix: bool = False


def interface(name: str, *, is_prefix: bool = False) -> Interface:
    """Return a network interface.

    Raises:
        ValueError: the kernel or iptables would not take the name.

    """
    if not _INTERFACE_NAME.fullmatch(name) or len(name.encode()) + is_prefix > _INTERFACE_NAME_LENGTH:
        raise ValueError(f"{name!r} is not the name or prefix of a network interface")
    return Interface(name, is_prefix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Masquerading:
    """Which connections of one family are masqueraded, as the configuration and this node's Node say.

    ``masquerade_bit`` is the bit (0 to 31) of the packet mark that asks for masquerading. With ``masquerade_all``, all
    traffic to cluster IPs is masqueraded; otherwise that which does not come from ``local``, the pods of the cluster.
    Where ``local`` is ``None`` too, only what the node sends from a virtual server's address is. ``own_pods`` is the
    network of this node's pods, if it is known: where a traffic policy is ``Local``, clients in the cluster that are
    certainly on this node keep their address.

    Raises:
        ValueError: a value cannot be written as a rule.

    """

    masquerade_bit: int = MASQUERADE_BIT
    masquerade_all: bool = False
    local: IPv4Network | IPv6Network | Interface | None = None
    own_pods: IPv4Network | IPv6Network | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.masquerade_bit <= 31:
            raise ValueError(f"the masquerade bit is {self.masquerade_bit}: a packet mark has the bits 0 to 31")
        if isinstance(self.local, Interface):
            interface(self.local.name, is_prefix=self.local.is_prefix)

    @property
    def mark(self) -> str:
        """The mark as ``iptables-save`` prints it."""
        return hex(1 << self.masquerade_bit)

    @property
    def has_marks(self) -> bool:
        """Whether clients in the cluster get marks: not if the masquerade mark is the bit that classifies them."""
        return self.masquerade_bit != CLASS_BIT
