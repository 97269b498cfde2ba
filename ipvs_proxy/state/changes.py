"""From operations to documents: what would change in the kernel, object by object."""

from __future__ import annotations

from ipvs_proxy.kernel.dataplane import table_of
from ipvs_proxy.plan.node_addresses import SERVICE_LINK
from ipvs_proxy.plan.tables import (
    PERSISTENT,
    AddressOperation,
    Operation,
    RealServerOperation,
    SetEntry,
    SetEntryOperation,
    Verb,
    VirtualServer,
    VirtualServerKey,
    VirtualServerOperation,
    text_of,
)
from ipvs_proxy.state.documents import ChangeState
from ipvs_proxy.state.services import member_text


def change_of(operation: Operation) -> ChangeState:
    """Describe one operation."""
    return ChangeState(operation.verb.value, table_of(operation), _object(operation))


def name_of(key: VirtualServerKey | bytes | tuple[str, SetEntry]) -> str:
    """Name an object of a table by its key."""
    if isinstance(key, VirtualServerKey):
        return str(key)
    if isinstance(key, bytes):
        return f"{text_of(key)} on {SERVICE_LINK}"
    name, entry = key
    return f"{name} {member_text(entry)}"


def _object(operation: Operation) -> str:
    deleted = operation.verb is Verb.DELETE
    match operation:
        case RealServerOperation(_, key, server, settings):
            return f"{key} -> {server}" + ("" if deleted else f" weight {settings.weight}")
        case VirtualServerOperation(_, server):
            return str(server.key) if deleted else f"{server.key} {_settings(server)}"
        case AddressOperation(_, address):
            return name_of(address)
        case SetEntryOperation(_, name, entry):
            return name_of((name, entry))


def _settings(server: VirtualServer) -> str:
    return server.scheduler + (f" persistent {server.timeout}" if server.flags & PERSISTENT else "")
