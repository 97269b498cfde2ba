"""A cluster's Services, EndpointSlices and Nodes as the API server serialises them, for counting what they cost.

Nothing is left out that a real cluster's objects carry although the agent never reads it: managedFields, owners, labels
and annotations of a Helm release, target references, zones, hints. The same ``Shape`` gives the same bytes on every
machine. Order and names of fields are those of the API reference (core/v1, discovery.k8s.io/v1).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address

import msgspec

from bench import managed
from bench.managed import Json

ZONES = ("eu-west-1a", "eu-west-1b", "eu-west-1c")
CREATED = "2026-03-14T09:26:53Z"
FIRST_POD = int(IPv4Address("10.128.0.1"))
FIRST_VIP = int(IPv4Address("172.20.0.10"))
FIRST_BALANCER = int(IPv4Address("198.18.0.1"))
#: Endpoints in one slice: kube-controller-manager's default of --max-endpoints-per-slice.
SLICE_SIZE = 100
#: Images that a kubelet reports: its default of nodeStatusMaxImages.
IMAGES = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The size of a cluster, and which Services are special: every n-th, none for 0."""

    nodes: int = 5_000
    pods: int = 150_000
    #: ``(Services, pods of each)``; the sizes 250, 30 and 5 are those of the Kubernetes load test.
    services: tuple[tuple[int, int], ...] = ((1, 5_000), (150, 250), (1_650, 30), (8_199, 5))
    headless_every: int = 10
    other_proxy_every: int = 50
    two_ports_every: int = 5
    hints_every: int = 5
    load_balancer_every: int = 25

    @property
    def endpoints(self) -> int:
        """The number of pods behind Services."""
        return sum(count * pods for count, pods in self.services)


@dataclass(frozen=True, slots=True)
class Application:
    """One Service and its slices, without kind and apiVersion, which lists leave out of their items."""

    service: Json
    slices: list[Json]


def applications(shape: Shape, *, seed: int = 1) -> Iterator[Application]:
    """Return all Services with their slices, one after the other."""
    source = random.Random(seed)
    sizes = [pods for count, pods in shape.services for _ in range(count)]
    source.shuffle(sizes)
    first_pod = 0
    for index, pods in enumerate(sizes):
        service = _service(shape, index, source)
        slices = [
            endpoint_slice(
                service,
                source,
                first_pod=first_pod + start,
                endpoints=min(SLICE_SIZE, pods - start),
                nodes=shape.nodes,
                hints=_each(shape.hints_every, index),
            )
            for start in range(0, pods, SLICE_SIZE)
        ]
        yield Application(service, slices)
        first_pod += pods


def endpoint_slice(
    service: Json, source: random.Random, *, first_pod: int, endpoints: int, nodes: int, hints: bool = False
) -> Json:
    """Make one slice of a Service, with pods from number ``first_pod`` on."""
    metadata, name = service["metadata"], service["metadata"]["name"]
    labels = {
        **metadata["labels"],
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        "kubernetes.io/service-name": name,
    }
    if service["spec"]["clusterIP"] == "None":
        labels["service.kubernetes.io/headless"] = ""
    annotations = {"endpoints.kubernetes.io/last-change-trigger-time": "2026-03-14T10:15:30Z"}
    piece: Json = {
        "metadata": {
            "name": f"{name}-{_suffix(source)}",
            "generateName": f"{name}-",
            "namespace": metadata["namespace"],
            "uid": _uid(source),
            "resourceVersion": _version(source),
            "generation": source.randrange(1, 4000),
            "creationTimestamp": CREATED,
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [managed.owner_of(service)],
            "managedFields": [],
        },
        "addressType": "IPv4",
        "endpoints": [
            _endpoint(metadata, source, number=first_pod + offset, nodes=nodes, hints=hints)
            for offset in range(endpoints)
        ],
        "ports": [
            {"name": port["name"], "port": port["targetPort"], "protocol": port["protocol"]}
            for port in service["spec"]["ports"]
        ],
    }
    piece["metadata"]["managedFields"] = managed.of_slice(piece, time=CREATED)
    return piece


