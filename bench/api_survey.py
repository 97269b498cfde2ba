"""Counts a generated cluster: what the API server sends of it to one agent, and in how many bytes.

What the server sends follows from the selectors of ``ipvs_proxy.kube.resources``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from bench.api_encodings import Encoder, Encodings
from bench.api_objects import Shape, applications, endpoint_slice, event_line, event_of, node
from bench.managed import Json
from ipvs_proxy.kube.resources import ENDPOINT_SLICES, SERVICES, Resource

PROXY_NAME = "service.kubernetes.io/service-proxy-name"
_ORDINARY = Shape(services=((1, 1),), headless_every=0, other_proxy_every=0)
MODIFIED_MORE = len("MODIFIED") - len("ADDED")


class Sent(NamedTuple):
    """One object: bytes of its line in a watch and of its place in a list, and whether the selectors let it through."""

    line: int
    item: int
    endpoints: int
    selected: bool
    other_proxy: bool


class Survey(NamedTuple):
    """The objects of a cluster, counted; ``node`` is one Node of many that are alike."""

    shape: Shape
    services: list[Sent]
    slices: list[Sent]
    node: Sent
    encodings: Encodings | None


class Churn(NamedTuple):
    """What one change of a pod anywhere sends to an agent: events (fewer than one), and the bytes of one event."""

    events: float
    event_bytes: float


def survey(shape: Shape, *, encodings: bool = False) -> Survey:
    """Generate the cluster once and count it; with other encodings that takes several times as long."""
    services: list[Sent] = []
    slices: list[Sent] = []
    encoder = Encoder() if encodings else None
    for application in applications(shape):
        for counted, items, resource in (
            (services, [application.service], SERVICES),
            (slices, application.slices, ENDPOINT_SLICES),
        ):
            for item in items:
                encoded = msgspec.json.encode(item)
                line = event_of(encoded, resource.kind)
                counted.append(_sent(item, encoded, line, resource))
                if encoder and counted[-1].selected:
                    encoder.add(item, encoded, line)
    own, kind = node(1, random.Random(1)), "Node"
    encoded = msgspec.json.encode(own)
    node_sent = Sent(len(event_of(encoded, kind)), len(encoded) + 1, 0, selected=True, other_proxy=False)
    return Survey(shape, services, slices, node_sent, encoder.result() if encoder else None)


def _sent(item: Json, encoded: bytes, line: bytes, resource: Resource) -> Sent:
    return Sent(
        len(line),
        len(encoded) + 1,
        len(item.get("endpoints", ())),
        selected=selected(item, resource),
        other_proxy=PROXY_NAME in item["metadata"]["labels"],
    )


def selected(item: Json, resource: Resource) -> bool:
    """Return whether the server sends an object to a client that asks with the resource's selectors.

    Raises ValueError for a selector of another form than the agent uses, so that no new one goes uncounted.
    """
    for requirement in filter(None, resource.label_selector.split(",")):
        if not re.fullmatch(r"![\w./-]+", requirement):
            raise ValueError(f"the simulation does not know the label selector {requirement!r}")
        if requirement[1:] in item["metadata"]["labels"]:
            return False
    for requirement in filter(None, resource.field_selector.split(",")):
        match = re.fullmatch(r"([\w.]+)(!?=)([\w.-]*)", requirement)
        if match is None:
            raise ValueError(f"the simulation does not know the field selector {requirement!r}")
        value: object = item
        for name in match[1].split("."):
            value = value.get(name, "") if isinstance(value, dict) else ""
        if (value == match[3]) is (match[2] == "!="):
            return False
    return True


def passed(objects: Iterable[Sent]) -> list[Sent]:
    """Return the objects that the selectors let through."""
    return [sent for sent in objects if sent.selected]


def churn(cluster: Survey) -> Churn:
    """Return what a pod's change sends, if all pods are equally likely to change and no two changes coincide."""
    watched = passed(cluster.slices)
    endpoints = sum(sent.endpoints for sent in watched)
    amount = sum(sent.endpoints * (sent.line + MODIFIED_MORE) for sent in watched)
    return Churn(endpoints / cluster.shape.pods, amount / endpoints)


def ordinary_slice(endpoints: int) -> Json:
    """Return a slice with that number of endpoints, of an ordinary Service."""
    return endpoint_slice(ordinary_service(), random.Random(1), first_pod=0, endpoints=endpoints, nodes=_ORDINARY.nodes)


def ordinary_service() -> Json:
    """Return an ordinary Service."""
    return next(applications(_ORDINARY)).service


def slice_line(endpoints: int) -> bytes:
    """Return the line of a watch for a slice with that number of endpoints."""
    return event_line(ordinary_slice(endpoints), ENDPOINT_SLICES.kind)
