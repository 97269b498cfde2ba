"""Asks the agent on this node, with plain HTTP to its metrics server and without the agent's own libraries."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from typing import Final, TypeVar
from urllib.parse import urlencode

import msgspec

from ipvs_proxy.settings.model import METRICS_PORT, METRICS_PORT_BESIDE
from ipvs_proxy.state.documents import NodeState

#: Where the agent's metrics server listens by default (``--metrics-bind-address``), as kube-proxy's does.
DEFAULT_ADDRESS: Final = f"127.0.0.1:{METRICS_PORT}"
#: Where it does beside a kube-proxy.
ADDRESS_BESIDE: Final = f"127.0.0.1:{METRICS_PORT_BESIDE}"
#: Seconds to wait for an answer.
PATIENCE: Final = 30.0

#: How many Services to ask for at a time.
_PAGE: Final = 1_000

D = TypeVar("D", bound=msgspec.Struct)


class NoAnswer(Exception):  # noqa: N818  the name says what is wrong
    """The agent cannot be reached, or cannot answer; the text says what to do."""


class NotThere(NoAnswer):
    """The agent answers that there is no such object."""


def ask(address: str, path: str, kind: type[D], /, **query: object) -> D:
    """Ask the agent at ``address`` (``IP:port``) for a document, and return it.

    Raises:
        NotThere: if there is no such object.
        NoAnswer: if the agent does not answer, or cannot.

    """
    try:
        return msgspec.json.decode(fetch(address, path, **query), type=kind)
    except msgspec.DecodeError as error:
        raise NoAnswer(f"what answers at {address} is not an agent of this version: {error}") from error


def find_agent() -> str:
    """Return where the agent on this node answers: one of the two default addresses, the usual one if none does."""
    try:
        ask(DEFAULT_ADDRESS, "/state", NodeState, limit=0)
    except NoAnswer:
        with suppress(NoAnswer):
            ask(ADDRESS_BESIDE, "/state", NodeState, limit=0)
            return ADDRESS_BESIDE
    return DEFAULT_ADDRESS


def ask_for_services(address: str, *, search: str = "", limit: int = sys.maxsize) -> NodeState:
    """Return the agent's state with at most ``limit`` Services, asking page by page. Raises as ``ask`` does."""
    state = page = ask(address, "/state", NodeState, search=search, limit=min(limit, _PAGE))
    services = {(one.namespace, one.name): one for one in page.services}
    asked = len(page.services)
    while page.services and asked < min(limit, page.matching):
        page = ask(address, "/state", NodeState, search=search, offset=asked, limit=min(limit - asked, _PAGE))
        # A Service that was added meanwhile shifts the others: the last of a page may be the first of the next.
        services |= {(one.namespace, one.name): one for one in page.services}
        asked += len(page.services)
    return msgspec.structs.replace(state, services=list(services.values()))


def fetch(address: str, path: str, /, **query: object) -> bytes:
    """Return the bytes of a page. Raises as ``ask`` does."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise NoAnswer(f"{address!r} is not IP:port")
    connection = HTTPConnection(host.strip("[]"), int(port), timeout=PATIENCE)
    try:
        connection.request("GET", f"{path}?{urlencode(query)}" if query else path)
        response = connection.getresponse()
        body = response.read()
    except (OSError, HTTPException) as error:
        raise NoAnswer(
            f"no agent answers at {address} ({error}): is it running on this node? If it has another "
            "--metrics-bind-address, say so with --agent"
        ) from error
    finally:
        connection.close()
    if response.status != 200:
        raise (NotThere if response.status == 404 else NoAnswer)(_complaint(body, response.status, address))
    return body


def _complaint(body: bytes, status: int, address: str) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"what answers at {address} is not an agent of this version (status {status})"
