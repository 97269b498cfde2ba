"""Converts the plain data of manifests to objects, as ``kubectl apply`` and the API server would.

Lists are unfolded, ``null`` counts as absent, a missing namespace becomes ``default``, and the API's defaults apply.
Kinds that the agent does not use are ignored. An object that looks meant for the agent but is not used is reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import msgspec

from ipvs_proxy.kube.decode import Skipped, convert_object, key_of
from ipvs_proxy.kube.documents import MAX_DEPTH, TOO_DEEP, ParseError
from ipvs_proxy.kube.objects import EndpointSlice, KubernetesObject, Node, Service
from ipvs_proxy.kube.resources import ENDPOINT_SLICES, SERVICES, Resource, is_for, own_node
from ipvs_proxy.kube.texts import quote

#: Maximum length in characters of a namespace and of a name (Kubernetes documentation, "Object Names and IDs").
LONGEST_NAMESPACE, LONGEST_NAME = 63, 253
_LONGEST_KEY: Final = LONGEST_NAMESPACE + 1 + LONGEST_NAME

_API_VERSIONS: Final = {"Service": "v1", "Node": "v1", "EndpointSlice": "discovery.k8s.io/v1"}
#: Kinds that look meant for a proxy, in lower case, with what to write instead.
_LOOKS_MEANT: Final = {
    "endpoints": "write an EndpointSlice (discovery.k8s.io/v1) with the label kubernetes.io/service-name",
    **{
        spelling: f"the kind is spelled {kind}"
        for kind in _API_VERSIONS
        for spelling in (kind.lower(), f"{kind.lower()}s")
    },
}


class Unused(NamedTuple):
    """An object that looks meant for the agent but is not used: its kind and apiVersion as written, and the remedy."""

    kind: str
    api_version: str
    remedy: str


class Content(NamedTuple):
    """What a file contains for the agent.

    ``is_empty`` means that it contains nothing, not even an empty List. An editor or a full disk may have truncated it.
    ``removes`` means that it contains a List without items. With that, an operator confirms that objects are missing on
    purpose.
    """

    items: list[KubernetesObject | Skipped]
    unused: list[Unused]
    is_empty: bool = False
    removes: bool = False


def read_objects(documents: list[Any], node_name: str, service_proxy_name: str = "") -> Content:
    """Return what the documents of a file contain for the agent of one node, and of that name if it has one.

    Raises:
        ParseError: a document is not an object, as may happen if the file is incomplete, or is nested too deeply.

    """
    if any(not isinstance(document, dict) for document in documents if document is not None):
        raise ParseError("it holds something that is no object of the API")
    resources = {resource.kind: resource for resource in (SERVICES, ENDPOINT_SLICES, own_node(node_name))}
    items: list[KubernetesObject | Skipped] = []
    unused: dict[Unused, None] = {}
    for mapping in _objects(documents):
        kind, version = str(mapping.get("kind")), str(mapping.get("apiVersion"))
        resource = resources.get(kind)
        if resource is not None and version == _API_VERSIONS[kind]:
            item = _convert(mapping, resource)
            if _is_selected(item, node_name, service_proxy_name):
                items.append(item)
        elif resource is not None:
            # Knative and others define Services of their own.
            remedy = f"the apiVersion of a {kind} is {_API_VERSIONS[kind]}"
            unused[Unused(kind, quote(version), remedy)] = None
        elif kind.lower() in _LOOKS_MEANT:
            unused[Unused(kind, quote(version), _LOOKS_MEANT[kind.lower()])] = None
    return Content(
        items,
        list(unused),
        is_empty=all(document is None for document in documents),
        removes=any(_is_list(document) and document["items"] == [] for document in documents),
    )


def identity(item: KubernetesObject | Skipped) -> tuple[str, str]:
    """Return the kind and the key of an object, whether it was decoded or skipped."""
    if isinstance(item, Skipped):
        return item.kind, item.key
    return type(item).__name__, key_of(item)


def _is_list(document: Any) -> bool:
    return (
        isinstance(document, dict)
        and str(document.get("kind")).endswith("List")
        and isinstance(document.get("items"), list)
    )


def _objects(
    documents: Iterable[Any], *, api_version: Any = None, kind: str = "", depth: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield the objects of documents, unfolding lists.

    The items of a typed list (ServiceList) may omit the kind and apiVersion, which follow from the list.
    """
    if depth > MAX_DEPTH:
        raise ParseError(TOO_DEEP)
    for document in documents:
        if not isinstance(document, dict):
            continue
        mapping = document
        if kind and "kind" not in mapping:
            mapping = {"apiVersion": api_version, "kind": kind} | mapping
        if _is_list(mapping):
            own = str(mapping["kind"]).removesuffix("List")
            yield from _objects(mapping["items"], api_version=mapping.get("apiVersion"), kind=own, depth=depth + 1)
        else:
            yield mapping


def _convert(mapping: dict[str, Any], resource: Resource) -> KubernetesObject | Skipped:
    plain = _without_nulls(mapping)
    metadata = plain.get("metadata")
    if resource.kind != "Node" and isinstance(metadata, dict) and not metadata.get("namespace"):
        plain["metadata"] = metadata | {"namespace": "default"}
    if resource.kind == "EndpointSlice" and isinstance(plain.get("ports"), list):
        # The API's default for a port's name. Without it, the port would match no port of a Service.
        plain["ports"] = [{"name": ""} | port if isinstance(port, dict) else port for port in plain["ports"]]
    try:
        item = convert_object(plain, resource)
        # JSON can spell strings that UTF-8 cannot encode. Logging or serving one of them would fail.
        msgspec.json.encode(item)
    except ValueError:
        name = metadata.get("name") if isinstance(metadata, dict) else ""
        namespace = plain["metadata"]["namespace"] if isinstance(metadata, dict) and resource.kind != "Node" else ""
        key = f"{namespace}/{name}" if namespace else str(name)
        return Skipped(resource.kind, quote(key, _LONGEST_KEY), "a text in it is not UTF-8 (a surrogate stands alone)")
    if isinstance(item, Skipped):
        return Skipped(item.kind, quote(item.key, _LONGEST_KEY), quote(item.error))
    if len(item.metadata.name) > LONGEST_NAME or len(item.metadata.namespace) > LONGEST_NAMESPACE:
        return Skipped(resource.kind, quote(key_of(item), _LONGEST_KEY), "its name or namespace is too long")
    return item


def _without_nulls(value: Any, depth: int = 0) -> Any:
    """Return plain data without null fields, which the API drops as well."""
    if depth > MAX_DEPTH:
        raise ParseError(TOO_DEEP)
    if isinstance(value, dict):
        return {key: _without_nulls(field, depth + 1) for key, field in value.items() if field is not None}
    if isinstance(value, list):
        return [_without_nulls(element, depth + 1) for element in value]
    return value


def _is_selected(item: KubernetesObject | Skipped, node_name: str, service_proxy_name: str) -> bool:
    """Return whether an object passes the selectors that the API server applies for the reflectors."""
    if isinstance(item, Skipped):
        return item.kind != "Node" or item.key == node_name
    match item:
        case Service():
            return is_for(service_proxy_name, item.metadata.labels or {}) and item.spec.cluster_ip != "None"
        case EndpointSlice(metadata=metadata):
            return metadata.labels is None or metadata.labels.headless is None
        case Node():
            return item.metadata.name == node_name
