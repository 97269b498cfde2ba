"""Decodes bytes from the API to objects, one at a time.

Invariants: a malformed or oversized object never affects another; it is reported as ``Skipped``. Only a list or an
event of the requested kind says anything about the objects. Anything else that a server, or a proxy in front of it,
sends with status 200 raises ``DecodeError``. No other exception is raised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from ipvs_proxy.kube.items import ItemSplitter, OutsideTooLongError
from ipvs_proxy.kube.lines import MAX_OBJECT, TooLong
from ipvs_proxy.kube.objects import KubernetesObject, Node
from ipvs_proxy.kube.resources import Resource
from ipvs_proxy.kube.sharing import share
from ipvs_proxy.kube.texts import quote

#: Annotation of the bookmark that ends the initial events of a streaming list (Kubernetes documentation, "Streaming
#: lists").
INITIAL_EVENTS_END = "k8s.io/initial-events-end"
#: Maximum length in characters of a resource version and of a continue token. Both go into the URL of the next request.
MAX_VERSION: Final = 256
MAX_TOKEN: Final = 8192


class DecodeError(ValueError):
    """The bytes are not a list, an event or an object of the resource."""


class Skipped(NamedTuple):
    """An object that could not be decoded: its kind, its key, and the error.

    ``key`` is ``namespace/name``, the name alone if there is no namespace, or "" if it cannot be read.
    """

    kind: str
    key: str
    error: str


class DecodedList(NamedTuple):
    """One page of a list. ``continue_token`` is "" on the last page."""

    objects: list[KubernetesObject]
    skipped: list[Skipped]
    resource_version: str
    continue_token: str


class Event(NamedTuple):
    """One event of a watch.

    ``type`` is ADDED, MODIFIED, DELETED, BOOKMARK or ERROR. ``object`` is ``None`` if it is not needed (all but ADDED
    and MODIFIED) or could not be decoded (see ``skipped``). ``initial_events_end`` marks the bookmark that ends the
    initial events of a streaming list. ``code`` and ``message`` come from the Status of an ERROR.
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
    resource_version: Annotated[str, msgspec.Meta(max_length=MAX_VERSION)] = ""
    continue_token: Annotated[str, msgspec.Meta(max_length=MAX_TOKEN)] = msgspec.field(default="", name="continue")


class _List(msgspec.Struct, rename="camel"):
    """A list with ``0`` in place of each item, as ``items.ItemSplitter.outside`` has it."""

    kind: str
    api_version: str
    items: list[int] | None
    metadata: _ListMeta = msgspec.field(default_factory=_ListMeta)


class _Type(msgspec.Struct, rename="camel"):
    """The fields that say of which kind an object is. Items of a list usually leave them to the list."""

    kind: Any = None
    api_version: Any = None


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
_TYPE = msgspec.json.Decoder(_Type)
_IDENTITY = msgspec.json.Decoder(_Identity)
_STATUS = msgspec.json.Decoder(_Status)
_WITH_OBJECT = ("ADDED", "MODIFIED")
#: Types of events of which only the kind and the metadata of the object are decoded.
_WITHOUT_OBJECT = ("BOOKMARK", "DELETED")
#: The beginning of an object, or of the event around it, as API servers write it.
_BEGINNING = re.compile(
    rb'(?:\{"type":"(?P<type>ADDED|MODIFIED|DELETED)","object":)?\{(?:"kind":"\w{1,63}","apiVersion":"[\w./]{1,253}",)?'
    rb'"metadata":\{"name":"(?P<name>[\w.-]{1,253})",(?:"generateName":"[\w.-]{0,253}",)?'
    rb'(?:"namespace":"(?P<namespace>[\w.-]{1,63})")?'
)
_FAULTS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


