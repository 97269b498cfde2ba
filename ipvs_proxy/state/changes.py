"""Describes operations as documents: what would change in the kernel, object by object."""

from __future__ import annotations

from ipvs_proxy.kernel.dataplane import table_of
from ipvs_proxy.kernel.filter.backend import NameOfRole
from ipvs_proxy.plan.node_addresses import SERVICE_LINK
from ipvs_proxy.plan.tables import (
    AddressOperation,
    Operation,
    RealServerOperation,
    Role,
    SetEntry,
    SetEntryOperation,
    Verb,
    VirtualServerKey,
    VirtualServerOperation,
    text_of,
)
from ipvs_proxy.state.documents import ChangeState
from ipvs_proxy.state.services import member_text
from ipvs_proxy.state.words import real_server_words, virtual_server_words


def change_of(operation: Operation, name_of_role: NameOfRole) -> ChangeState:
    """Return one operation as a document. ``name_of_role`` returns the kernel's name for the set of a role."""
    return ChangeState(operation.verb.value, table_of(operation), _object(operation, name_of_role))


def name_of(key: VirtualServerKey | bytes | tuple[Role, SetEntry], name_of_role: NameOfRole) -> str:
    """Return the name of an object, given its key in a table.

    ``key`` is that of a virtual server, a packed address of the link, or the role of a set with one of its entries.
    """
    if isinstance(key, VirtualServerKey):
        return str(key)
    if isinstance(key, bytes):
        return f"{text_of(key)} on {SERVICE_LINK}"
    role, entry = key
    return f"{name_of_role(role)} {member_text(entry)}"


def _object(operation: Operation, name_of_role: NameOfRole) -> str:
    deleted = operation.verb is Verb.DELETE
    match operation:
        case RealServerOperation(_, key, server, settings):
            return f"{key} -> {server}" + ("" if deleted else f" {real_server_words(settings)}")
        case VirtualServerOperation(_, server):
            return str(server.key) if deleted else f"{server.key} {virtual_server_words(server)}"
        case AddressOperation(_, address):
            return name_of(address, name_of_role)
        case SetEntryOperation(_, role, entry):
            return name_of((role, entry), name_of_role)
