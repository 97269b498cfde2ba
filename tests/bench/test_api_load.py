"""The simulation of the API's load: its objects are real to the decoder, its sums hold, and its document is its own."""

from __future__ import annotations

import random

import msgspec
import pytest

from bench import api_cost, api_load
from bench.api_encodings import protobuf_size
from bench.api_objects import Shape, applications, bookmark_line, event_line, node
from bench.api_outage import Outage, reconnects
from bench.api_rollout import Controller, Update, rolling_update
from bench.api_survey import churn, passed, selected, slice_line, survey
from bench.api_text import bits, rate, size
from ipvs_proxy.kube.decode import ListDecoder, decode_event
from ipvs_proxy.kube.objects import EndpointSlice, Node, Service
from ipvs_proxy.kube.reflector import DEFAULT_TIMING
from ipvs_proxy.kube.resources import ENDPOINT_SLICES, SERVICES, Resource, own_node

SMALL = Shape(
    nodes=20,
    pods=600,
    services=((1, 250), (3, 30), (26, 5)),
    headless_every=10,
    other_proxy_every=7,
    load_balancer_every=4,
)


def objects(shape: Shape):
    for application in applications(shape):
        yield application.service, SERVICES
        for item in application.slices:
            yield item, ENDPOINT_SLICES


def test_every_object_is_decoded_with_all_that_the_agent_reads():
    seen = {Service: 0, EndpointSlice: 0}
    for item, resource in objects(SMALL):
        event = decode_event(event_line(item, resource.kind), resource)
        assert event.skipped is None
        decoded = event.object
        assert isinstance(decoded, resource.struct)
        assert decoded.metadata.name == item["metadata"]["name"]
        assert event.resource_version == item["metadata"]["resourceVersion"]
        seen[resource.struct] += 1
        if isinstance(decoded, Service):
            assert decoded.spec.cluster_ip == item["spec"]["clusterIP"]
            assert [port.port for port in decoded.spec.ports] == [port["port"] for port in item["spec"]["ports"]]
        else:
            assert [[*one.addresses] for one in decoded.endpoints] == [one["addresses"] for one in item["endpoints"]]
            assert all(one.node_name and one.conditions.ready for one in decoded.endpoints)
    assert seen == {Service: 30, EndpointSlice: 29 + 3}


def test_a_list_of_the_objects_is_decoded_without_a_loss():
    items = [item for item, resource in objects(SMALL) if resource is ENDPOINT_SLICES]
    head = {"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "metadata": {"resourceVersion": "7"}}
    decoder = ListDecoder(ENDPOINT_SLICES)
    decoder.feed(msgspec.json.encode({**head, "items": items}))
    page = decoder.finish()
    assert not page.skipped
    assert sum(len(item.endpoints or ()) for item in page.objects) == SMALL.endpoints == 470


def test_a_node_is_decoded():
    event = decode_event(event_line(node(3, random.Random(1)), "Node"), own_node("any"))
    assert isinstance(event.object, Node)
    assert event.object.status.addresses[0].address == "10.0.0.3"


@pytest.mark.parametrize("kind", ["Service", "EndpointSlice", "Node"])
def test_a_bookmark_carries_nothing_but_the_version(kind):
    resource = {"Service": SERVICES, "EndpointSlice": ENDPOINT_SLICES, "Node": own_node("any")}[kind]
    event = decode_event(bookmark_line(kind, "77"), resource)
    assert (event.type, event.resource_version, event.object) == ("BOOKMARK", "77", None)


def test_the_same_shape_gives_the_same_bytes():
    first, second = ([event_line(item, resource.kind) for item, resource in objects(SMALL)] for _ in range(2))
    assert first == second


def test_addresses_of_pods_and_services_are_their_own():
    pods = [one["addresses"][0] for item, _ in objects(SMALL) for one in item.get("endpoints", ())]
    virtual = [item["spec"]["clusterIP"] for item, kind in objects(SMALL) if kind is SERVICES]
    assert len(set(pods)) == len(pods) == SMALL.endpoints
    assert len(set(virtual) - {"None"}) == len(virtual) - virtual.count("None")


def test_selectors_let_through_what_the_agent_asks_for():
    for application in applications(SMALL):
        service = application.service
        headless = service["spec"]["clusterIP"] == "None"
        other = "service.kubernetes.io/service-proxy-name" in service["metadata"]["labels"]
        assert selected(service, SERVICES) is (not headless and not other)
        assert [selected(item, ENDPOINT_SLICES) for item in application.slices] == [not headless] * len(
            application.slices
        )
    everybody = [node(number, random.Random(1)) for number in range(5)]
    assert [selected(item, own_node(everybody[3]["metadata"]["name"])) for item in everybody] == [
        *(False, False, False, True, False),
    ]


@pytest.mark.parametrize("selectors", [{"label_selector": "app in (a, b)"}, {"field_selector": "spec.type>1"}])
def test_a_selector_of_another_form_does_not_go_uncounted(selectors):
    item = next(applications(SMALL)).service
    with pytest.raises(ValueError, match="does not know"):
        selected(item, Resource("Service", "/api/v1/services", Service, **selectors))


def test_the_survey_counts_the_bytes_that_are_sent():
    cluster = survey(SMALL)
    lines = [(event_line(item, resource.kind), selected(item, resource)) for item, resource in objects(SMALL)]
    counted = [*cluster.services, *cluster.slices]
    assert sum(sent.line for sent in counted) == sum(len(line) for line, _ in lines)
    assert sum(sent.line for sent in passed(counted)) == sum(len(line) for line, through in lines if through)
    assert sum(sent.endpoints for sent in counted) == SMALL.endpoints
    assert 0 < len(passed(counted)) < len(counted)


def test_encodings_are_of_what_is_sent():
    cluster = survey(SMALL, encodings=True)
    assert cluster.encodings is not None
    sent = passed([*cluster.services, *cluster.slices])
    assert cluster.encodings.lines == sum(one.line for one in sent)
    assert cluster.encodings.items == sum(one.item for one in sent)
    assert cluster.encodings.lines_gzip < cluster.encodings.members_gzip < cluster.encodings.lines
    assert cluster.encodings.protobuf < cluster.encodings.lines


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"name": "ab"}, 2 + 2),
        ({"ready": True, "serving": False}, 2 + 2),
        ({"port": 8080}, 1 + 2),
        ({"addresses": ["10.0.0.1", "10.0.0.2"]}, 2 * (2 + 8)),
        ({"labels": {"a": "bc"}}, 2 + (2 + 1) + (2 + 2)),
        ({"conditions": {"ready": True}}, 2 + 2),
        ({"name": "x" * 200}, 1 + 2 + 200),
        ({"time": "2026-03-14T09:26:53Z"}, 2 + 8),
        ({"fieldsV1": {"f:ports": {}}}, 2 + (2 + len('{"f:ports":{}}'))),
    ],
)
def test_protobuf_is_counted_by_tags_lengths_and_values(value, expected):
    assert protobuf_size(value) == expected


