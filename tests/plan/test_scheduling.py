"""Who chooses the scheduler of a virtual server: one table of what the agent, the Service and weights say."""

from __future__ import annotations

import pytest
from msgspec import structs

from ipvs_proxy.kube.objects import Service, ServicePort
from ipvs_proxy.plan import roles
from ipvs_proxy.plan.annotations import SCHEDULERS, ServiceOptions
from ipvs_proxy.plan.endpoints import Omission
from ipvs_proxy.plan.fragment import Context, Fragment
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.scheduling import flag_names
from ipvs_proxy.plan.services import plan_service
from ipvs_proxy.plan.slice_cache import SliceCache
from ipvs_proxy.plan.tables import (
    ACTIVE,
    ONE_PACKET,
    PERSISTENT,
    SCHED1,
    SCHED2,
    Family,
    Protocol,
    RealServer,
    RealServerKey,
)
from tests.support.objects import (
    HTTP,
    annotated_slice,
    dual_stack,
    endpoint,
    endpoint_slice,
    packed,
    real,
    service,
    virtual,
)

OURS = "ipvs-proxy.io/"


def annotated(made: Service, **annotations: str) -> Service:
    named = {OURS + name.replace("_", "-"): text for name, text in annotations.items()}
    return structs.replace(made, metadata=structs.replace(made.metadata, annotations=named))


def plan(made: Service, context: Context = Context("here"), **slice_annotations: str) -> Fragment:  # noqa: B008
    piece = endpoint_slice(endpoint("10.0.0.1", node="here"), endpoint("10.0.0.2", node="there"))
    return plan_service(made, [annotated_slice(piece, slice_annotations)], context, Marks())


# The table of docs/scheduling.md: what the agent has, what the Service asks for; the scheduler, its flags, who chose it.
CHOICES = [
    ("rr", {}, "rr", 0, "agent-setting"),
    ("mh", {}, "mh", SCHED2, "agent-setting"),
    ("rr", {"scheduler": "lc"}, "lc", 0, "annotation"),
    ("rr", {"scheduler": "mh"}, "mh", SCHED1 | SCHED2, "annotation"),
    ("mh", {"weights": "local:3"}, "mh", SCHED1 | SCHED2, "agent-setting"),
    ("mh", {"max_connections": "9"}, "mh", SCHED1 | SCHED2, "agent-setting"),
    ("rr", {"scheduler": "mh", "scheduler_flags": "mh-fallback"}, "mh", SCHED1, "annotation"),
    ("rr", {"scheduler": "mh", "scheduler_flags": ""}, "mh", 0, "annotation"),
    ("rr", {"scheduler": "sh", "scheduler_flags": "sh-port,sh-fallback"}, "sh", SCHED1 | SCHED2, "annotation"),
    ("sh", {"scheduler_flags": "sh-port"}, "sh", SCHED2, "agent-setting"),
    ("rr", {"weights": "local:3"}, "wrr", 0, "weights"),
    ("rr", {"weights": "zone=a:3"}, "wrr", 0, "weights"),
    ("rr", {"weights": "*:1"}, "rr", 0, "agent-setting"),
    ("rr", {"weights": "local:0"}, "wrr", 0, "weights"),
    ("rr", {"slow_start": "30s"}, "wrr", 0, "weights"),
    ("lc", {"weights": "local:3"}, "wlc", 0, "weights"),
    ("sh", {}, "sh", 0, "agent-setting"),
    ("sh", {"weights": "local:3"}, "sh", SCHED1, "agent-setting"),
    ("sh", {"max_connections": "9"}, "sh", SCHED1, "agent-setting"),
    ("rr", {"scheduler": "sh"}, "sh", SCHED1, "annotation"),
    ("rr", {"scheduler": "sh", "scheduler_flags": ""}, "sh", 0, "annotation"),
    ("rr", {"scheduler": "lc", "weights": "local:3"}, "wlc", 0, "weights"),
    ("rr", {"scheduler": "nq", "weights": "local:3"}, "nq", 0, "annotation"),
]
#: What cannot be had, with the reason that is told.
REFUSED = [
    ("rr", {"scheduler": "none"}, "rr", 0, "agent-setting", "invalid-scheduler"),
    ("rr", {"scheduler": "lblc"}, "rr", 0, "agent-setting", "no-such-scheduler"),
    ("rr", {"scheduler_flags": "sh-port"}, "rr", 0, "agent-setting", "flags-of-another-scheduler"),
    ("mh", {"scheduler_flags": "sh-port"}, "mh", SCHED2, "agent-setting", "flags-of-another-scheduler"),
    ("mh", {"scheduler_flags": "mh-all"}, "mh", SCHED2, "agent-setting", "invalid-scheduler-flags"),
    ("rr", {"weights": "local"}, "rr", 0, "agent-setting", "invalid-weights"),
    ("rr", {"slow_start": "now"}, "rr", 0, "agent-setting", "invalid-slow-start"),
    ("rr", {"one_packet": "true"}, "rr", 0, "agent-setting", "one-packet-is-for-udp"),
]


