"""Logs which operations the kernel refused: some one by one, the rest as a number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from errno import EINVAL
from typing import Final

import structlog

from ipvs_proxy.kernel.dataplane import Failure, table_of
from ipvs_proxy.kernel.filter.backend import NameOfRole
from ipvs_proxy.plan.tables import (
    AddressOperation,
    Operation,
    RealServerOperation,
    SetEntryOperation,
    VirtualServerKey,
    VirtualServerOperation,
    text_of,
)
from ipvs_proxy.state.services import member_text

log = structlog.get_logger(__name__)

#: Failures of one write that are logged one by one.
LOGGED: Final = 10


def refused_servers(failures: Sequence[Failure]) -> set[VirtualServerKey]:
    """Return the virtual servers that lack nothing but real servers whose address the kernel refuses.

    IPVS takes no real server at a broadcast address (``__ip_vs_new_dest`` in ip_vs_ctl.c), but the API takes such an
    endpoint, on which every tenant can decide.
    """
    refused, others = set[VirtualServerKey](), set[VirtualServerKey]()
    for failure in failures:
        match failure.operation:
            case RealServerOperation(_, key, _, _):
                (refused if failure.code == EINVAL else others).add(key)
            case VirtualServerOperation(_, server):
                others.add(server.key)
    return refused - others


def log_failures(failures: Sequence[Failure], delay: float, name_of_role: NameOfRole) -> None:
    """Log operations that failed; they are tried again after ``delay`` seconds at the latest."""
    for failure in failures[:LOGGED]:
        log.warning(
            "operation_failed", **describe(failure.operation, name_of_role), error=failure.text, retry_in_seconds=delay
        )
    if len(failures) > LOGGED:
        log.warning("operations_failed", **Counter(table_of(failure.operation) for failure in failures))


def describe(operation: Operation, name_of_role: NameOfRole) -> dict[str, str]:
    """Return an operation's verb, table and object, as fields of a log line."""
    fields = {"verb": operation.verb.value, "table": table_of(operation)}
    match operation:
        case RealServerOperation(_, key, server, _):
            return fields | {"virtual_server": str(key), "real_server": str(server)}
        case VirtualServerOperation(_, server):
            return fields | {"virtual_server": str(server.key)}
        case AddressOperation(_, address):
            return fields | {"address": text_of(address)}
        case SetEntryOperation(_, role, entry):
            return fields | {"set": name_of_role(role), "entry": member_text(entry)}
