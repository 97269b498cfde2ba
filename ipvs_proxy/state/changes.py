"""From operations to documents: what would change in the kernel, object by object."""

from __future__ import annotations

from ipvs_proxy.kernel.dataplane import table_of
from ipvs_proxy.plan.node_addresses import SERVICE_LINK
from ipvs_proxy.plan.tables import (
    PERSISTENT,
    AddressOperation,
    Operation,
    RealServerOperation,
    SetEntryOperation,
    Verb,
    VirtualServer,
    VirtualServerOperation,
    text_of,
)
from ipvs_proxy.state.documents import ChangeState
from ipvs_proxy.state.services import member_text


def change_of(operation: Operation) -> ChangeState:
    """Describe one operation."""
    return ChangeState(operation.verb.value, table_of(operation), _object(operation))


def _object(operation: Operation) -> str:
    deleted = operation.verb is Verb.DELETE
    match operation:
        case RealServerOperation(_, key, server, settings):
            return f"{key} -> {server}" + ("" if deleted else f" weight {settings.weight}")
        case VirtualServerOperation(_, server):
            return str(server.key) if deleted else f"{server.key} {_settings(server)}"
        case AddressOperation(_, address):
            return f"{text_of(address)} on {SERVICE_LINK}"
        case SetEntryOperation(_, name, entry):
            return f"{name} {member_text(entry)}"


def _settings(server: VirtualServer) -> str:
    return server.scheduler + (f" persistent {server.timeout}" if server.flags & PERSISTENT else "")
