"""Which Services are asked for, and which pass where no API server selects them."""

from __future__ import annotations

import pytest

from ipvs_proxy.agent.assembly import resources_of
from ipvs_proxy.kube.manifest_objects import read_objects
from ipvs_proxy.kube.resources import (
    ENDPOINT_SLICES,
    SERVICE_PROXY_NAME,
    SERVICES,
    is_for,
    own_node,
    services_for,
)
from ipvs_proxy.settings.merge import effective


def test_name_of_the_proxy_is_a_selector_of_services_only() -> None:
    assert services_for("") == SERVICES
    assert services_for("ipvs").selectors == {
        "labelSelector": "service.kubernetes.io/service-proxy-name=ipvs",
        "fieldSelector": "spec.clusterIP!=None",
    }
    settings = effective({"hostname_override": "node", "service_proxy_name": "ipvs"})
    assert resources_of(settings) == (services_for("ipvs"), ENDPOINT_SLICES, own_node("node"))
    assert "service-proxy-name" not in ENDPOINT_SLICES.label_selector, "those that others make do not have it"


@pytest.mark.parametrize(
    ("name", "labels", "passes"),
    [
        ("", {}, True),
        ("", {"app": "web"}, True),
        ("", {SERVICE_PROXY_NAME: "ipvs"}, False),
        ("", {SERVICE_PROXY_NAME: ""}, False),
        ("ipvs", {}, False),
        ("ipvs", {SERVICE_PROXY_NAME: ""}, False),
        ("ipvs", {SERVICE_PROXY_NAME: "other"}, False),
        ("ipvs", {SERVICE_PROXY_NAME: "ipvs", "app": "web"}, True),
    ],
)
def test_manifests_are_selected_as_the_api_server_does(name: str, labels: dict[str, str], passes: bool) -> None:
    assert is_for(name, labels) is passes
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "labels": labels},
        "spec": {"clusterIP": "10.96.0.1"},
    }
    assert len(read_objects([service], "node", name).items) == passes
