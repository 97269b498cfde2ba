"""The documents of ``/state``, which the agent serves and the commands read. Field names are camelCase in JSON.

Addresses, keys of virtual servers and reasons have the same text form as in logs, metrics and events. Rates are per
second, as the kernel estimates them over a few seconds; they are 0 if its estimation is off.

Each fact has a field of its own. Texts are for people: no program has to parse one.
"""

from __future__ import annotations

from datetime import datetime
from enum import Enum

import msgspec


class Document(msgspec.Struct, frozen=True, rename="camel"):
    """The base of all documents."""


class Traffic(Document, frozen=True):
    """Traffic of a virtual or real server, either since it was added or per second."""

    connections: int = 0
    packets_in: int = 0
    packets_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


class EndpointState(Document, frozen=True):
    """One endpoint of a virtual server: whether and why it gets new connections, and what the kernel has.

    If the kernel has a real server without an endpoint, ``wanted`` is ``None`` and ``reason`` is empty. It is draining
    if its ``weight`` is 0. ``weight`` is ``None`` if the kernel does not have the real server.

    ``wanted_weight`` is what the weight should be, ``None`` if the endpoint is not wanted. 0 stands for maintenance: no
    new connections, and no end for existing ones. ``weight_from`` says who gave it (see ``plan.weights``).
    ``warming_seconds`` is for how long the weight goes on rising, ``None`` unless it does.
    """

    address: str
    wanted: bool | None = None
    reason: str = ""
    ready: bool = False
    serving: bool = False
    terminating: bool = False
    local: bool = False
    node: str = ""
    weight: int | None = None
    wanted_weight: int | None = None
    weight_from: str = ""
    warming_seconds: float | None = None
    active_connections: int = 0
    inactive_connections: int = 0
    persistent_connections: int = 0
    total: Traffic = Traffic()
    per_second: Traffic = Traffic()


class VirtualServerState(Document, frozen=True):
    """One virtual server that a Service asks for.

    ``reason`` says what it is for. ``owner`` is the older Service that owns it, or empty. If there is an owner, nothing
    from the kernel is given, because everything there is the owner's. ``in_kernel`` tells whether the kernel has it,
    ``differences`` what is not as desired. ``internal`` is the virtual server that clients in the cluster get instead.
    ``affinity_seconds`` is 0 without session affinity.

    ``scheduler_from`` says who chose the scheduler: ``agent-setting``, ``annotation``, or ``weights`` where a scheduler
    that takes no notice of weights gave way to its twin. ``flags`` are the scheduler's, by ipvsadm's names, and
    ``one-packet``. ``max_connections`` and ``min_connections`` are the thresholds of each endpoint, 0 for none.
    """

    name: str
    address: str
    port: int
    protocol: str
    reason: str
    in_kernel: bool
    scheduler: str = ""
    scheduler_from: str = ""
    flags: list[str] = []
    max_connections: int = 0
    min_connections: int = 0
    affinity_seconds: int = 0
    mark: int = 0
    owner: str = ""
    internal: str = ""
    differences: list[str] = []
    endpoints: list[EndpointState] = []
    total: Traffic = Traffic()
    per_second: Traffic = Traffic()


class OmissionState(Document, frozen=True):
    """A part of a Service or an EndpointSlice that is not served as written: where it is, and why.

    ``reason`` is a value of ``plan.reasons.Reason``. ``instead`` says what happens instead, or is empty.
    """

    where: str
    reason: str
    instead: str = ""


class MemberState(Document, frozen=True):
    """A member of an ipset, or an address of the link: why it is needed, and whether the kernel has it.

    For an address, ``set`` is the name of the link.
    """

    set: str
    member: str
    reason: str
    in_kernel: bool


class DrainState(Document, frozen=True):
    """A real server that gets no new connections. It is removed when it has none left, or in ``seconds_left``.

    ``seconds`` is how long it has been draining. ``seconds_left`` is ``None`` without a deadline (the endpoint still
    serves, or no deadline is set). ``connections`` is ``None`` if they have not been counted yet.
    """

    virtual_server: str
    real_server: str
    seconds: float
    seconds_left: float | None = None
    connections: int | None = None


