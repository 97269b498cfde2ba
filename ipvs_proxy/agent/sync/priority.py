"""Which Services are programmed first, as everything else in a cluster waits for them: the API server and DNS."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ipvs_proxy.kube.objects import Service
from ipvs_proxy.plan.fragment import ServiceName

API_SERVER = ServiceName("default", "kubernetes")
_SYSTEM = "kube-system"
#: Where they are: what leaves out all others is a quick look at each name.
_NAMESPACES = frozenset((API_SERVER.namespace, _SYSTEM))


def goes_first(name: ServiceName, services: Mapping[ServiceName, Service]) -> bool:
    """Return whether a Service goes before the others."""
    if name == API_SERVER:
        return True
    service = services.get(name) if name.namespace == _SYSTEM else None
    return service is not None and _is_cluster_dns(service)


def find_first(names: Iterable[ServiceName], services: Mapping[ServiceName, Service]) -> list[ServiceName]:
    """Return those that go before the others, in their order: the API server, then the cluster's DNS."""
    first = [name for name in names if name[0] in _NAMESPACES and goes_first(name, services)]
    return sorted(first, key=lambda name: (name != API_SERVER, name))


def _is_cluster_dns(service: Service) -> bool:
    """Return whether a Service is the cluster's DNS: the label that all installers keep, or the usual name."""
    metadata = service.metadata
    return (metadata.labels or {}).get("k8s-app") == "kube-dns" or metadata.name in {"kube-dns", "coredns"}