def node(number: int, source: random.Random) -> Json:
    """Make one Node as a kubelet reports it, with the images that it has."""
    name = _node_name(number)
    labels = {
        "beta.kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "node.kubernetes.io/instance-type": "m6i.4xlarge",
        "topology.kubernetes.io/region": ZONES[0][:-1],
        "topology.kubernetes.io/zone": _zone(number),
    }
    annotations = {
        "node.alpha.kubernetes.io/ttl": "300",
        "volumes.kubernetes.io/controller-managed-attach-detach": "true",
    }
    resources = {"cpu": "16", "ephemeral-storage": "104845292Ki", "memory": "64784544Ki", "pods": "110"}
    metadata_fields = {"f:metadata": {"f:annotations": managed.names(annotations), "f:labels": managed.names(labels)}}
    status_fields: Json = {
        "f:status": {
            "f:conditions": {
                f'k:{{"type":"{kind}"}}': {"f:lastHeartbeatTime": {}, "f:message": {}, "f:reason": {}, "f:status": {}}
                for kind in _CONDITIONS
            },
            "f:images": {},
        }
    }
    return {
        "metadata": {
            "name": name,
            "uid": _uid(source),
            "resourceVersion": _version(source),
            "creationTimestamp": CREATED,
            "labels": labels,
            "annotations": annotations,
            "managedFields": [
                managed.entry("kubelet", "v1", metadata_fields, time=CREATED),
                {**managed.entry("kubelet", "v1", status_fields, time=CREATED), "subresource": "status"},
            ],
        },
        "spec": {
            "podCIDR": f"10.{number // 256}.{number % 256}.0/24",
            "podCIDRs": [f"10.{number // 256}.{number % 256}.0/24"],
            "providerID": f"aws:///{_zone(number)}/i-{source.getrandbits(68):017x}",
        },
        "status": {
            "capacity": resources,
            "allocatable": resources,
            "conditions": [
                {
                    "type": kind,
                    "status": str(kind == "Ready"),
                    "lastHeartbeatTime": CREATED,
                    "lastTransitionTime": CREATED,
                    "reason": reason,
                    "message": message,
                }
                for kind, (reason, message) in _CONDITIONS.items()
            ],
            "addresses": [
                {"type": "InternalIP", "address": f"10.0.{number // 256}.{number % 256}"},
                {"type": "Hostname", "address": name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {
                "machineID": f"{source.getrandbits(128):032x}",
                "systemUUID": _uid(source),
                "bootID": _uid(source),
                "kernelVersion": "6.1.0-37-cloud-amd64",
                "osImage": "Debian GNU/Linux 12 (bookworm)",
                "containerRuntimeVersion": "containerd://2.1.4",
                "kubeletVersion": "v1.36.1",
                "kubeProxyVersion": "",
                "operatingSystem": "linux",
                "architecture": "amd64",
            },
            "images": [
                {
                    "names": [f"{image}@sha256:{source.getrandbits(256):064x}", f"{image}:v1.{index}"],
                    "sizeBytes": source.randrange(10**7, 10**9),
                }
                for index in range(IMAGES)
                for image in (f"registry.example.com/team-{index % 7}/service-{index}",)
            ],
        },
    }


def event_line(item: Json, kind: str, *, event: str = "ADDED") -> bytes:
    """Return one line of a watch, with its newline."""
    return event_of(msgspec.json.encode(item), kind, event=event)


def event_of(encoded: bytes, kind: str, *, event: str = "ADDED") -> bytes:
    """Return the line of a watch for an object that is encoded as in a list, with kind and apiVersion added."""
    version = "discovery.k8s.io/v1" if kind == "EndpointSlice" else "v1"
    head = f'{{"type":"{event}","object":{{"kind":"{kind}","apiVersion":"{version}",'
    return head.encode() + encoded[1:] + b"}\n"


def bookmark_line(kind: str, version: str) -> bytes:
    """Return a bookmark: an object with its version, and with what the encoder of its kind always writes."""
    empty: dict[str, Json] = {
        "Service": {"spec": {}, "status": {"loadBalancer": {}}},
        "EndpointSlice": {"addressType": "", "endpoints": None, "ports": None},
        "Node": {"spec": {}, "status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 0}}, "nodeInfo": _NO_INFO}},
    }
    return event_line({"metadata": {"resourceVersion": version}, **empty[kind]}, kind, event="BOOKMARK")


_NO_INFO = dict.fromkeys(
    (
        *("machineID", "systemUUID", "bootID", "kernelVersion", "osImage", "containerRuntimeVersion"),
        *("kubeletVersion", "kubeProxyVersion", "operatingSystem", "architecture"),
    ),
    "",
)
_CONDITIONS = {
    "MemoryPressure": ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    "DiskPressure": ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    "PIDPressure": ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    "Ready": ("KubeletReady", "kubelet is posting ready status"),
}


#: The labels by which a Service selects its pods.
_SELECTED = ("app.kubernetes.io/instance", "app.kubernetes.io/name")


def _service(shape: Shape, index: int, source: random.Random) -> Json:
    name, namespace = f"application-{index}", f"team-{index % 200}"
    labels = {
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/managed-by": "Helm",
        "app.kubernetes.io/name": name,
        "app.kubernetes.io/version": "1.4.2",
        "helm.sh/chart": "application-3.1.0",
    }
    if _each(shape.other_proxy_every, index + 1):
        labels["service.kubernetes.io/service-proxy-name"] = "mesh"
    annotations = {"meta.helm.sh/release-name": name, "meta.helm.sh/release-namespace": namespace}
    spec = _service_spec(shape, index, {label: labels[label] for label in _SELECTED})
    balanced = spec["type"] == "LoadBalancer"
    service: Json = {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": _uid(source),
            "resourceVersion": _version(source),
            "creationTimestamp": CREATED,
            "labels": labels,
            "annotations": annotations,
            "managedFields": [],
        },
        "spec": spec,
        "status": {
            "loadBalancer": {"ingress": [{"ip": _address(FIRST_BALANCER + index), "ipMode": "VIP"}]} if balanced else {}
        },
    }
    service["metadata"]["managedFields"] = managed.of_service(service, time=CREATED)
    return service


def _service_spec(shape: Shape, index: int, selector: dict[str, str]) -> Json:
    ports: list[Json] = [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}]
    if _each(shape.two_ports_every, index):
        ports.append({"name": "metrics", "protocol": "TCP", "port": 9090, "targetPort": 9090})
    headless = _each(shape.headless_every, index + 2)
    balanced = not headless and _each(shape.load_balancer_every, index + 3)
    address = "None" if headless else _address(FIRST_VIP + index)
    spec: Json = {
        "ports": ports,
        "selector": selector,
        "clusterIP": address,
        "clusterIPs": [address],
        "type": "LoadBalancer" if balanced else "ClusterIP",
        "sessionAffinity": "None",
        "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack",
        "internalTrafficPolicy": "Cluster",
    }
    if balanced:
        spec |= {"externalTrafficPolicy": "Cluster", "allocateLoadBalancerNodePorts": True}
        for offset, port in enumerate(ports):
            port["nodePort"] = 30000 + (index + offset) % 2768
    return spec


def _endpoint(metadata: Json, source: random.Random, *, number: int, nodes: int, hints: bool) -> Json:
    node_number = number * 7919 % nodes
    zone = _zone(node_number)
    endpoint: Json = {
        "addresses": [_address(FIRST_POD + number)],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "targetRef": {
            "kind": "Pod",
            "namespace": metadata["namespace"],
            "name": f"{metadata['name']}-{metadata['uid'][-9:]}-{_suffix(source)}",
            "uid": _uid(source),
        },
        "nodeName": _node_name(node_number),
        "zone": zone,
    }
    if hints:
        endpoint["hints"] = {"forZones": [{"name": zone}]}
    return endpoint


def _each(period: int, index: int) -> bool:
    return period > 0 and index % period == 0


def _address(number: int) -> str:
    return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


@cache
def _node_name(number: int) -> str:
    return f"ip-10-0-{number // 256}-{number % 256}.{ZONES[0][:-1]}.compute.internal"


def _zone(node_number: int) -> str:
    return ZONES[node_number % len(ZONES)]


def _uid(source: random.Random) -> str:
    digits = f"{source.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _suffix(source: random.Random) -> str:
    return f"{source.getrandbits(20):05x}"


def _version(source: random.Random) -> str:
    return str(source.randrange(1_000_000_000, 2_000_000_000))