def test_churn_is_weighted_by_the_endpoints_of_slices():
    cluster = survey(SMALL)
    watched = passed(cluster.slices)
    one = churn(cluster)
    assert one.events == sum(sent.endpoints for sent in watched) / SMALL.pods
    assert min(sent.line for sent in watched) < one.event_bytes <= max(sent.line for sent in watched) + 3
    assert one.event_bytes > sum(sent.line for sent in watched) / len(watched)


def test_a_slice_grows_by_the_same_for_each_endpoint():
    sizes = [len(slice_line(count)) for count in (0, 100, 200)]
    assert abs((sizes[2] - sizes[1]) - (sizes[1] - sizes[0])) < 0.02 * sizes[1]


def test_all_agents_get_what_one_gets_as_often_as_there_are_agents():
    assert api_load.fan_out(7) == 7 * api_load.AGENTS
    cells = api_load.churn_table(survey(SMALL)).splitlines()[2].strip("| ").split(" | ")
    one = churn(survey(SMALL))
    assert cells[2:] == [
        rate(one.events * one.event_bytes),
        f"{one.events * api_load.AGENTS:,.0f}",
        rate(one.events * one.event_bytes * api_load.AGENTS),
        bits(one.events * one.event_bytes * api_load.AGENTS),
    ]


def test_a_rolling_update_without_batches_writes_the_slice_of_every_change():
    slow = Update(pods=30, replaced_per_second=1, until_ready=0.25, until_gone=0.25)
    rollout = rolling_update(Controller(writes_per_second=1e6, slice_size=10), slow)
    # There; ready with the old one terminating, in one slice or in two; gone.
    assert 3 * 30 <= rollout.writes <= 4 * 30
    assert rollout.seconds == pytest.approx(29.5, abs=0.1)


def test_the_limit_of_writes_and_the_batching_period_join_changes():
    free = rolling_update(Controller(writes_per_second=1e6), Update(pods=500))
    limited = rolling_update(Controller(), Update(pods=500))
    batched = rolling_update(Controller(period=5), Update(pods=500))
    assert limited.writes < free.writes
    assert limited.writes / limited.seconds <= 20
    assert batched.writes < limited.writes
    assert free.endpoints <= free.writes * Controller().slice_size


def test_watches_that_are_cut_go_on_within_the_first_pause():
    moments = reconnects(Outage(0, agents=40))
    assert len(moments) == 40
    assert DEFAULT_TIMING.first_pause / 2 <= min(moments)
    assert max(moments) <= DEFAULT_TIMING.first_pause


def test_watches_come_back_spread_after_a_long_outage():
    moments = reconnects(Outage(120, agents=40))
    assert min(moments) >= 0
    assert max(moments) <= DEFAULT_TIMING.longest_pause
    assert api_load.busiest(sorted(moments)) < 20


def test_a_stream_in_pieces_is_read_to_the_same_objects():
    lines = [event_line(item, resource.kind) for item, resource in objects(SMALL) if resource is ENDPOINT_SLICES]
    assert len(b"".join(lines)) > 2 * api_cost.CHUNK
    whole = [decode_event(line, ENDPOINT_SLICES).object for line in lines]
    assert api_cost.read(b"".join(lines), ENDPOINT_SLICES) == whole


def test_kept_memory_grows_with_the_endpoints():
    one, many = (api_cost.kept_bytes([slice_line(count)] * 10, ENDPOINT_SLICES) for count in (1, 101))
    # An endpoint holds at least its address and the name of its node.
    assert many - one > 100 * 100


def test_the_fullest_second_is_found():
    assert api_load.busiest([0.0, 0.9, 1.0, 1.5, 1.89, 5.0]) == 4


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (66.2e6, "66.2 MB"), (342.6e9, "343 GB"), (999_960, "1.00 MB")],
)
def test_sizes_have_three_digits(amount, text):
    assert size(amount) == text
