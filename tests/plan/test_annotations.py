"""The table of annotations: each is read, written back and told when it cannot be read."""

from __future__ import annotations

import math

import pytest
from msgspec import structs

from ipvs_proxy.kube.objects import Service
from ipvs_proxy.plan.annotations import ANNOTATIONS, DRAIN_TIMEOUT, ServiceOptions, option_texts, read_options
from ipvs_proxy.plan.endpoints import Omission
from ipvs_proxy.plan.reasons import SERVED_OTHERWISE, Reason
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
    ],
)
def test_what_a_service_asks_for_is_read_and_written(
    annotations: dict[str, str], options: ServiceOptions, texts: dict[str, str]
) -> None:
    omissions: list[Omission] = []
    found = read_options(annotated(**annotations), omissions)
    assert (found, option_texts(found), omissions) == (options, texts, [])
    assert read_options(annotated(**texts), []) == options


def test_what_cannot_be_read_is_told_and_asks_for_nothing() -> None:
    omissions: list[Omission] = []
    assert read_options(annotated(**{DRAIN_TIMEOUT: "soon"}), omissions) == ServiceOptions()
    where = f"service default/web annotation {DRAIN_TIMEOUT} soon"
    assert omissions == [Omission(where, Reason.INVALID_DRAIN_TIMEOUT)]