class ServiceState(Document, frozen=True):
    """One Service: everything that it asks for, with reasons, next to what the kernel has.

    ``annotations`` are those that the agent follows, with their values as it has read them.
    """

    namespace: str
    name: str
    type: str
    in_sync: bool
    virtual_servers: list[VirtualServerState] = []
    members: list[MemberState] = []
    omissions: list[OmissionState] = []
    drains: list[DrainState] = []
    annotations: dict[str, str] = {}


class DifferenceKind(Enum):
    """Why a Service is not in sync."""

    CONFLICT = "conflict"
    """An older Service owns a virtual server that this one asks for as well."""
    KERNEL = "kernel"
    """A virtual server in the kernel is missing or not as desired."""


class ServiceSummary(Document, frozen=True):
    """One Service in a list.

    ``endpoints`` counts those that get new connections, ``warming`` those of them whose weight still rises, ``paused``
    those with weight 0, and ``draining`` those that nobody wants and that only keep their existing connections.
    ``schedulers`` are those of its virtual servers.
    ``differences`` lists some of what is not as desired. ``difference_kinds`` has every kind that occurs among all
    differences, and is empty if the Service is in sync.
    """

    namespace: str
    name: str
    type: str
    addresses: list[str]
    ports: list[str]
    virtual_servers: int = 0
    schedulers: list[str] = []
    endpoints: int = 0
    warming: int = 0
    paused: int = 0
    draining: int = 0
    in_sync: bool = True
    differences: list[str] = []
    difference_kinds: list[DifferenceKind] = []
    omissions: list[OmissionState] = []
    total: Traffic = Traffic()
    per_second: Traffic = Traffic()


class ChangeState(Document, frozen=True):
    """An operation that would bring the kernel to the desired state: ``add``, ``set`` or ``delete`` of an object."""

    verb: str
    table: str
    object: str


class Differences(Document, frozen=True):
    """What would have to change in the kernel for ``services`` Services, in the order of execution."""

    services: int
    changes: list[ChangeState]


class RouteState(Document, frozen=True):
    """The path of a new connection from a client (see ``state.route``). ``service`` owns the virtual server."""

    client: str
    target: str
    service: str
    origin: str
    verdict: str
    steps: list[str]
    virtual_server: str
    real_servers: list[str]
    masqueraded: bool


class Happening(Document, frozen=True):
    """A change that was programmed, or a repair: when, what, and the number of writes or findings.

    ``objects`` are the first of ``total``: the Services of a change, or the findings of a repair. ``milliseconds`` is
    ``None`` for a repair.
    """

    time: datetime
    what: str
    count: int
    objects: list[str] = []
    milliseconds: float | None = None
    total: int = 0


class NodeState(Document, frozen=True):
    """The agent on this node, and the requested Services.

    ``services`` are a part of the ``matching`` Services that the search found: at most ``limit``, starting at
    ``offset``. ``waiting`` counts objects that the kernel refused and that are tried again; ``refused`` names some of
    them. ``drains`` are some of the drains in progress, the oldest first. ``strict_arp`` is the setting.
    ``api_failures`` names the resources that have failed for a while, and why. ``service_proxy_name`` is the label of
    the Services that are served; it is empty if all are that have no such label.
    """

    version: str
    node: str
    scheduler: str
    families: list[str]
    started: datetime
    now: datetime
    programmed: bool
    healthy: bool
    virtual_servers: int
    real_servers: int
    draining: int
    addresses: int
    conflicts: int
    waiting: int
    foreign_virtual_servers: list[str]
    service_count: int
    matching: int
    offset: int
    services: list[ServiceSummary]
    changes: list[Happening] = []
    repairs: list[Happening] = []
    strict_arp: bool = False
    drains: list[DrainState] = []
    refused: list[str] = []
    api_failures: list[str] = []
    service_proxy_name: str = ""
