"""``ipvs-proxy explain``: which virtual servers a Service has, which endpoints are in or out, and where packets go."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address
from typing import NamedTuple

from ipvs_proxy.commands.ask import NoAnswer, NotThere, ask
from ipvs_proxy.commands.text import count, duration, several, table, wrapped
from ipvs_proxy.state.documents import (
    DrainState,
    EndpointState,
    NodeState,
    RouteState,
    ServiceState,
    VirtualServerState,
)

#: At most this many endpoints of one virtual server are shown.
SHOWN = 50
_TARGET = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<four>[0-9.]+)):(?P<port>[0-9]{1,5})(?:/(?P<protocol>\w+))?")


class Target(NamedTuple):
    """An address, port and protocol as a user writes them: ``10.96.0.1:443``, ``[fd00::1]:53/UDP``."""

    address: str
    port: int
    protocol: str

    def __str__(self) -> str:
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{address}:{self.port}/{self.protocol}"


def parse_target(text: str) -> Target | None:
    """Parse a target; return ``None`` if the text is not one, and so names a Service."""
    found = _TARGET.fullmatch(text)
    if found is None:
        return None
    try:
        address = str(ip_address(found["six"] or found["four"]))
    except ValueError:
        return None
    return Target(address, int(found["port"]), (found["protocol"] or "TCP").upper())


def find_service(agent: str, text: str) -> ServiceState:
    """Ask for the Service that ``text`` names: ``NAMESPACE/NAME``, ``NAME`` (in the namespace default) or a target.

    Raises:
        NotThere: if there is none.
        NoAnswer: if the agent does not answer.

    """
    target = parse_target(text)
    if target is None:
        namespace, _, name = text.rpartition("/")
        return ask(agent, f"/state/services/{namespace or 'default'}/{name}", ServiceState)
    found = ask(agent, "/state/route", RouteState, client=target.address, **target._asdict())
    if not found.service:
        raise NotThere(f"no Service is served at {target}")
    return ask(agent, f"/state/services/{found.service}", ServiceState)


def find_route(agent: str, client: str, text: str) -> RouteState:
    """Ask what a new connection from the address ``client`` to the target ``text`` meets.

    Raises:
        NoAnswer: if the agent does not answer, or if ``text`` is no target.

    """
    target = parse_target(text)
    if target is None:
        raise NoAnswer(f"{text!r} is not an address and port such as 10.96.0.1:443 or [fd00::1]:53/UDP")
    return ask(agent, "/state/route", RouteState, client=client, **target._asdict())


def search_service(agent: str, text: str) -> list[str]:
    """Return names of Services that contain a text, as a hint."""
    found = ask(agent, "/state", NodeState, search=text.rpartition("/")[2], limit=5)
    return [f"{service.namespace}/{service.name}" for service in found.services]


def service_text(state: ServiceState) -> str:
    """Return everything about a Service as text."""
    sync = _sync_text(state)
    text = f"{state.namespace}/{state.name} ({state.type}): {sync}\n"
    for omission in state.omissions:
        text += f"  {'served otherwise' if omission.instead else 'left out'}: {omission.where}: {omission.reason}"
        text += f"; {omission.instead}\n" if omission.instead else "\n"
    text += "".join(f"  annotation {name}: {value}\n" for name, value in state.annotations.items())
    if not state.virtual_servers:
        text += "  it has no virtual server on this node\n"
    shown: list[tuple[list[tuple[object, ...]], str]] = []
    for server in state.virtual_servers:
        if server.owner:
            text += f"\n{server.name}  {server.reason}\n  the older Service {server.owner} has it\n"
            continue
        text += "\n" + _virtual_server_text(server)
        key = [_identity(endpoint) for endpoint in server.endpoints]
        same = next((name for endpoints, name in shown if endpoints == key), None)
        if same is not None and key and not any(_busy(endpoint) for endpoint in server.endpoints):
            text += f"  endpoints: the same as of {same}, no connections\n"
            continue
        shown.append((key, server.name))
        text += endpoints_text(server.endpoints)
        text += "".join(_drain_text(drain) for drain in state.drains if drain.virtual_server == server.name)
    missing = [member for member in state.members if not member.in_kernel]
    for member in missing:
        text += f"\nmissing in the kernel: {member.member} of {member.set} ({member.reason})"
    return text + ("\n" if missing else "")


def _sync_text(state: ServiceState) -> str:
    if state.in_sync:
        return "as it should be"
    differs = any(server.differences and not server.owner for server in state.virtual_servers)
    if differs or not all(member.in_kernel for member in state.members):
        return "NOT as it should be in the kernel"
    return "another Service has some of its addresses"


def _identity(endpoint: EndpointState) -> tuple[object, ...]:
    return (endpoint.address, endpoint.wanted, endpoint.reason, endpoint.weight, endpoint.wanted_weight)


def _busy(endpoint: EndpointState) -> bool:
    return bool(endpoint.active_connections or endpoint.inactive_connections)


def _virtual_server_text(server: VirtualServerState) -> str:
    affinity = f", affinity {server.affinity_seconds} s" if server.affinity_seconds else ""
    rate, connections = server.per_second, several(server.total.connections, "connection")
    text = (
        f"{server.name}  {server.reason}, {scheduling_text(server)}{affinity}\n"
        f"  {connections}, {count(rate.connections)}/s, {count(rate.bytes_in)}B/s in, {count(rate.bytes_out)}B/s out\n"
    )
    if server.max_connections:
        text += f"  an endpoint gets at most {several(server.max_connections, 'connection')}"
        text += f", and new ones again below {server.min_connections}\n" if server.min_connections else "\n"
    if server.internal:
        text += f"  clients in the cluster get {server.internal} instead\n"
    return text + "".join(f"  DIFFERS: {difference}\n" for difference in server.differences)


def scheduling_text(server: VirtualServerState) -> str:
    """Return scheduler and flags of a virtual server, with who chose them."""
    text = " ".join([server.scheduler, *server.flags])
    if server.scheduler_from == "annotation":
        return f"{text} (by annotation)"
    return f"{text} (because of weights)" if server.scheduler_from == "weights" else text


def endpoints_text(endpoints: Iterable[EndpointState]) -> str:
    """Return the endpoints of a virtual server as a table, those that are in first, each with its reason."""
    found = sorted(endpoints, key=lambda endpoint: (not endpoint.wanted, endpoint.wanted is None))
    if not found:
        return "  it has no endpoint\n"
    rows = [
        (
            endpoint.address,
            use_of(endpoint),
            endpoint.reason or "no-longer-wanted",
            "-" if endpoint.weight is None else str(endpoint.weight),
            _weight_reason(endpoint),
            f"{endpoint.active_connections}",
            f"{endpoint.inactive_connections}",
            endpoint.node + (" (here)" if endpoint.local else ""),
        )
        for endpoint in found[:SHOWN]
    ]
    header = ("ENDPOINT", "USE", "REASON", "WEIGHT", "BY", "ACTIVE", "INACTIVE", "NODE")
    right, spare = ("WEIGHT", "ACTIVE", "INACTIVE"), ("WEIGHT", "INACTIVE")
    text = table(header, rows, right=right, spare=spare, optional=("BY",), indent=2)
    if len(found) > SHOWN:
        text += f"  and {several(len(found) - SHOWN, 'endpoint')} more: -o json has all of them\n"
    return text


def _weight_reason(endpoint: EndpointState) -> str:
    """Return who gave an endpoint its weight, and for how long it goes on rising."""
    warming = "" if endpoint.warming_seconds is None else f"slow start, {duration(endpoint.warming_seconds)} left"
    return ", ".join(filter(None, (endpoint.weight_from, warming)))


def _drain_text(drain: DrainState) -> str:
    left = "it has no deadline" if drain.seconds_left is None else f"in {duration(drain.seconds_left)} at the latest"
    begun = f"has been draining for {duration(drain.seconds)}"
    return wrapped(f"{drain.real_server} {begun}: it goes when it has no connection, {left}", start="  ")


def use_of(endpoint: EndpointState) -> str:
    """Return in a word what an endpoint is used for."""
    if endpoint.wanted:
        if endpoint.weight == 0 == endpoint.wanted_weight:
            return "paused"
        warming = endpoint.warming_seconds is not None
        return ("warming" if warming else "in") if endpoint.weight else "missing"
    if endpoint.weight is None:
        return "out"
    return "draining" if endpoint.weight == 0 else "unwanted"


def route_text(route: RouteState) -> str:
    """Return the way of a connection, step by step."""
    served = f" ({route.service})" if route.service else ""
    text = wrapped(f"{route.client} -> {route.target}{served}", start="")
    text += "".join(wrapped(step, start=f"  {number}. ") for number, step in enumerate(route.steps, 1))
    verdict = str(route.verdict)
    if route.real_servers:
        more = f" and {len(route.real_servers) - 10} more" if len(route.real_servers) > 10 else ""
        verdict += f" among {', '.join(route.real_servers[:10])}{more}"
    return text + wrapped(verdict, start="  => ")
