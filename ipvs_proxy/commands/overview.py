"""What ``ipvs-proxy status`` and ``ipvs-proxy services`` print: the agent on one screen; its Services with rates."""

from __future__ import annotations

from collections.abc import Sequence

from ipvs_proxy.commands.text import age, count, duration, several, table
from ipvs_proxy.state.documents import DifferenceKind, NodeState, ServiceSummary

_SHOWN = 5


def status_text(state: NodeState) -> str:
    """Return the agent's state as text for one screen of 80 columns."""
    if not state.programmed:
        health = "starting: not everything is known and programmed yet"
    elif not state.healthy:
        health = "NOT HEALTHY: changes have been waiting for two sync periods, see the log"
    else:
        health = "healthy"
    facts = [
        ("agent", f"ipvs-proxy {state.version} on {state.node}, up {age(state.started, state.now)}, {health}"),
        ("scheduler", f"{state.scheduler} ({', '.join(state.families)})"),
        (
            "services",
            f"{several(state.service_count, 'Service')}{_whose(state)}, {several(state.conflicts, 'conflict')}",
        ),
        (
            "kernel",
            f"{several(state.virtual_servers, 'virtual server')}, {several(state.real_servers, 'real server')}",
        ),
        ("", f"{several(state.draining, 'drain')}, {several(state.addresses, 'address', 'es')} on kube-ipvs0"),
    ]
    if state.api_failures:
        facts.append(("API server", f"CHANGES ARE NOT SEEN: nothing is heard of {state.api_failures[0]}"))
    if state.waiting:
        refused = _first(state.refused, state.waiting)
        facts.append(("waiting", f"{several(state.waiting, 'object')} that the kernel refuses, tried again: {refused}"))
    if state.foreign_virtual_servers:
        shown = " ".join(state.foreign_virtual_servers[:_SHOWN])
        facts.append(("foreign", f"{several(len(state.foreign_virtual_servers), 'virtual server')} of others: {shown}"))
    width = max(len(name) for name, _ in facts)
    text = "".join(f"{name.ljust(width)}  {value}\n" for name, value in facts)
    return text + _happenings_text(state)


def _happenings_text(state: NodeState) -> str:
    """Return tables of the drains under way, the last changes and the last repairs."""
    text = ""
    if state.drains:
        drains = [
            (
                duration(drain.seconds),
                "-" if drain.seconds_left is None else duration(drain.seconds_left),
                "-" if drain.connections is None else str(drain.connections),
                drain.real_server,
                drain.virtual_server,
            )
            for drain in state.drains[:_SHOWN]
        ]
        header = ("FOR", "LEFT", "CONNECTIONS", "REAL SERVER", "OF")
        text += "\nDrains\n" + table(header, drains, right=("CONNECTIONS",))
    if state.changes:
        rows = [
            (
                age(found.time, state.now),
                f"{found.milliseconds or 0:.1f} ms",
                str(found.count),
                _first(found.objects, found.total),
            )
            for found in state.changes[:_SHOWN]
        ]
        text += "\nLast changes\n" + table(("AGO", "TOOK", "WRITES", "SERVICES"), rows, right=("TOOK", "WRITES"))
    if state.repairs:
        rows = [
            (age(found.time, state.now), found.what, str(found.count), _first(found.objects, found.total))
            for found in state.repairs[:_SHOWN]
        ]
        text += "\nLast repairs\n" + table(("AGO", "TABLE", "COUNT", "FOUND"), rows, right=("COUNT",))
    return text


def _first(names: Sequence[str], total: int) -> str:
    more = total - 1
    return names[0] + (f" and {more} more" if more > 0 else "") if names else ""


def services_text(services: Sequence[ServiceSummary]) -> str:
    """Return a table of Services. Connections and bytes are per second."""
    header = ("SERVICE", "ADDRESS", "PORTS", "SCHEDULER", "ENDPOINTS", "CONN/S", "IN/S", "OUT/S", "STATE")
    rows = [
        (
            f"{service.namespace}/{service.name}",
            _first_of(service.addresses),
            _first_of(service.ports),
            _first_of(service.schedulers),
            str(service.endpoints) + (f" +{service.draining}" if service.draining else ""),
            count(service.per_second.connections),
            count(service.per_second.bytes_in),
            count(service.per_second.bytes_out),
            state_word(service),
        )
        for service in services
    ]
    return table(header, rows, right=("ENDPOINTS", "CONN/S", "IN/S", "OUT/S"), spare=("PORTS", "SCHEDULER", "ADDRESS"))


def _first_of(names: Sequence[str]) -> str:
    return (names[0] + (f" +{len(names) - 1}" if len(names) > 1 else "")) if names else "-"


def state_word(service: ServiceSummary) -> str:
    """Return the state of a Service in a word or two."""
    if not service.in_sync:
        return "conflict" if service.difference_kinds == [DifferenceKind.CONFLICT] else "differs"
    if not service.virtual_servers:
        return service.omissions[0].reason if service.omissions else "not served"
    if not service.endpoints:
        return "paused" if service.paused else "no endpoint"
    if not service.omissions:
        return "warming" if service.warming else "ok"
    return "otherwise" if all(omission.instead for omission in service.omissions) else "left out"


def _whose(state: NodeState) -> str:
    return f" of the label {state.service_proxy_name}" if state.service_proxy_name else ""
