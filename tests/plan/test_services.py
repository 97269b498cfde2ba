"""What one Service asks of the kernel."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from ipvs_proxy.kube.objects import (
    ClientIPConfig,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
    SessionAffinityConfig,
)
from ipvs_proxy.kube.resources import SERVICE_PROXY_NAME
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.endpoints import Omission
from ipvs_proxy.plan.fragment import Context, Fragment, ServiceName
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.services import plan_service
from ipvs_proxy.plan.tables import (
    ACTIVE,
    PERSISTENT,
    SCHED2,
    Family,
    Protocol,
    SetEntry,
    VirtualServer,
    VirtualServerKey,
)
from tests.support.objects import HTTP, dual_stack, endpoint, endpoint_slice, packed, real, service, virtual
from tests.support.roles import role

HERE = Context("node-a")
LABELLED = {SERVICE_PROXY_NAME: "a"}
KEY = virtual("10.96.0.10")
REMOTE = endpoint("10.0.0.2", node="node-b")
LOCAL = endpoint("10.0.0.1", node="node-a")
UNREADY = endpoint("10.0.0.3", ready=False, serving=False, node="node-a")
DRAINING = endpoint("10.0.0.4", ready=False, serving=True, terminating=True, node="node-a")
GONE = endpoint("10.0.0.5", ready=False, serving=False, terminating=True, node="node-a")


def planned(wanted: Service, *slices: EndpointSlice, context: Context = HERE) -> Fragment:
    return plan_service(wanted, slices, context, Marks())


def server(fragment: Fragment, key: VirtualServerKey = KEY) -> VirtualServer:
    return fragment.virtual_servers[key][0]


def is_empty(fragment: Fragment) -> bool:
    return not (fragment.virtual_servers or fragment.addresses or fragment.entries or fragment.choices)


def omitted(fragment: Fragment) -> list[Reason]:
    return [omission.reason for omission in fragment.omissions]


# Which Services are planned at all.


@pytest.mark.parametrize(
    ("skipped", "reason"),
    [
        (service(cluster_ip="None"), Reason.HEADLESS),
        (service(cluster_ip=""), Reason.NO_CLUSTER_IP),
        (service(kind="ExternalName"), Reason.EXTERNAL_NAME),
        (service(kind="ExternalName", cluster_ip=""), Reason.EXTERNAL_NAME),
        (service(labels={SERVICE_PROXY_NAME: "other"}), Reason.OTHER_PROXY),
        (service(labels={SERVICE_PROXY_NAME: ""}), Reason.OTHER_PROXY),
    ],
    ids=["headless", "no cluster IP", "ExternalName", "ExternalName without IP", "other proxy", "empty proxy name"],
)
def test_services_that_ask_for_nothing(skipped: Service, reason: Reason) -> None:
    fragment = planned(skipped, endpoint_slice(LOCAL))
    assert is_empty(fragment)
    assert fragment.omissions == [Omission("service default/web", reason)]


@pytest.mark.parametrize(("labels", "is_served"), [({}, False), ({SERVICE_PROXY_NAME: "b"}, False), (LABELLED, True)])
def test_with_a_name_only_services_of_its_label_are_planned(labels: dict[str, str], is_served: bool) -> None:
    context = HERE._replace(service_proxy_name="a")
    fragment = plan_service(service(labels=labels), [endpoint_slice(LOCAL)], context, Marks())
    assert is_empty(fragment) is not is_served
    assert omitted(fragment) == ([] if is_served else [Reason.OTHER_PROXY])


@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort", "LoadBalancer", "SomethingNew"])
def test_every_other_type_has_its_cluster_ip(kind: str) -> None:
    fragment = planned(service(kind=kind, labels={"app": "web"}), endpoint_slice(REMOTE))
    assert list(fragment.virtual_servers) == [KEY]
    assert fragment.omissions == []


V4, V6 = "10.96.0.10", "fd00:96::10"


@pytest.mark.parametrize(
    ("wanted", "addresses", "reasons"),
    [
        (service(cluster_ip=V4), {V4}, []),
        (service(cluster_ip=V6), {V6}, []),
        (service(cluster_ip=V4, cluster_ips=[V4, V6], families=["IPv4", "IPv6"]), {V4, V6}, []),
        (service(cluster_ip=V6, cluster_ips=[V6, V4], families=["IPv6", "IPv4"]), {V4, V6}, []),
        (service(cluster_ip=V4, cluster_ips=[V4], families=["IPv4"]), {V4}, []),
        (service(cluster_ip=V6, cluster_ips=[V6], families=["IPv6"]), {V6}, []),
        # Without ipFamilies only clusterIP counts.
        (service(cluster_ip=V4, cluster_ips=[V4, V6]), {V4}, []),
        (service(cluster_ip=V4, cluster_ips=[V4, V6], families=[]), {V4}, []),
        # The second address is still to be allocated.
        (service(cluster_ip=V4, cluster_ips=[V4], families=["IPv4", "IPv6"]), {V4}, []),
        (service(cluster_ip=V4, families=["IPv4"]), {V4}, []),
        # A list in the wrong order, or text that is no address: the other family goes on.
        (
            service(cluster_ip=V4, cluster_ips=[V4, V6], families=["IPv6", "IPv4"]),
            set(),
            [Reason.INVALID_CLUSTER_IP, Reason.INVALID_CLUSTER_IP],
        ),
        (
            service(cluster_ip=V4, cluster_ips=[V4, "nonsense"], families=["IPv4", "IPv6"]),
            {V4},
            [Reason.INVALID_CLUSTER_IP],
        ),
        (service(cluster_ip="nonsense"), set(), [Reason.INVALID_CLUSTER_IP, Reason.INVALID_CLUSTER_IP]),
        (service(cluster_ip=V4, cluster_ips=[V4], families=["IPv5"]), set(), []),
        (service(cluster_ip="010.096.000.010"), {V4}, []),
    ],
    ids=lambda value: str(value.spec.cluster_ips or value.spec.cluster_ip) if isinstance(value, Service) else "",
)
def test_cluster_ips_by_family(wanted: Service, addresses: set[str], reasons: list[Reason]) -> None:
    fragment = planned(wanted)
    assert set(fragment.addresses) == {packed(address) for address in addresses}
    assert {key.address for key in fragment.virtual_servers} == set(fragment.addresses)
    assert omitted(fragment) == reasons


def test_a_node_of_one_family_plans_only_that_family() -> None:
    fragment = planned(dual_stack(), context=HERE._replace(families=(Family.IPV6,)))
    assert set(fragment.addresses) == {packed(V6)}
    assert fragment.omissions == []


def test_each_family_has_its_own_endpoints() -> None:
    fragment = planned(
        dual_stack(),
        endpoint_slice(REMOTE, name="web-4"),
        endpoint_slice(endpoint("fd00::2"), name="web-6", address_type="IPv6"),
    )
    assert server(fragment, virtual(V4)).real_servers == {real("10.0.0.2"): ACTIVE}
    assert server(fragment, virtual(V6)).real_servers == {real("fd00::2"): ACTIVE}


def test_what_is_left_out_of_both_families_is_told_once() -> None:
    fragment = planned(dual_stack(), endpoint_slice(endpoint("pod.example.com"), address_type="FQDN"))
    assert omitted(fragment) == [Reason.UNSUPPORTED_ADDRESS_TYPE]


# Ports.


def test_one_virtual_server_per_port_each_with_its_own_endpoints() -> None:
    ports = [
        ServicePort(53, "dns", "UDP"),
        ServicePort(53, "dns-tcp", "TCP"),
        ServicePort(3868, "diameter", "SCTP"),
        ServicePort(9153, "metrics"),
    ]
    piece = endpoint_slice(
        REMOTE,
        ports=[
            EndpointPort("dns", 5353, "UDP"),
            EndpointPort("dns-tcp", 5354, "TCP"),
            EndpointPort("diameter", 3868, "SCTP"),
            # Joined by name and protocol: this one is not the Service's port.
            EndpointPort("metrics", 9153, "UDP"),
        ],
    )
    fragment = planned(service(ports=ports), piece)
    assert {key: set(one.real_servers) for key, (one, _) in fragment.virtual_servers.items()} == {
        virtual(V4, 53, Protocol.UDP): {real("10.0.0.2", 5353)},
        virtual(V4, 53, Protocol.TCP): {real("10.0.0.2", 5354)},
        virtual(V4, 3868, Protocol.SCTP): {real("10.0.0.2", 3868)},
        virtual(V4, 9153, Protocol.TCP): set(),
    }
    assert all(reason is Reason.CLUSTER_IP for _, reason in fragment.virtual_servers.values())


def test_an_unnamed_port_joins_the_empty_name_only() -> None:
    fragment = planned(
        service(ports=[ServicePort(80)]),
        endpoint_slice(REMOTE, name="web-1", ports=[EndpointPort("", 8080)]),
        endpoint_slice(LOCAL, name="web-2", ports=[EndpointPort("http", 8080)]),
        endpoint_slice(DRAINING, name="web-3", ports=[EndpointPort(None, 8080)]),
    )
    assert set(server(fragment).real_servers) == {real("10.0.0.2")}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (ServicePort(0, "bad"), Reason.INVALID_PORT),
        (ServicePort(81, "bad", "ICMP"), Reason.UNKNOWN_PROTOCOL),
        (ServicePort(81, "bad", "tcp"), Reason.UNKNOWN_PROTOCOL),
        (ServicePort(80, "bad"), Reason.DUPLICATE_PORT),
    ],
    ids=repr,
)
def test_a_bad_port_is_omitted_with_its_name_and_the_others_stay(bad: ServicePort, reason: Reason) -> None:
    fragment = planned(service(ports=[HTTP, bad, ServicePort(443, "https")]), endpoint_slice(REMOTE))
    assert list(fragment.virtual_servers) == [KEY, virtual(V4, 443)]
    assert set(server(fragment).real_servers) == {real("10.0.0.2")}
    assert omitted(fragment) == [reason]
    assert fragment.omissions[0].where.startswith("service default/web port bad")


@pytest.mark.parametrize("ports", [None, []])
def test_a_service_without_ports_asks_for_nothing(ports: list[ServicePort] | None) -> None:
    wanted = Service(ObjectMeta("web", "default"), ServiceSpec(cluster_ip=V4, ports=ports))
    assert is_empty(planned(wanted))


# Settings of the virtual server.


def test_without_affinity_nothing_is_set() -> None:
    assert server(planned(service())).settings == ("rr", 0, 0, None)


@pytest.mark.parametrize(("scheduler", "flags"), [("rr", 0), ("lc", 0), ("sh", 0), ("mh", SCHED2), ("mhx", 0)])
def test_only_mh_hashes_the_source_port(scheduler: str, flags: int) -> None:
    context = HERE._replace(scheduler=scheduler)
    assert server(planned(service(), context=context)).settings == (scheduler, flags, 0, None)
    sticky = server(planned(service(affinity="ClientIP"), context=context))
    assert sticky.flags == flags | PERSISTENT


def client_ip(config: SessionAffinityConfig | None) -> Service:
    base = service()
    spec = ServiceSpec(
        cluster_ip=V4, ports=base.spec.ports, session_affinity="ClientIP", session_affinity_config=config
    )
    return Service(base.metadata, spec)


@pytest.mark.parametrize(
    ("config", "timeout", "reasons"),
    [
        (None, 10_800, []),
        (SessionAffinityConfig(None), 10_800, []),
        (SessionAffinityConfig(ClientIPConfig(None)), 10_800, []),
        (SessionAffinityConfig(ClientIPConfig(1)), 1, []),
        (SessionAffinityConfig(ClientIPConfig(600)), 600, []),
        (SessionAffinityConfig(ClientIPConfig(86_400)), 86_400, []),
        (SessionAffinityConfig(ClientIPConfig(86_401)), 10_800, [Reason.INVALID_AFFINITY_TIMEOUT]),
        (SessionAffinityConfig(ClientIPConfig(0)), 10_800, [Reason.INVALID_AFFINITY_TIMEOUT]),
        (SessionAffinityConfig(ClientIPConfig(-1)), 10_800, [Reason.INVALID_AFFINITY_TIMEOUT]),
    ],
    ids=repr,
)
def test_affinity_is_persistence_with_its_timeout(
    config: SessionAffinityConfig | None, timeout: int, reasons: list[Reason]
) -> None:
    fragment = planned(client_ip(config))
    assert server(fragment).settings == ("rr", PERSISTENT, timeout, None)
    assert omitted(fragment) == reasons


def test_a_leftover_timeout_without_affinity_means_nothing() -> None:
    assert server(planned(service(affinity="None", timeout=600))).settings == ("rr", 0, 0, None)


# Endpoints.


def test_no_endpoints_gives_a_virtual_server_without_real_servers() -> None:
    fragment = planned(service())
    assert server(fragment).real_servers == {}
    assert fragment.addresses == {packed(V4): Reason.CLUSTER_IP}


def test_ready_endpoints_get_weight_1_and_each_decision_is_kept() -> None:
    fragment = planned(service(), endpoint_slice(LOCAL, REMOTE, UNREADY, DRAINING, GONE))
    assert server(fragment).real_servers == {real("10.0.0.1"): ACTIVE, real("10.0.0.2"): ACTIVE}
    assert ACTIVE == (1, 0, 0, 0)
    assert [(choice.key, choice.used, choice.reason) for choice in fragment.choices[KEY]] == [
        (real("10.0.0.1"), True, Reason.READY),
        (real("10.0.0.2"), True, Reason.READY),
        (real("10.0.0.3"), False, Reason.NOT_READY),
        (real("10.0.0.4"), False, Reason.TERMINATING),
        (real("10.0.0.5"), False, Reason.TERMINATING),
    ]


def test_only_endpoints_that_serve_while_terminating_linger() -> None:
    fragment = planned(service(), endpoint_slice(LOCAL, REMOTE, UNREADY, DRAINING, GONE))
    assert server(fragment).lingering == {real("10.0.0.4")}


def test_a_fallback_endpoint_is_used_and_does_not_linger() -> None:
    fragment = planned(service(), endpoint_slice(DRAINING, GONE, UNREADY))
    assert server(fragment).real_servers == {real("10.0.0.4"): ACTIVE}
    assert server(fragment).lingering == frozenset()


def test_zone_hints_of_the_context_apply() -> None:
    piece = endpoint_slice(endpoint("10.0.0.1", zones=["a"]), endpoint("10.0.0.2", zones=["b"]))
    assert set(server(planned(service(), piece, context=HERE._replace(zone="b"))).real_servers) == {real("10.0.0.2")}


# internalTrafficPolicy.


@pytest.mark.parametrize(
    ("policy", "addresses"),
    [(None, {"10.0.0.1", "10.0.0.2"}), ("Cluster", {"10.0.0.1", "10.0.0.2"}), ("Local", {"10.0.0.1"})],
)
def test_internal_traffic_policy(policy: str | None, addresses: set[str]) -> None:
    fragment = planned(service(internal=policy), endpoint_slice(LOCAL, REMOTE))
    assert set(server(fragment).real_servers) == {real(address) for address in addresses}
    assert fragment.no_local == set()


@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort", "LoadBalancer"])
def test_local_without_local_endpoints_never_leaves_the_node(kind: str) -> None:
    fragment = planned(service(internal="Local", kind=kind), endpoint_slice(REMOTE, UNREADY))
    assert server(fragment).real_servers == {}
    assert fragment.no_local == {("internal", Family.IPV4)}


def test_local_falls_back_to_a_local_endpoint_that_still_serves() -> None:
    fragment = planned(service(internal="Local"), endpoint_slice(REMOTE, DRAINING))
    assert set(server(fragment).real_servers) == {real("10.0.0.4")}
    assert fragment.no_local == set()


@pytest.mark.parametrize("endpoints", [(), (UNREADY, GONE)], ids=["none at all", "none usable anywhere"])
def test_no_local_is_told_only_if_there_are_endpoints_elsewhere(endpoints: tuple[Endpoint, ...]) -> None:
    assert planned(service(internal="Local"), endpoint_slice(*endpoints)).no_local == set()


def test_no_local_is_told_by_family() -> None:
    wanted = dual_stack(internal="Local")
    fragment = planned(
        wanted,
        endpoint_slice(LOCAL, name="web-4"),
        endpoint_slice(endpoint("fd00::2", node="node-b"), name="web-6", address_type="IPv6"),
    )
    assert fragment.no_local == {("internal", Family.IPV6)}


# Addresses and members of sets.


def test_entries_of_a_cluster_ip() -> None:
    fragment = planned(
        dual_stack(ports=[HTTP, ServicePort(53, "dns", "UDP")]),
        endpoint_slice(REMOTE, name="web-4"),
        endpoint_slice(
            endpoint("fd00::1", node="node-a"),
            name="web-6",
            address_type="IPv6",
            ports=[EndpointPort("http", 8080), EndpointPort("dns", 5353, "UDP")],
        ),
    )
    four, six, pod = packed(V4), packed(V6), packed("fd00::1")
    assert fragment.addresses == {four: Reason.CLUSTER_IP, six: Reason.CLUSTER_IP}
    assert fragment.entries == {
        (role("KUBE-CLUSTER-IP"), SetEntry(four, Protocol.TCP, 80)): Reason.CLUSTER_IP,
        (role("KUBE-CLUSTER-IP"), SetEntry(four, Protocol.UDP, 53)): Reason.CLUSTER_IP,
        (role("IPVS-PROXY-NO-ENDPOINT"), SetEntry(four, Protocol.UDP, 53)): Reason.NO_ENDPOINT,
        (role("KUBE-IPVS-IPS"), SetEntry(four)): Reason.CLUSTER_IP,
        (role("KUBE-6-CLUSTER-IP"), SetEntry(six, Protocol.TCP, 80)): Reason.CLUSTER_IP,
        (role("KUBE-6-CLUSTER-IP"), SetEntry(six, Protocol.UDP, 53)): Reason.CLUSTER_IP,
        (role("KUBE-6-IPVS-IPS"), SetEntry(six)): Reason.CLUSTER_IP,
        (role("KUBE-6-LOOP-BACK"), SetEntry(pod, Protocol.TCP, 8080, pod)): Reason.LOCAL_ENDPOINT,
        (role("KUBE-6-LOOP-BACK"), SetEntry(pod, Protocol.UDP, 5353, pod)): Reason.LOCAL_ENDPOINT,
    }


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_every_local_endpoint_in_any_condition_is_in_the_hairpin_set(policy: str) -> None:
    fragment = planned(service(internal=policy), endpoint_slice(LOCAL, REMOTE, UNREADY, DRAINING, GONE))
    hairpins = {entry for one, entry in fragment.entries if one is role("KUBE-LOOP-BACK")}
    assert hairpins == {
        SetEntry(packed(f"10.0.0.{n}"), Protocol.TCP, 8080, packed(f"10.0.0.{n}")) for n in (1, 3, 4, 5)
    }


# Age.


def test_the_age_is_that_of_the_service() -> None:
    assert planned(service()).created == datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("created", "expected"),
    [
        (datetime(2024, 1, 1), datetime(2024, 1, 1, tzinfo=UTC)),  # noqa: DTZ001  a manifest may leave out the zone
        (None, datetime.max.replace(tzinfo=UTC)),
    ],
    ids=["without a time zone", "unknown"],
)
def test_ages_can_always_be_compared(created: datetime | None, expected: datetime) -> None:
    assert planned(service(created=created)).created == expected


def test_a_conflict_with_a_service_of_unknown_time_zone_is_settled() -> None:
    tables = DesiredTables()
    first = planned(service("a", created=datetime(2024, 1, 1)))  # noqa: DTZ001  a manifest may leave out the zone
    second = planned(service("b", created=datetime(2024, 1, 1, tzinfo=UTC), age=1))
    tables.replace(first.name, first)
    tables.replace(second.name, second)
    assert tables.owners[KEY] == ServiceName("default", "b")
