"""The table of annotations: each is read, written back and told when it cannot be read."""

from __future__ import annotations

import math

import pytest
from msgspec import structs

from ipvs_proxy.kube.objects import Service
from ipvs_proxy.plan.annotations import (
    ANNOTATIONS,
    DRAIN_TIMEOUT,
    MAX_CONNECTIONS_OF_ENDPOINT,
    MIN_CONNECTIONS_OF_ENDPOINT,
    ONE_PACKET,
    SCHEDULER,
    SCHEDULER_FLAGS,
    SLOW_START,
    WEIGHTS,
    ServiceOptions,
    option_texts,
    read_options,
)
from ipvs_proxy.plan.endpoints import Omission
from ipvs_proxy.plan.reasons import SERVED_OTHERWISE, Reason
from ipvs_proxy.plan.weights import Weights
from tests.support.objects import service


def annotated(**annotations: str) -> Service:
    plain = service("web")
    return structs.replace(plain, metadata=structs.replace(plain.metadata, annotations=annotations or None))


def test_each_annotation_sets_a_field_of_its_own() -> None:
    assert sorted(annotation.field for annotation in ANNOTATIONS) == sorted(ServiceOptions._fields)
    assert len({annotation.name for annotation in ANNOTATIONS}) == len(ANNOTATIONS)
    assert all(annotation.name.startswith("ipvs-proxy.io/") for annotation in ANNOTATIONS)


def test_what_is_done_instead_of_an_unreadable_value_is_known() -> None:
    assert all(annotation.unreadable in SERVED_OTHERWISE for annotation in ANNOTATIONS)


@pytest.mark.parametrize(
    ("annotations", "options", "texts"),
    [
        ({}, ServiceOptions(), {}),
        ({"others.io/thing": "5m"}, ServiceOptions(), {}),
        ({DRAIN_TIMEOUT: "90s"}, ServiceOptions(drain_timeout=90.0), {DRAIN_TIMEOUT: "1m30s"}),
        ({DRAIN_TIMEOUT: "0"}, ServiceOptions(drain_timeout=0.0), {DRAIN_TIMEOUT: "0s"}),
        ({DRAIN_TIMEOUT: " unlimited "}, ServiceOptions(drain_timeout=math.inf), {DRAIN_TIMEOUT: "unlimited"}),
        ({SCHEDULER: " wlc "}, ServiceOptions(scheduler="wlc"), {SCHEDULER: "wlc"}),
        (
            {SCHEDULER_FLAGS: "mh-port, mh-fallback"},
            ServiceOptions(scheduler_flags=frozenset(("mh-port", "mh-fallback"))),
            {SCHEDULER_FLAGS: "mh-fallback,mh-port"},
        ),
        ({SCHEDULER_FLAGS: ""}, ServiceOptions(scheduler_flags=frozenset()), {SCHEDULER_FLAGS: ""}),
        ({ONE_PACKET: "true"}, ServiceOptions(one_packet=True), {ONE_PACKET: "true"}),
        ({ONE_PACKET: "false"}, ServiceOptions(one_packet=False), {ONE_PACKET: "false"}),
        (
            {MAX_CONNECTIONS_OF_ENDPOINT: "100", MIN_CONNECTIONS_OF_ENDPOINT: "80"},
            ServiceOptions(max_connections=100, min_connections=80),
            {MAX_CONNECTIONS_OF_ENDPOINT: "100", MIN_CONNECTIONS_OF_ENDPOINT: "80"},
        ),
        (
            {WEIGHTS: "*:1,zone=eu-1a:3 , local:10,node=edge-1:0"},
            ServiceOptions(weights=Weights({"edge-1": 0}, {"eu-1a": 3}, 10, 1)),
            {WEIGHTS: "node=edge-1:0, zone=eu-1a:3, local:10, *:1"},
        ),
        ({SLOW_START: "30s"}, ServiceOptions(slow_start=30.0), {SLOW_START: "30s"}),
    ],
)
def test_what_a_service_asks_for_is_read_and_written(
    annotations: dict[str, str], options: ServiceOptions, texts: dict[str, str]
) -> None:
    omissions: list[Omission] = []
    found = read_options(annotated(**annotations), omissions)
    assert (found, option_texts(found), omissions) == (options, texts, [])
    assert read_options(annotated(**texts), []) == options


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        (DRAIN_TIMEOUT, "soon", Reason.INVALID_DRAIN_TIMEOUT),
        (SCHEDULER, "RR", Reason.INVALID_SCHEDULER),
        # The kernel would load the module ip_vs_ftp.
        (SCHEDULER, "ftp", Reason.INVALID_SCHEDULER),
        (SCHEDULER, "", Reason.INVALID_SCHEDULER),
        (SCHEDULER_FLAGS, "sh-port,flag-2", Reason.INVALID_SCHEDULER_FLAGS),
        (SCHEDULER_FLAGS, "sh-port," * 100_000, Reason.INVALID_SCHEDULER_FLAGS),
        (ONE_PACKET, "yes", Reason.INVALID_ONE_PACKET),
        (MAX_CONNECTIONS_OF_ENDPOINT, "0", Reason.INVALID_CONNECTION_LIMIT),
        (MAX_CONNECTIONS_OF_ENDPOINT, "-1", Reason.INVALID_CONNECTION_LIMIT),
        (MAX_CONNECTIONS_OF_ENDPOINT, str(2**31), Reason.INVALID_CONNECTION_LIMIT),
        (MAX_CONNECTIONS_OF_ENDPOINT, "9" * 10_000, Reason.INVALID_CONNECTION_LIMIT),
        (WEIGHTS, "", Reason.INVALID_WEIGHTS),
        (SLOW_START, "0s", Reason.INVALID_SLOW_START),
        (SLOW_START, "61m", Reason.INVALID_SLOW_START),
        (SLOW_START, "fast", Reason.INVALID_SLOW_START),
    ],
)
def test_what_cannot_be_read_is_told_and_asks_for_nothing(name: str, text: str, reason: Reason) -> None:
    omissions: list[Omission] = []
    assert read_options(annotated(**{name: text}), omissions) == ServiceOptions()
    assert omissions == [Omission(f"service default/web annotation {name} {text}", reason)]


@pytest.mark.parametrize("most", [None, "79"])
def test_a_lower_threshold_needs_an_upper_one_above_it(most: str | None) -> None:
    omissions: list[Omission] = []
    limits = {MIN_CONNECTIONS_OF_ENDPOINT: "80"} | ({} if most is None else {MAX_CONNECTIONS_OF_ENDPOINT: most})
    assert read_options(annotated(**limits), omissions).min_connections is None
    assert [omission.reason for omission in omissions] == [Reason.INVALID_CONNECTION_LIMIT]


def test_both_thresholds_may_be_the_same() -> None:
    omissions: list[Omission] = []
    limits = {MIN_CONNECTIONS_OF_ENDPOINT: "80", MAX_CONNECTIONS_OF_ENDPOINT: "80"}
    assert read_options(annotated(**limits), omissions).min_connections == 80
    assert not omissions
