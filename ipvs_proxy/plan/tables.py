"""The nouns of the plan: what a kernel table holds, and the operations that change it.

Everything here is a value. Addresses are packed bytes in network order (4 for IPv4, 16 for IPv6), so the family of a
key is the length of its address, comparing is cheap and a codec writes them as they are. Ports are integers in host
order. The kernel layer executes operations; nothing in this module knows how.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from ipaddress import ip_address
from typing import NamedTuple

import msgspec


class Protocol(IntEnum):
    """IP protocol numbers of the protocols that a Service can have (RFC 5237 registry)."""

    TCP = 6
    UDP = 17
    SCTP = 132


class Family(IntEnum):
    """Address families, with the kernel's numbers (AF_INET, AF_INET6 on Linux)."""

    IPV4 = 2
    IPV6 = 10

    @property
    def label(self) -> str:
        """``IPv4`` or ``IPv6``, as in the Kubernetes API and kube-proxy's metrics."""
        return "IPv4" if self is Family.IPV4 else "IPv6"


def family_of(address: bytes) -> Family:
    """Return the family of a packed address."""
    return Family.IPV4 if len(address) == 4 else Family.IPV6


def text_of(address: bytes) -> str:
    """Return the canonical text form of a packed address (RFC 5952 for IPv6)."""
    return str(ip_address(address))


def endpoint_text(address: bytes, port: int) -> str:
    """``10.0.0.1:53`` or ``[fd00::1]:53``."""
    return f"[{text_of(address)}]:{port}" if len(address) == 16 else f"{text_of(address)}:{port}"


class Record(msgspec.Struct, frozen=True, gc=False):
    """Base of values that are made for each Service: made in a quarter of the time of a ``NamedTuple``.

    What is a key of tables is a ``NamedTuple``, which is hashed and compared in less time.
    """


class VirtualServerKey(NamedTuple):
    """What the kernel identifies a virtual server by: address, protocol and port, or else a packet mark.

    The key of a virtual server with a ``mark`` has the zero address of its family and port 0; the protocol is that of
    the packets which get the mark, as the kernel keeps none (see ``marks``).
    """

    address: bytes
    protocol: int
    port: int
    mark: int = 0

    def __str__(self) -> str:
        protocol = Protocol(self.protocol).name
        if self.mark:
            return f"mark {self.mark:#x} {family_of(self.address).label}/{protocol}"
        return f"{endpoint_text(self.address, self.port)}/{protocol}"


class RealServerKey(NamedTuple):
    """What the kernel identifies a real server of one virtual server by."""

    address: bytes
    port: int

    def __str__(self) -> str:
        return endpoint_text(self.address, self.port)


#: Forwarding methods (``IP_VS_CONN_F_*`` in linux/ip_vs.h); Kubernetes needs masquerading, which is NAT.
MASQUERADE = 0


class RealServer(NamedTuple):
    """The settings of a real server. ``weight`` 0 means: no new connections, existing ones go on."""

    weight: int = 1
    forwarding: int = MASQUERADE
    upper_threshold: int = 0
    lower_threshold: int = 0


ACTIVE = RealServer(weight=1)
DRAINING = RealServer(weight=0)

#: ``IP_VS_SVC_F_*`` of linux/ip_vs.h.
PERSISTENT = 0x0001
HASHED = 0x0002
ONE_PACKET = 0x0004
SCHED1 = 0x0008
SCHED2 = 0x0010


#: Scheduler, flags, timeout and netmask of a virtual server.
Settings = tuple[str, int, int, int | None]


class VirtualServer(Record, frozen=True):
    """A virtual server and its real servers.

    ``flags`` are ``IP_VS_SVC_F_*`` without HASHED, which the kernel always adds. ``timeout`` is the persistence timeout
    in seconds, 0 without PERSISTENT. ``netmask`` is the prefix length that groups clients for persistence, ``None`` for
    the whole address. ``lingering`` are real servers that are not wanted for new connections but still answer existing
    ones (serving and terminating): a plan names them so that a drain does not cut them. ``internal`` is the virtual
    server that clients in the cluster get in the place of this one. ``drain_timeout`` is how long its real servers may
    drain, in seconds, ``None`` for the agent's default. What is read from a kernel has none of the three.
    """

    key: VirtualServerKey
    scheduler: str
    flags: int = 0
    timeout: int = 0
    netmask: int | None = None
    real_servers: dict[RealServerKey, RealServer] = msgspec.field(default_factory=dict)
    lingering: frozenset[RealServerKey] = frozenset()
    internal: VirtualServerKey | None = None
    drain_timeout: float | None = None

    @property
    def settings(self) -> Settings:
        """What SET_SERVICE can change: scheduler, flags, timeout, netmask."""
        return (self.scheduler, self.flags, self.timeout, self.netmask)


class SetEntry(NamedTuple):
    """A member of a set of the packet filter. Which fields it has is its role's matter; the others are empty.

    Node ports have only a ``port`` (those of SCTP an address and a protocol, too), the addresses of our link only an
    ``address``; nearly all other members are the first three fields, and ``source`` with or without
    ``prefix_length`` is whose connections they are about. ``mark`` is the packet mark that a member in the role
    ``INTERNAL`` gives; it is not a part of what identifies the member.
    """

    address: bytes = b""
    protocol: int = 0
    port: int = 0
    source: bytes = b""
    prefix_length: int | None = None
    mark: int = 0


class Role:
    """What the members of one set are for, in one family: ``plan.roles`` has all there are.

    Each role is one object, compared and hashed by identity, which costs no Python call: with its member it is the key
    of every table of members, and a start hashes 100,000 of those.
    """

    __slots__ = ("family", "purpose")

    def __init__(self, purpose: str, family: Family) -> None:
        self.purpose = purpose
        self.family = family

    def __repr__(self) -> str:
        return f"<{self.purpose} {self.family.label}>"


class Verb(Enum):
    """What an operation does to its object."""

    ADD = "add"
    SET = "set"
    DELETE = "delete"

    # Each is one object. Enum's own hash is a Python function, called for each of 100,000 operations three times.
    __hash__ = object.__hash__


class VirtualServerOperation(Record, frozen=True):
    """Add, set or delete a virtual server; real servers have operations of their own. DELETE reads only the key."""

    verb: Verb
    virtual_server: VirtualServer


class RealServerOperation(Record, frozen=True):
    """Add, set or delete one real server of a virtual server. DELETE ignores ``real_server``."""

    verb: Verb
    virtual_server: VirtualServerKey
    key: RealServerKey
    real_server: RealServer


class AddressOperation(Record, frozen=True):
    """Add or delete an address on the dummy link."""

    verb: Verb
    address: bytes


class SetEntryOperation(Record, frozen=True):
    """Add or delete a member of the set of a role."""

    verb: Verb
    role: Role
    entry: SetEntry


IpvsOperation = VirtualServerOperation | RealServerOperation
Operation = IpvsOperation | AddressOperation | SetEntryOperation