@pytest.mark.parametrize(
    ("ours", "annotations", "scheduler", "flags", "source", "told"), [(*row, None) for row in CHOICES] + REFUSED
)
def test_who_chooses_the_scheduler(
    ours: str, annotations: dict[str, str], scheduler: str, flags: int, source: str, told: str | None
) -> None:
    context = Context("here", ours, missing_schedulers=frozenset(("lblc",)))
    fragment = plan(annotated(service(), **annotations), context)
    server, _ = fragment.virtual_servers[virtual("10.96.0.10")]
    found = fragment.schedulings[server.key]
    assert (server.scheduler, server.flags, found.source.value) == (scheduler, flags, source)
    assert [omission.reason.value for omission in fragment.omissions] == ([] if told is None else [told])


def test_the_weight_of_a_slice_brings_the_weighted_twin_too() -> None:
    fragment = plan(service(), **{OURS + "weight": "3"})
    server, _ = fragment.virtual_servers[virtual("10.96.0.10")]
    assert server.scheduler == "wrr"
    assert set(server.real_servers.values()) == {RealServer(3)}


def test_without_the_twin_the_scheduler_stays_and_it_is_told_that_weights_do_not_count() -> None:
    context = Context("here", missing_schedulers=frozenset(("wrr",)))
    fragment = plan(annotated(service(), weights="local:3"), context)
    assert fragment.virtual_servers[virtual("10.96.0.10")][0].scheduler == "rr"
    assert fragment.omissions == [Omission("service default/web scheduler wrr", Reason.NO_WEIGHTED_SCHEDULER)]


def test_one_packet_is_for_the_ports_of_udp() -> None:
    ports = [HTTP, ServicePort(port=80, name="http", protocol="UDP")]
    fragment = plan(annotated(service(ports=ports, affinity="ClientIP"), one_packet="true"))
    flags = {key.protocol: server.flags for key, (server, _) in fragment.virtual_servers.items()}
    assert flags == {Protocol.TCP: PERSISTENT, Protocol.UDP: PERSISTENT | ONE_PACKET}
    assert [str(omission.where) for omission in fragment.omissions] == [
        "service default/web port http TCP annotation ipvs-proxy.io/one-packet"
    ]


def test_limits_and_weights_are_in_every_virtual_server_of_both_families() -> None:
    made = annotated(dual_stack(), max_connections="9", min_connections="5", weights="local:3, *:2")
    pieces = [
        endpoint_slice(endpoint("10.0.0.1", node="here"), endpoint("10.0.0.2", node="there")),
        endpoint_slice(endpoint("fd00::1", node="there"), name="web-2", address_type="IPv6"),
    ]
    fragment = plan_service(made, pieces, Context("here"), Marks())
    assert [server.real_servers for server, _ in fragment.virtual_servers.values()] == [
        {real("10.0.0.1"): RealServer(3, 0, 9, 5), real("10.0.0.2"): RealServer(2, 0, 9, 5)},
        {real("fd00::1"): RealServer(2, 0, 9, 5)},
    ]


def test_slow_start_multiplies_every_weight_by_ten() -> None:
    fragment = plan(annotated(service(), slow_start="30s", weights="local:3"))
    server, _ = fragment.virtual_servers[virtual("10.96.0.10")]
    assert server.real_servers == {real("10.0.0.1"): RealServer(30), real("10.0.0.2"): RealServer(10)}


@pytest.mark.parametrize("cache", [None, SliceCache()], ids=["without a cache", "with one"])
def test_every_endpoint_has_room_in_the_table_of_sh(cache: SliceCache | None) -> None:
    piece = endpoint_slice(*(endpoint(f"10.0.0.{number}") for number in range(1, 31)))
    made = annotated(service(), scheduler="sh", slow_start="30s")
    server, _ = plan_service(made, [piece], Context("here"), Marks(), cache).virtual_servers[virtual("10.96.0.10")]
    assert {settings.weight for settings in server.real_servers.values()} == {8}


def test_a_weight_that_is_a_number_of_connections_is_not_multiplied() -> None:
    fragment = plan(annotated(service(), scheduler="ovf", slow_start="30s", weights="*:50"))
    server, _ = fragment.virtual_servers[virtual("10.96.0.10")]
    assert set(server.real_servers.values()) == {RealServer(50)}


