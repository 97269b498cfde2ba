"""The three kinds that the agent lists and watches, with the selectors that kube-proxy uses.

The server applies the selectors, so objects that this agent does not need are never sent: Services of another proxy,
headless Services and their EndpointSlices, and all Nodes except its own.

EndpointSlices are not selected by the proxy's name, although the API server's own controller copies the labels of a
Service to them (``setEndpointSliceLabels`` of k8s.io/endpointslice): slices that somebody else makes, or that are
mirrored from Endpoints, need not have it, and where a Service gets the label, its slices have it only later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from ipvs_proxy.kube.objects import EndpointSlice, KubernetesObject, Node, Service


class Resource(NamedTuple):
    """One kind: its API path, the struct it is decoded to, and the selectors of every list and watch."""

    kind: str
    path: str
    struct: type[KubernetesObject]
    label_selector: str = ""
    field_selector: str = ""

    @property
    def api_version(self) -> str:
        """The group and version as in an object's ``apiVersion``.

        The path is ``/api/v1/...`` or ``/apis/GROUP/VERSION/...``.
        """
        return self.path.removeprefix("/apis/").removeprefix("/api/").rpartition("/")[0]

    @property
    def selectors(self) -> dict[str, str]:
        """The selectors as query parameters, without empty ones."""
        selectors = {"labelSelector": self.label_selector, "fieldSelector": self.field_selector}
        return {name: value for name, value in selectors.items() if value}


#: Label that hands a Service to another proxy than kube-proxy (Kubernetes documentation, "well-known labels").
SERVICE_PROXY_NAME: Final = "service.kubernetes.io/service-proxy-name"

SERVICES = Resource(
    "Service",
    "/api/v1/services",
    Service,
    label_selector=f"!{SERVICE_PROXY_NAME}",
    field_selector="spec.clusterIP!=None",
)
ENDPOINT_SLICES = Resource(
    "EndpointSlice",
    "/apis/discovery.k8s.io/v1/endpointslices",
    EndpointSlice,
    label_selector="!service.kubernetes.io/headless",
)


def services_for(service_proxy_name: str) -> Resource:
    """Return the resource that selects the Services of the proxy of this name; those of no other one if it is empty."""
    if not service_proxy_name:
        return SERVICES
    return SERVICES._replace(label_selector=f"{SERVICE_PROXY_NAME}={service_proxy_name}")


def is_for(service_proxy_name: str, labels: Mapping[str, str]) -> bool:
    """Return whether a Service with these labels passes that selector."""
    return labels.get(SERVICE_PROXY_NAME) == (service_proxy_name or None)


def own_node(name: str) -> Resource:
    """Return the resource that selects only the Node of this name."""
    return Resource("Node", "/api/v1/nodes", Node, field_selector=f"metadata.name={name}")