@lru_cache
def _event_decoder(struct: type[KubernetesObject]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(msgspec.defstruct("_TypedEvent", [("type", str), ("object", struct)], gc=False))


@lru_cache
def _decoder(struct: type[KubernetesObject]) -> msgspec.json.Decoder[KubernetesObject]:
    return msgspec.json.Decoder(struct)


def key_of(item: KubernetesObject) -> str:
    """Return the key of an object: ``namespace/name``, or the name alone if there is no namespace."""
    return _key(item.metadata.namespace, item.metadata.name)


class ListDecoder:
    """Decodes one page of a list while its chunks arrive. Malformed and oversized items are skipped individually."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._splitter = ItemSplitter()
        self._objects: list[KubernetesObject] = []
        self._skipped: list[Skipped] = []

    def feed(self, chunk: bytes) -> None:
        """Decode the items that a chunk completes. Chunks may be cut anywhere.

        Raises:
            DecodeError: the bytes are not a list of the resource.

        """
        try:
            items = self._splitter.feed(chunk)
        except OutsideTooLongError:
            raise self._no_list("it is too large") from None
        for item in items:
            if isinstance(item, TooLong):
                decoded: KubernetesObject | Skipped = _too_long(item, self._resource)
            else:
                _check_item(item, self._resource)
                decoded = _decode(item, self._resource)
            if isinstance(decoded, Skipped):
                self._skipped.append(decoded)
            else:
                self._objects.append(decoded)

    def finish(self) -> DecodedList:
        """Return the page, after the last chunk.

        Raises:
            DecodeError: the bytes were not a complete list of the resource.

        """
        resource = self._resource
        try:
            page = _LIST.decode(self._splitter.outside)
        except _FAULTS as error:
            raise self._no_list(str(error)) from None
        if (page.kind, page.api_version) != (f"{resource.kind}List", resource.api_version):
            raise self._no_list(f"it is a {page.kind} of {page.api_version}")
        if len(page.items or ()) != len(self._objects) + len(self._skipped):
            raise self._no_list("its items are no objects")
        return DecodedList(self._objects, self._skipped, page.metadata.resource_version, page.metadata.continue_token)

    def _no_list(self, reason: str) -> DecodeError:
        beginning = quote(self._splitter.outside[:1000].decode(errors="replace"))
        return DecodeError(f"the answer is no {self._resource.kind}List: {quote(reason)}; it begins {beginning!r}")


def decode_event(line: bytes | TooLong, resource: Resource) -> Event:
    """Decode one line of a watch.

    Raises:
        DecodeError: the line is not an event of the resource.

    """
    if isinstance(line, TooLong):
        return _decode_long_event(line, resource)
    # The first bytes show the type of nearly all objects. This avoids decoding them twice (a fifth of the time).
    if not line.startswith(_beginnings(resource)):
        return _decode_any_event(line, resource)
    try:
        typed = _event_decoder(resource.struct).decode(line)
    except _FAULTS:
        return _decode_any_event(line, resource)
    if not typed.object.metadata.name:
        raise _no_event("its object has no name", line, resource)
    version = _version(typed.object.metadata.resource_version)
    share(typed.object)
    return Event(typed.type, key_of(typed.object), typed.object, resource_version=version)


@lru_cache
def _beginnings(resource: Resource) -> tuple[bytes, ...]:
    typed = f'"object":{{"kind":"{resource.kind}","apiVersion":"{resource.api_version}",'
    return tuple(f'{{"type":"{type_}",{typed}'.encode() for type_ in _WITH_OBJECT)


def _decode_any_event(line: bytes, resource: Resource) -> Event:
    try:
        event = _EVENT.decode(line)
        if event.type == "ERROR":
            status = _STATUS.decode(event.object)
            return Event("ERROR", code=status.code, message=quote(status.message or status.reason or ""))
        type_ = _TYPE.decode(event.object)
        metadata = _IDENTITY.decode(event.object).metadata
    except _FAULTS as error:
        raise _no_event(str(error), line, resource) from None
    if (type_.kind, type_.api_version) != (resource.kind, resource.api_version):
        raise _no_event("its object is of another kind", line, resource)
    key, version = _key(metadata.namespace, metadata.name), _version(metadata.resource_version)
    if event.type == "BOOKMARK":
        annotations = metadata.annotations if isinstance(metadata.annotations, dict) else {}
        end = annotations.get(INITIAL_EVENTS_END) == "true"
        return Event("BOOKMARK", resource_version=version, initial_events_end=end)
    if event.type not in (*_WITH_OBJECT, *_WITHOUT_OBJECT):
        raise _no_event("its type is unknown", line, resource)
    if not key:
        raise _no_event("its object has no name", line, resource)
    if event.type == "DELETED":
        return Event("DELETED", key, resource_version=version)
    decoded = _decode(event.object, resource)
    if isinstance(decoded, Skipped):
        return Event(event.type, key, skipped=decoded, resource_version=version)
    return Event(event.type, key, decoded, resource_version=version)


def _decode_long_event(line: TooLong, resource: Resource) -> Event:
    skipped = _too_long(line, resource)
    found = _BEGINNING.match(line.head)
    if found and found["type"] == b"DELETED":
        return Event("DELETED", skipped.key)
    return Event("MODIFIED", skipped.key, skipped=skipped)


def _no_event(reason: str, line: bytes, resource: Resource) -> DecodeError:
    beginning = quote(line[:1000].decode(errors="replace"))
    return DecodeError(f"no event of a {resource.kind}: {quote(reason)}; it begins {beginning!r}")


def decode_node(raw: bytes) -> Node:
    """Decode a single Node.

    Raises:
        DecodeError: the bytes are not a core/v1 Node.

    """
    try:
        type_, node = _TYPE.decode(raw), msgspec.json.decode(raw, type=Node)
    except _FAULTS as error:
        raise DecodeError(f"the answer is no Node: {quote(str(error))}") from None
    if (type_.kind, type_.api_version) != ("Node", "v1"):
        raise DecodeError("the answer is no Node, but of another kind")
    return node


def message_of(refusal: bytes) -> str:
    """Return the error message in the body of a refused request, on one line.

    This is the message or the reason of a Status. If the body is not a Status, it is the beginning of the body.
    """
    try:
        status = _STATUS.decode(refusal)
    except _FAULTS:
        text = refusal.decode(errors="replace")
    else:
        text = status.message or status.reason or ""
    return quote(" ".join(text.split()))


def convert_object(mapping: Mapping[str, Any], resource: Resource) -> KubernetesObject | Skipped:
    """Convert plain data, as parsed from a YAML file, to an object; return ``Skipped`` if it does not fit."""
    try:
        return msgspec.convert(mapping, resource.struct, strict=True)
    except _FAULTS as error:
        metadata = mapping.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        return Skipped(resource.kind, _key(metadata.get("namespace", ""), metadata.get("name", "")), str(error))


def _check_item(raw: bytes, resource: Resource) -> None:
    """Raise DecodeError if an item says that it is of another kind. Most items do not name a kind."""
    try:
        type_ = _TYPE.decode(raw)
    except _FAULTS:
        return  # its decoder reports the error
    if type_.kind not in (None, "", resource.kind) or type_.api_version not in (None, "", resource.api_version):
        raise DecodeError(f"the answer is no {resource.kind}List: an item is of another kind")


def _decode(raw: bytes | msgspec.Raw, resource: Resource) -> KubernetesObject | Skipped:
    try:
        decoded = _decoder(resource.struct).decode(raw)
    except _FAULTS as error:
        fault = str(error)
    else:
        if not decoded.metadata.name:
            return Skipped(resource.kind, "", "it has no name")
        share(decoded)
        return decoded
    try:
        metadata = _IDENTITY.decode(raw).metadata
    except _FAULTS:
        return Skipped(resource.kind, "", fault)
    return Skipped(resource.kind, _key(metadata.namespace, metadata.name), fault)


def _too_long(item: TooLong, resource: Resource) -> Skipped:
    found = _BEGINNING.match(item.head)
    key = _key((found["namespace"] or b"").decode(), found["name"].decode()) if found else ""
    return Skipped(resource.kind, key, f"it has {item.size:,} bytes, more than the {MAX_OBJECT:,} that are read")


def _version(value: Any) -> str:
    """Return a resource version, or "" if it is not valid. The watch then continues from the last valid one."""
    return value if isinstance(value, str) and len(value) <= MAX_VERSION else ""


def _key(namespace: Any, name: Any) -> str:
    if not isinstance(name, str) or not name:
        return ""
    return f"{namespace}/{name}" if namespace and isinstance(namespace, str) else name
