"""What ``explain`` takes and prints."""

from __future__ import annotations

import pytest

from ipvs_proxy.commands.explain import SHOWN, Target, endpoints_text, parse_target, route_text, service_text
from ipvs_proxy.state.documents import (
    DrainState,
    EndpointState,
    MemberState,
    OmissionState,
    RouteState,
    ServiceState,
    VirtualServerState,
)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("10.96.0.1:443", Target("10.96.0.1", 443, "TCP")),
        ("10.96.0.10:53/udp", Target("10.96.0.10", 53, "UDP")),
        ("[FD00::1]:53/UDP", Target("fd00::1", 53, "UDP")),
        ("default/kubernetes", None),
        ("kubernetes", None),
        ("999.1.1.1:80", None),
        ("10.96.0.1", None),
        ("fd00::1:80", None),
    ],
)
def test_target_is_an_address_and_port_and_all_else_a_name(text: str, target: Target | None) -> None:
    assert parse_target(text) == target
    if target is not None:
        assert parse_target(str(target)) == target


def test_service_is_told_with_reasons_in_columns() -> None:
    server = VirtualServerState(
        name="10.96.0.10:80/TCP",
        address="10.96.0.10",
        port=80,
        protocol="TCP",
        reason="cluster-ip",
        in_kernel=True,
        scheduler="rr",
        affinity_seconds=10800,
        differences=["10.96.0.10:80/TCP lacks real server 10.244.0.4:8080"],
        endpoints=[
            EndpointState("10.244.0.3:8080", wanted=False, reason="not-ready", node="node-c"),
            EndpointState("10.244.0.9:8080", weight=0, inactive_connections=4),
            EndpointState("10.244.0.4:8080", wanted=True, reason="ready", node="node-b"),
            EndpointState("10.244.0.1:8080", True, "ready", local=True, node="node-a", weight=1, active_connections=12),
        ],
    )
    state = ServiceState(
        namespace="default",
        name="web",
        type="ClusterIP",
        in_sync=False,
        virtual_servers=[server],
        members=[MemberState("KUBE-CLUSTER-IP", "10.96.0.10,tcp:80", "cluster-ip", in_kernel=False)],
        omissions=[
            OmissionState("service default/web port x", "invalid-port"),
            OmissionState("service default/web port y", "no-mark-left", "all get the same endpoints"),
        ],
    )
    assert service_text(state) == (
        "default/web (ClusterIP): NOT as it should be in the kernel\n"
        "  left out: service default/web port x: invalid-port\n"
        "  served otherwise: service default/web port y: no-mark-left; all get the same endpoints\n"
        "\n"
        "10.96.0.10:80/TCP  cluster-ip, rr, affinity 10800 s\n"
        "  0 connections, 0/s, 0B/s in, 0B/s out\n"
        "  DIFFERS: 10.96.0.10:80/TCP lacks real server 10.244.0.4:8080\n"
        "  ENDPOINT         USE       REASON            WEIGHT  ACTIVE  INACTIVE  NODE\n"
        "  10.244.0.4:8080  missing   ready                  -       0         0  node-b\n"
        "  10.244.0.1:8080  in        ready                  1      12         0  node-a (here)\n"
        "  10.244.0.3:8080  out       not-ready              -       0         0  node-c\n"
        "  10.244.0.9:8080  draining  no-longer-wanted       0       0         4\n"
        "\n"
        "missing in the kernel: 10.96.0.10,tcp:80 of KUBE-CLUSTER-IP (cluster-ip)\n"
    )


def test_virtual_server_of_an_older_service_is_told_with_its_owner_alone() -> None:
    lost = VirtualServerState("203.0.113.80:80/TCP", "203.0.113.80", 80, "TCP", "external-ip", False, owner="ns/older")
    state = ServiceState("ns", "rival", "ClusterIP", in_sync=False, virtual_servers=[lost])
    assert service_text(state) == (
        "ns/rival (ClusterIP): another Service has some of its addresses\n"
        "\n"
        "203.0.113.80:80/TCP  external-ip\n"
        "  the older Service ns/older has it\n"
    )


@pytest.mark.parametrize(
    ("left", "words"), [(3000.0, "in 50m at the latest"), (None, "it has no deadline")], ids=["deadline", "none"]
)
def test_drain_is_told_below_its_virtual_server(left: float | None, words: str) -> None:
    draining = EndpointState("10.244.0.9:8080", weight=0, active_connections=1)
    servers = [
        VirtualServerState(f"10.96.0.10:{port}/TCP", "10.96.0.10", port, "TCP", "cluster-ip", True, endpoints=endpoints)
        for port, endpoints in ((80, [draining]), (81, []))
    ]
    drains = [DrainState("10.96.0.10:80/TCP", "10.244.0.9:8080", 130.0, left, 1)]
    text = service_text(ServiceState("default", "web", "ClusterIP", True, servers, drains=drains))
    told = f"  10.244.0.9:8080 has been draining for 2m: it goes when it has no connection, {words}\n"
    assert text.count(told) == text.count("draining for") == 1
    assert text.index(told) < text.index("10.96.0.10:81/TCP")


def test_annotations_are_told_with_the_values_that_the_agent_goes_by() -> None:
    state = ServiceState("default", "web", "ClusterIP", True, annotations={"ipvs-proxy.io/drain-timeout": "5m0s"})
    assert "\n  annotation ipvs-proxy.io/drain-timeout: 5m0s\n" in service_text(state)


def test_many_endpoints_are_not_all_printed() -> None:
    text = endpoints_text(EndpointState(f"10.0.{number // 256}.{number % 256}:80") for number in range(1_000))
    assert text.count("\n") == SHOWN + 2
    assert text.endswith("  and 950 endpoints more: -o json has all of them\n")


def test_route_is_told_step_by_step() -> None:
    route = RouteState(
        client="10.244.1.7",
        target="10.96.0.1:443/TCP",
        service="default/kubernetes",
        origin="in the cluster",
        verdict="balanced",
        steps=["one", "two"],
        virtual_server="10.96.0.1:443/TCP",
        real_servers=["192.0.2.1:6443"],
        masqueraded=False,
    )
    assert route_text(route) == (
        "10.244.1.7 -> 10.96.0.1:443/TCP (default/kubernetes)\n  1. one\n  2. two\n  => balanced among 192.0.2.1:6443\n"
    )