def test_a_service_whose_endpoints_are_all_paused_refuses_new_connections() -> None:
    fragment = plan(annotated(service(), weights="*:0"))
    server, _ = fragment.virtual_servers[virtual("10.96.0.10")]
    assert set(server.real_servers.values()) == {RealServer(0)}
    assert roles.NO_ENDPOINT[Family.IPV4] in {one for one, _ in fragment.entries}


@pytest.mark.parametrize("hints", [{"zones": ["a"]}, {"nodes": ["here"]}], ids=["zone", "node"])
def test_hints_that_leave_only_paused_endpoints_do_not_apply(hints: dict[str, list[str]]) -> None:
    elsewhere = {kind: ["elsewhere"] for kind in hints}
    piece = endpoint_slice(endpoint("10.0.0.1", node="here", **hints), endpoint("10.0.0.2", node="there", **elsewhere))
    context = Context("here", zone="a")
    found = [
        plan_service(annotated(service(), weights=rules), [piece], context, Marks())
        .virtual_servers[virtual("10.96.0.10")][0]
        .real_servers
        for rules in ("node=here:2", "node=here:0")
    ]
    assert found == [
        {real("10.0.0.1"): RealServer(2)},
        {real("10.0.0.1"): RealServer(0), real("10.0.0.2"): RealServer(1)},
    ]


def test_health_checks_count_only_endpoints_that_get_new_connections() -> None:
    made = service(kind="LoadBalancer")
    spec = structs.replace(made.spec, external_traffic_policy="Local", health_check_node_port=32000)
    made = structs.replace(made, spec=spec)
    found = [plan(annotated(made, weights=rules)).health_checks for rules in ("local:3", "local:0")]
    assert [check.local_endpoints for checks in found for check in checks.values()] == [1, 0]


@pytest.mark.parametrize(
    ("compatible", "expected"),
    [(False, {real("10.0.0.1"): RealServer(0)}), (True, {real("10.0.0.1"): RealServer(0), real("10.0.0.2"): ACTIVE})],
    ids=["dropped, as the API says", "as kube-proxy: all endpoints where no local one has room"],
)
def test_a_policy_of_local_finds_only_paused_endpoints(
    compatible: bool, expected: dict[RealServerKey, RealServer]
) -> None:
    made = service(kind="NodePort", ports=[structs.replace(HTTP, node_port=30_080)])
    made = structs.replace(made, spec=structs.replace(made.spec, external_traffic_policy="Local"))
    context = Context("here", compatible=compatible, node_port_addresses=(packed("192.0.2.1"),))
    fragment = plan(annotated(made, weights="local:0"), context)
    assert fragment.virtual_servers[virtual("192.0.2.1", 30_080)][0].real_servers == expected
    assert fragment.no_local == {("external", Family.IPV4)}
    assert (roles.NO_LOCAL[Family.IPV4] in {one for one, _ in fragment.entries}) is not compatible


def test_rules_that_change_reach_slices_that_are_remembered() -> None:
    cache, pieces = SliceCache(), [endpoint_slice(endpoint("10.0.0.1", node="here"))]
    weights = [
        plan_service(annotated(service(), weights=rules), pieces, Context("here"), Marks(), cache)
        .virtual_servers[virtual("10.96.0.10")][0]
        .real_servers[real("10.0.0.1")]
        .weight
        for rules in ("local:3", "local:5", "*:7", "*:7")
    ]
    assert weights == [3, 5, 7, 7]


def test_slices_that_go_in_the_moment_in_which_rules_change_are_forgotten() -> None:
    cache, piece = SliceCache(), endpoint_slice(endpoint("10.0.0.1", node="here"))
    found = [
        plan_service(annotated(service(), weights=rules), pieces, Context("here"), Marks(), cache)
        .virtual_servers[virtual("10.96.0.10")][0]
        .real_servers
        for rules, pieces in (("local:3", [piece]), ("local:5", []), ("local:5", []))
    ]
    assert found == [{real("10.0.0.1"): RealServer(3)}, {}, {}]


def test_flags_are_called_what_ipvsadm_calls_them() -> None:
    assert flag_names("sh", SCHED1 | SCHED2 | PERSISTENT) == ["sh-fallback", "sh-port"]
    assert flag_names("mh", SCHED1) == ["mh-fallback"]
    assert flag_names("rr", SCHED1) == []


def test_every_scheduler_may_be_asked_for() -> None:
    for name in SCHEDULERS:
        fragment = plan(annotated(service(), scheduler=name))
        assert fragment.options == ServiceOptions(scheduler=name)
        assert fragment.virtual_servers[virtual("10.96.0.10")][0].scheduler == name
