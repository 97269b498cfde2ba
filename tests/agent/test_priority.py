"""Which Services go first."""

from __future__ import annotations

import pytest

from ipvs_proxy.agent.sync.priority import find_first, goes_first
from ipvs_proxy.kube.objects import Service
from ipvs_proxy.plan.fragment import ServiceName
from tests.support.objects import service

DNS_LABEL = {"k8s-app": "kube-dns"}


def named(*services: Service) -> dict[ServiceName, Service]:
    return {ServiceName(item.metadata.namespace, item.metadata.name): item for item in services}


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        (service("kubernetes"), True),
        (service("kubernetes", namespace="kube-system"), False),
        (service("kube-dns", namespace="kube-system"), True),
        (service("coredns", namespace="kube-system"), True),
        (service("rke2-coredns", namespace="kube-system", labels=DNS_LABEL), True),
        (service("metrics-server", namespace="kube-system"), False),
        (service("kube-dns"), False),
        (service("dns", namespace="shop", labels=DNS_LABEL), False),
    ],
    ids=lambda value: f"{value.metadata.namespace}/{value.metadata.name}" if isinstance(value, Service) else None,
)
def test_the_api_server_and_the_clusters_dns_go_first(candidate: Service, expected: bool) -> None:
    services = named(candidate)
    (name,) = services
    assert goes_first(name, services) is expected
    assert find_first(services, services) == ([name] if expected else [])


def test_the_api_server_goes_before_dns() -> None:
    services = named(
        service("coredns", namespace="kube-system"), service("web"), service("kubernetes"), service("a", namespace="a")
    )
    assert find_first(services, services) == [("default", "kubernetes"), ("kube-system", "coredns")]


def test_a_dns_service_that_is_gone_has_no_precedence() -> None:
    assert not goes_first(ServiceName("kube-system", "kube-dns"), {})
