"""What objects share after decoding, and what is dropped: nothing that anybody reads."""

from __future__ import annotations

from msgspec import json, structs

from bench import cluster
from bench.api_objects import Shape, applications
from ipvs_proxy.kube.decode import convert_object, decode_event
from ipvs_proxy.kube.objects import EndpointSlice, KubernetesObject, ObjectMeta, Service, SliceMeta
from ipvs_proxy.kube.resources import ENDPOINT_SLICES, SERVICES, Resource

RESOURCES = {"Service": SERVICES, "EndpointSlice": ENDPOINT_SLICES}
SHAPE = Shape(nodes=5, services=((6, 3), (2, 12)), two_ports_every=2, hints_every=2, load_balancer_every=3)


def decoded(mapping: dict[str, object]) -> KubernetesObject:
    item = decode_event(json.encode({"type": "ADDED", "object": mapping}), RESOURCES[str(mapping["kind"])]).object
    assert item is not None
    return item


def service(index: int, **metadata: object) -> Service:
    made = cluster.service(index)
    found = decoded(made | {"metadata": made["metadata"] | metadata})
    assert isinstance(found, Service)
    return found


def piece(index: int) -> EndpointSlice:
    made = cluster.endpoint_slice(index, 0, cluster.pods_of(index, 3))
    for endpoint in made["endpoints"]:
        endpoint["hints"] = {"forZones": [{"name": "zone-a"}]}
    found = decoded(made)
    assert isinstance(found, EndpointSlice)
    return found


def test_services_share_what_they_have_alike() -> None:
    one, other = service(52), service(102)
    for field in ("type", "ports", "ip_families", "session_affinity", "internal_traffic_policy"):
        assert getattr(one.spec, field) is getattr(other.spec, field), field
    assert one.metadata.namespace is other.metadata.namespace
    assert one.status is other.status


def test_slices_share_what_they_have_alike() -> None:
    one, other = piece(52), piece(102)
    assert one.metadata.namespace is other.metadata.namespace
    assert one.address_type is other.address_type
    assert one.ports is other.ports
    assert one.endpoints is not None
    assert other.endpoints is not None
    for endpoint in (*one.endpoints, *other.endpoints):
        assert endpoint.conditions is one.endpoints[0].conditions
        assert endpoint.hints is one.endpoints[0].hints
        assert endpoint.zone is one.endpoints[0].zone


def test_labels_and_annotations_of_a_service_that_nobody_reads_are_dropped() -> None:
    labels = {"app": "web", "k8s-app": "kube-dns", "service.kubernetes.io/service-proxy-name": "mesh"}
    annotations = {"ipvs-proxy.io/scheduler": "lc", "kubectl.kubernetes.io/last-applied-configuration": "{}" * 1000}
    metadata = service(5, labels=labels, annotations=annotations).metadata
    assert metadata.labels == {name: text for name, text in labels.items() if name != "app"}
    assert metadata.annotations == {"ipvs-proxy.io/scheduler": "lc"}
    assert service(5, labels={"app": "web"}, annotations={"a": "b"}).metadata == service(5, labels={}).metadata


def kept(item: KubernetesObject | object) -> KubernetesObject:
    """Return an object without what sharing may drop."""
    assert isinstance(item, (Service, EndpointSlice))
    if isinstance(item, EndpointSlice):
        assert isinstance(item.metadata, SliceMeta)
        return structs.replace(item, metadata=structs.replace(item.metadata, resource_version=""))
    assert isinstance(item.metadata, ObjectMeta)
    labels = {name: text for name, text in (item.metadata.labels or {}).items() if "proxy-name" in name}
    metadata = structs.replace(item.metadata, resource_version="", labels=labels or None, annotations=None)
    spec = item.spec
    if spec.cluster_ips == [spec.cluster_ip]:
        spec = structs.replace(spec, cluster_ips=None)
    return structs.replace(item, metadata=metadata, spec=spec)


def test_objects_say_the_same_as_before() -> None:
    """Compared with the same objects as manifests have them, which share nothing."""
    for made in applications(SHAPE):
        for kind, mapping in (("Service", made.service), *(("EndpointSlice", one) for one in made.slices)):
            resource: Resource = RESOURCES[kind]
            typed = {"kind": kind, "apiVersion": resource.api_version, **mapping}
            assert kept(decoded(typed)) == kept(convert_object(typed, resource)), mapping


def test_long_lists_are_not_kept_for_others() -> None:
    made = cluster.service(7)
    listed = [{"name": f"p{port}", "port": port, "protocol": "TCP"} for port in range(1, 10)]
    one, other = (decoded(made | {"spec": made["spec"] | {"ports": listed}}) for _ in range(2))
    assert isinstance(one, Service)
    assert isinstance(other, Service)
    assert one.spec.ports == other.spec.ports
    assert one.spec.ports is not other.spec.ports
