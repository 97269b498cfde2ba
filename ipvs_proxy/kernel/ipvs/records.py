"""What IPVS tells besides virtual servers and real servers: connections, counters, timeouts, what is not ours."""

from __future__ import annotations

from typing import NamedTuple

from ipvs_proxy.plan.tables import RealServer, RealServerKey, VirtualServer, VirtualServerKey


class Connections(NamedTuple):
    """The connections of a real server: established ones, all others, and persistence templates."""

    active: int
    inactive: int
    persistent: int


class Counters(NamedTuple):
    """What a virtual server has balanced since it was added; the kernel updates it every two seconds."""

    connections: int
    packets_in: int
    packets_out: int
    bytes_in: int
    bytes_out: int


class Balanced(NamedTuple):
    """What a virtual or real server has balanced so far, and how much each second (the kernel's estimate)."""

    total: Counters
    per_second: Counters


class Activity(NamedTuple):
    """The settings of a real server, its connections, and what it was given."""

    settings: RealServer
    connections: Connections
    traffic: Balanced


class Observation(NamedTuple):
    """A virtual server as the kernel has it, without real servers; its traffic; the activity of each real server."""

    virtual_server: VirtualServer
    traffic: Balanced
    real_servers: dict[RealServerKey, Activity]


class ForeignVirtualServer(NamedTuple):
    """A virtual server that cannot be ours: its mark is not ours, or Services do not have its protocol."""

    family: int
    fwmark: int
    protocol: int
    address: bytes
    port: int
    scheduler: str


class IpvsTable(NamedTuple):
    """What IPVS holds: virtual servers with their real servers, and those that cannot be ours."""

    virtual_servers: dict[VirtualServerKey, VirtualServer]
    foreign: list[ForeignVirtualServer]


class ListDifference(NamedTuple):
    """What a list of the virtual servers differs in from what is known of them.

    ``differing`` are known ones that are not in it, or have other settings; ``unknown`` has all others, with their real
    servers. Without ``ipv6``, it says nothing of those of IPv6.
    """

    differing: list[VirtualServerKey]
    unknown: dict[VirtualServerKey, VirtualServer]
    ipv6: bool = True


class Timeouts(NamedTuple):
    """How long IPVS keeps connections without packets, in seconds."""

    tcp: int
    tcp_fin: int
    udp: int
