"""Whose connections are masqueraded: what the configuration says of the packet rules, whoever writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Final, NamedTuple

from ipvs_proxy.plan.marks import CLASS_BIT

#: What the kernel and iptables both take as the name of a network interface.
_INTERFACE_NAME: Final = re.compile(r"[^\s/:+!\"'\\-][^\s/:+!\"'\\]*")
_INTERFACE_NAME_LENGTH: Final = 15


class Interface(NamedTuple):
    """The network interface, or with ``is_prefix`` all of that prefix, through which local pods send."""

    name: str
    is_prefix: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSettings:
    """What the configuration says about the rules of one family.

    ``masquerade_bit`` is the bit (0 to 31) of the packet mark that asks for masquerading. With ``masquerade_all`` all
    traffic to cluster IPs is masqueraded; without it, what does not come from ``local``; with neither, only what the
    node sends from a virtual server's address. ``own_pods`` is the network of this node's pods, if it is known: where
    the policy is ``Local``, clients in the cluster that are certainly on this node keep their address.

    Raises:
        ValueError: if a value cannot be written as a rule.

    """

    masquerade_bit: int = 14
    masquerade_all: bool = False
    local: IPv4Network | IPv6Network | Interface | None = None
    own_pods: IPv4Network | IPv6Network | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.masquerade_bit <= 31:
            raise ValueError(f"the masquerade bit is {self.masquerade_bit}: a packet mark has the bits 0 to 31")
        if isinstance(self.local, Interface):
            name, is_prefix = self.local
            if not _INTERFACE_NAME.fullmatch(name) or len(name.encode()) + is_prefix > _INTERFACE_NAME_LENGTH:
                raise ValueError(f"{name!r} is no name or prefix of a network interface")

    @property
    def mark(self) -> str:
        """The mark as ``iptables-save`` prints it."""
        return hex(1 << self.masquerade_bit)

    @property
    def has_marks(self) -> bool:
        """Whether clients in the cluster get marks of ours: not if the masquerade mark looks like one."""
        return self.masquerade_bit != CLASS_BIT
