"""From bytes of the API to objects, one at a time, so that one malformed object never costs another.

Nothing here raises anything but ``DecodeError``, and that only for what is no list and no event at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from sys import intern
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import force_setattr

from ipvs_proxy.kube.objects import EndpointConditions, EndpointSlice, KubernetesObject
from ipvs_proxy.kube.resources import Resource

#: Annotation of the bookmark that ends the first part of a streaming list (Kubernetes documentation, "Streaming
#: lists").
INITIAL_EVENTS_END = "k8s.io/initial-events-end"


class DecodeError(ValueError):
    """The bytes are no list or no event of the API."""


class Skipped(NamedTuple):
    """An object that could not be decoded: its kind, ``namespace/name`` as far as they can be read, and why."""

    kind: str
    key: str
    error: str


class DecodedList(NamedTuple):
    """One page of a list."""

    objects: list[KubernetesObject]
    skipped: list[Skipped]
    resource_version: str
    continue_token: str


class Event(NamedTuple):
    """One event of a watch.

    ``object`` is missing where it is not needed (DELETED) or could not be decoded
    (``skipped``).
    """

    type: str
    key: str = ""
    object: KubernetesObject | None = None
    skipped: Skipped | None = None
    resource_version: str = ""
    initial_events_end: bool = False
    code: int = 0
    message: str = ""


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_token: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct):
    items: list[msgspec.Raw] | None = None
    metadata: _ListMeta = msgspec.field(default_factory=_ListMeta)


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Meta(msgspec.Struct, rename="camel"):
    name: Any = ""
    namespace: Any = ""
    resource_version: Any = ""
    annotations: Any = None


class _Identity(msgspec.Struct):
    metadata: _Meta = msgspec.field(default_factory=_Meta)


class _Status(msgspec.Struct):
    code: int = 0
    message: str | None = None
    reason: str | None = None


_LIST = msgspec.json.Decoder(_List)
_EVENT = msgspec.json.Decoder(_Event)
_IDENTITY = msgspec.json.Decoder(_Identity)
_STATUS = msgspec.json.Decoder(_Status)
#: Each of the 27 combinations that has been seen.
_CONDITIONS: dict[EndpointConditions, EndpointConditions] = {}
#: Events of which no more is wanted than what names their object.
_WITHOUT_OBJECT = frozenset(("BOOKMARK", "DELETED", "ERROR"))
_FAULTS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


@lru_cache
def _event_decoder(struct: type[KubernetesObject]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(msgspec.defstruct("_TypedEvent", [("type", str), ("object", struct)], gc=False))


@lru_cache
def _decoder(struct: type[KubernetesObject]) -> msgspec.json.Decoder[KubernetesObject]:
    return msgspec.json.Decoder(struct)


def key_of(item: KubernetesObject) -> str:
    """Give ``namespace/name``, or the name alone where there is no namespace."""
    return _key(item.metadata.namespace, item.metadata.name)


def decode_list(raw: bytes, resource: Resource) -> DecodedList:
    """Decode one page of a list; items that are malformed are skipped by themselves.

    Raises DecodeError if it is no list.
    """
    try:
        page = _LIST.decode(raw)
    except _FAULTS as error:
        raise DecodeError(f"no list of {resource.kind}: {error}") from error
    objects: list[KubernetesObject] = []
    skipped: list[Skipped] = []
    for item in page.items or ():
        decoded = _decode(item, resource)
        if isinstance(decoded, Skipped):
            skipped.append(decoded)
        else:
            objects.append(decoded)
    return DecodedList(objects, skipped, page.metadata.resource_version, page.metadata.continue_token)


def decode_event(line: bytes, resource: Resource) -> Event:
    """Decode one line of a watch.

    Raises DecodeError if it is no event.
    """
    try:
        # Nearly all are so, and read in two thirds of the time.
        typed = _event_decoder(resource.struct).decode(line)
    except _FAULTS:
        return _decode_any_event(line, resource)
    if typed.type in _WITHOUT_OBJECT:
        return _decode_any_event(line, resource)
    if isinstance(typed.object, EndpointSlice):
        _share(typed.object)
    return Event(
        typed.type, key_of(typed.object), typed.object, resource_version=typed.object.metadata.resource_version
    )


def _decode_any_event(line: bytes, resource: Resource) -> Event:
    try:
        event = _EVENT.decode(line)
        decoded = None if event.type in _WITHOUT_OBJECT else _decode(event.object, resource)
        if decoded is not None and not isinstance(decoded, Skipped):
            version = decoded.metadata.resource_version
            return Event(event.type, key_of(decoded), decoded, resource_version=version)
        if event.type == "ERROR":
            status = _STATUS.decode(event.object)
            return Event("ERROR", code=status.code, message=status.message or status.reason or "")
        metadata = _IDENTITY.decode(event.object).metadata
    except _FAULTS as error:
        raise DecodeError(f"no event about {resource.kind}: {error}") from error
    key, version = _key(metadata.namespace, metadata.name), str(metadata.resource_version)
    if event.type == "BOOKMARK":
        annotations = metadata.annotations if isinstance(metadata.annotations, dict) else {}
        end = annotations.get(INITIAL_EVENTS_END) == "true"
        return Event("BOOKMARK", resource_version=version, initial_events_end=end)
    if event.type == "DELETED":
        return Event("DELETED", key, resource_version=version)
    return Event(event.type, key, skipped=decoded, resource_version=version)


def convert_object(mapping: Mapping[str, Any], resource: Resource) -> KubernetesObject | Skipped:
    """Make an object of plain data, as a YAML file gives it."""
    try:
        return msgspec.convert(mapping, resource.struct, strict=True)
    except _FAULTS as error:
        metadata = mapping.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        return Skipped(resource.kind, _key(metadata.get("namespace", ""), metadata.get("name", "")), str(error))


def _decode(raw: msgspec.Raw, resource: Resource) -> KubernetesObject | Skipped:
    try:
        decoded = _decoder(resource.struct).decode(raw)
    except _FAULTS as error:
        fault = str(error)
    else:
        if isinstance(decoded, EndpointSlice):
            _share(decoded)
        return decoded
    try:
        metadata = _IDENTITY.decode(raw).metadata
    except _FAULTS:
        return Skipped(resource.kind, "", fault)
    return Skipped(resource.kind, _key(metadata.namespace, metadata.name), fault)


def _share(piece: EndpointSlice) -> None:
    """Let endpoints share equal conditions and names of nodes, of which there are few: it spares 110 bytes for each."""
    for endpoint in piece.endpoints or ():
        force_setattr(endpoint, "conditions", _CONDITIONS.setdefault(endpoint.conditions, endpoint.conditions))
        if endpoint.node_name is not None:
            force_setattr(endpoint, "node_name", intern(endpoint.node_name))


def _key(namespace: Any, name: Any) -> str:
    return f"{namespace}/{name}" if namespace else str(name)
