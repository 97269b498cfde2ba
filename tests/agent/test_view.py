"""The pages that show the state, over a controller with a fake kernel."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import msgspec
import pytest
from msgspec import structs

from ipvs_proxy.agent.observe.history import KEPT, History
from ipvs_proxy.agent.web.state_pages import flagz, statusz
from ipvs_proxy.agent.web.view import LARGEST
from ipvs_proxy.commands.ask import ask_for_services
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import AddressOperation, RealServerOperation, Verb, VirtualServer
from ipvs_proxy.settings.merge import effective
from tests.support.loopback import get
from tests.support.objects import HTTP, endpoint, endpoint_slice, packed, real, service, virtual
from tests.support.shown import shown


async def answer(url: str) -> tuple[int, Any]:
    status, content_type, text = await get(url)
    assert content_type.startswith("application/json")
    return status, json.loads(text)


WEB = service()
WEB_SLICE = endpoint_slice(endpoint("10.244.0.1"), endpoint("10.244.0.2", ready=False))
OTHER = service("other", cluster_ip="10.96.0.11", namespace="shop")


async def test_state_lists_services_with_counts_and_rates() -> None:
    async with shown(WEB, WEB_SLICE, OTHER) as (url, _, _):
        _, state = await answer(f"{url}/state")
    assert (state["programmed"], state["healthy"], state["serviceCount"], state["matching"]) == (True, True, 2, 2)
    assert [(found["namespace"], found["name"], found["endpoints"]) for found in state["services"]] == [
        ("default", "web", 1),
        ("shop", "other", 0),
    ]
    assert state["services"][0]["perSecond"]["connections"] == 2


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", ["web", "other"]),
        ("search=shop/", ["other"]),
        ("search=we", ["web"]),
        ("search=10.96.0.11", ["other"]),
        ("search=10.96.0.1", []),
        ("limit=1", ["web"]),
        ("limit=1&offset=1", ["other"]),
        ("limit=0", []),
        ("offset=9", []),
    ],
)
async def test_services_are_searched_and_paged(query: str, names: list[str]) -> None:
    async with shown(WEB, WEB_SLICE, OTHER) as (url, _, _):
        _, state = await answer(f"{url}/state?{query}")
    assert [found["name"] for found in state["services"]] == names


async def test_answer_has_a_bounded_number_of_services_and_the_rest_is_further_on() -> None:
    names = [f"service-{number:04}" for number in range(LARGEST + 10)]
    objects = [service(name, cluster_ip=f"10.96.{number // 250}.{number % 250}") for number, name in enumerate(names)]
    async with shown(*objects) as (url, _, _):
        _, first = await answer(f"{url}/state?limit=999999999")
        _, rest = await answer(f"{url}/state?limit=999999999&offset={LARGEST}")
        found = await asyncio.to_thread(ask_for_services, url.removeprefix("http://"))
        few = await asyncio.to_thread(ask_for_services, url.removeprefix("http://"), search="service-00", limit=7)
    assert [one["name"] for one in first["services"]] == names[:LARGEST]
    assert [one["name"] for one in rest["services"]] == names[LARGEST:]
    assert [one.name for one in found.services] == names
    assert [one.name for one in few.services] == names[:7]


async def test_kernel_is_read_only_for_what_is_shown() -> None:
    async with shown(WEB, WEB_SLICE, OTHER) as (url, _, ipvs):
        await answer(f"{url}/state?search=web")
        assert [key.port for key in ipvs.reads] == [80]


async def test_services_stay_in_order_while_they_come_and_go() -> None:
    async with shown(WEB, OTHER) as (url, rig, _):

        async def listed() -> list[str]:
            return [found["name"] for found in (await answer(f"{url}/state"))[1]["services"]]

        assert await listed() == ["web", "other"]
        first, last = service("a", cluster_ip="10.96.0.77"), service("z", cluster_ip="10.96.0.78")
        rig.add(last, first)
        assert await listed() == ["a", "web", "z", "other"]
        rig.replace(OTHER, None)
        assert await listed() == ["a", "web", "z"]


async def test_one_service_is_shown_with_reasons() -> None:
    async with shown(WEB, WEB_SLICE) as (url, _, _):
        status, state = await answer(f"{url}/state/services/default/web")
        assert status == 200
        (server,) = state["virtualServers"]
        assert [(found["wanted"], found["reason"], found["weight"]) for found in server["endpoints"]] == [
            (True, "ready", 1),
            (False, "not-ready", None),
        ]
        assert state["inSync"]
        assert await answer(f"{url}/state/services/default/none") == (
            404,
            {"error": "there is no Service default/none"},
        )


async def test_who_warms_up_and_who_is_paused_is_shown() -> None:
    annotations = {
        "ipvs-proxy.io/slow-start": "1h",
        "ipvs-proxy.io/weights": "node=there:0",
        "ipvs-proxy.io/max-connections": "9",
        "ipvs-proxy.io/min-connections": "5",
    }
    made = structs.replace(WEB, metadata=structs.replace(WEB.metadata, annotations=annotations))
    before, new = [endpoint("10.244.0.1"), endpoint("10.244.0.3", node="there")], endpoint("10.244.0.2")
    async with shown(made, endpoint_slice(*before)) as (url, rig, _):
        rig.replace(endpoint_slice(*before), endpoint_slice(*before, new))
        await rig.until(lambda: len(rig.writer.actual.virtual_servers[virtual("10.96.0.10")].real_servers) == 3)
        _, state = await answer(f"{url}/state/services/default/web")
        (server,) = state["virtualServers"]
        assert (server["schedulerFrom"], server["maxConnections"], server["minConnections"]) == ("weights", 9, 5)
        assert [
            (found["wantedWeight"], found["weightFrom"], found["warmingSeconds"] is not None)
            for found in server["endpoints"]
        ] == [(10, "", False), (1, "", True), (0, "node=there:0", False)]
        _, state = await answer(f"{url}/state")
        (found,) = state["services"]
        assert (found["endpoints"], found["warming"], found["paused"]) == (2, 1, 1)


async def test_what_the_kernel_is_set_to_is_in_the_state() -> None:
    async with shown() as (url, _, _):
        _, state = await answer(f"{url}/state?limit=0")
        assert (state["scheduler"], state["strictArp"]) == ("lc", True)


async def test_changes_and_repairs_are_remembered() -> None:
    async with shown(WEB, WEB_SLICE) as (url, rig, _):
        changed = endpoint_slice(endpoint("10.244.0.1"), endpoint("10.244.0.3"))
        rig.replace(WEB_SLICE, changed)
        await rig.until(lambda: rig.history.changes)
        rig.history.repaired("ipvs", ["b", "a"])
        _, state = await answer(f"{url}/state")
    assert [(found["objects"], found["count"], found["total"]) for found in state["changes"]] == [
        (["default/web"], 1, 1)
    ]
    assert [(found["what"], found["count"], found["objects"]) for found in state["repairs"]] == [
        ("ipvs", 2, ["a", "b"])
    ]


async def test_drains_and_refused_objects_are_named() -> None:
    async with shown(WEB, WEB_SLICE) as (url, rig, _):
        rig.replace(WEB_SLICE, endpoint_slice(endpoint("10.244.0.3")))
        await rig.until(lambda: len(rig.drains))
        rig.writer.retries.failed(TableKeys(addresses={packed("10.96.0.10")}), 0.0)
        _, state = await answer(f"{url}/state")
        _, web = await answer(f"{url}/state/services/default/web")
    assert (state["waiting"], state["refused"]) == (1, ["10.96.0.10 on kube-ipvs0"])
    told = [(found["virtualServer"], found["realServer"], found["connections"]) for found in web["drains"]]
    assert told == [("10.96.0.10:80/TCP", "10.244.0.1:8080", None)]
    assert [found["realServer"] for found in state["drains"]] == ["10.244.0.1:8080"]


def test_history_is_bounded() -> None:
    history = History()
    for number in range(KEPT + 5):
        history.wrote([f"ns/{number}"] * 1_000, operations=1, seconds=0.001)
    latest = history.changes[0]
    assert (len(history.changes), len(latest.objects), latest.objects[0], latest.total) == (KEPT, 5, "ns/54", 1_000)


async def test_way_of_a_connection_is_told() -> None:
    async with shown(WEB, WEB_SLICE) as (url, _, _):
        _, route = await answer(f"{url}/state/route?client=203.0.113.9&address=10.96.0.10&port=80")
    assert (route["verdict"], route["service"], route["realServers"]) == (
        "balanced",
        "default/web",
        ["10.244.0.1:8080"],
    )


async def test_way_ends_at_a_rule_of_others_that_takes_the_connection() -> None:
    taken = service(ports=(msgspec.structs.replace(HTTP, port=8080),))
    async with shown(taken, WEB_SLICE) as (url, _, _):
        _, route = await answer(f"{url}/state/route?client=203.0.113.9&address=10.96.0.10&port=8080")
        _, own = await answer(f"{url}/state/route?client=10.96.0.10&address=10.96.0.10&port=8080")
    assert (route["verdict"], route["realServers"]) == ("taken", [])
    assert route["steps"][-1].startswith(
        "a rule of others in nat PREROUTING (nf_tables) takes it before the Service: -A"
    )
    assert own["verdict"] == "balanced", "its packets do not pass PREROUTING"


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/state?limit=x", "limit='x' is not a number from 0 on"),
        ("/state?offset=-1", "offset='-1' is not a number from 0 on"),
        ("/state?limit=99999999999999", "limit='99999999999999' is not a number from 0 on"),
        ("/state/route?address=10.96.0.10&port=80", "client='' is not an IP address"),
        ("/state/route?client=10.0.0.1&address=fd00::1&port=80", "10.0.0.1 and fd00::1 are not of the same family"),
        (
            "/state/route?client=10.0.0.1&address=10.96.0.10&port=70000",
            "70000/TCP is not a port and a protocol (TCP, UDP, SCTP)",
        ),
        (
            "/state/route?client=10.0.0.1&address=10.96.0.10&port=80&protocol=ICMP",
            "80/ICMP is not a port and a protocol (TCP, UDP, SCTP)",
        ),
    ],
)
async def test_questions_that_make_no_sense_are_refused(path: str, complaint: str) -> None:
    async with shown(WEB) as (url, _, _):
        assert await answer(url + path) == (400, {"error": complaint})


async def test_kernel_that_cannot_be_read_is_told() -> None:
    async with shown(WEB) as (url, _, ipvs):
        ipvs.fails = True
        status, complaint = await answer(f"{url}/state")
    assert (status, complaint["error"]) == (503, "the kernel's tables cannot be read: [Errno 1] not today")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_state_takes_nothing_but_reads(method: str) -> None:
    async with shown(WEB) as (url, _, _), aiohttp.ClientSession() as session:
        for path in ("/state", "/state/services/default/web", "/state/route", "/statusz", "/flagz"):
            async with session.request(method, url + path, data=b"x") as response:
                assert response.status == 405


async def test_pages_for_people_have_the_form_of_kubernetes() -> None:
    async with shown(WEB) as (url, _, _):
        status = (await get(f"{url}/statusz"))[2]
        flags = (await get(f"{url}/flagz"))[2]
    assert "Paths: / /flagz /page.css /page.js /state /state/differences /state/route /statusz\n" in status
    assert "\nipvs-scheduler=lc\n" in flags


def test_status_counts_its_hours() -> None:
    started = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
    text = statusz(started, started + timedelta(hours=49, minutes=5, seconds=7), ["/a"])
    assert "Started: Thu Jan  1 12:00:00 UTC 2026\nUp: 49 hr 05 min 07 sec\n" in text


def test_flags_are_written_as_they_are_given() -> None:
    lines = flagz(effective({"hostname_override": "n", "masquerade_all": "true"})).splitlines()
    assert "masquerade-all=true" in lines
    assert "iptables-masquerade-bit=14" in lines
    names = [line.partition("=")[0] for line in lines[5:]]
    assert names == sorted(names)


async def test_differences_are_read_anew_and_drains_are_none() -> None:
    async with shown(WEB, WEB_SLICE, OTHER) as (url, rig, _):
        assert (await answer(f"{url}/state/differences"))[1] == {"services": 2, "changes": []}
        key, pod = virtual("10.96.0.10"), real("10.244.0.1")
        found = rig.plane.kernel.read().virtual_servers[key].real_servers[pod]
        rig.plane.kernel.apply(RealServerOperation(Verb.DELETE, key, pod, found))
        rig.plane.kernel.apply(AddressOperation(Verb.DELETE, packed("10.96.0.11")))
        before = rig.plane.calls["apply"]
        _, state = await answer(f"{url}/state/differences")
        assert rig.plane.calls["apply"] == before
    assert [(found["verb"], found["object"]) for found in state["changes"]] == [
        ("add", "10.96.0.10:80/TCP -> 10.244.0.1:8080 weight 1"),
        ("add", "10.96.0.11 on kube-ipvs0"),
    ]


async def test_one_at_a_time_has_all_of_the_kernel_read() -> None:
    async with shown(WEB, WEB_SLICE) as (url, _, ipvs):
        at_work, most = 0, 0
        read = ipvs.plane.read_entries

        def slowly() -> object:
            nonlocal at_work, most
            at_work += 1
            most = max(most, at_work)
            time.sleep(0.01)
            at_work -= 1
            return read()

        ipvs.plane.read_entries = slowly  # type: ignore[method-assign]
        answers = await asyncio.gather(*(answer(f"{url}/state/differences") for _ in range(10)))
        assert {status for status, _ in answers} == {200}
    assert most == 1


async def test_differences_have_what_is_left_of_a_service_that_is_gone_but_nothing_of_others() -> None:
    async with shown(WEB, WEB_SLICE) as (url, rig, _):
        leaked, excluded, foreign = (virtual(address) for address in ("10.96.9.9", "10.99.0.1", "192.0.2.5"))
        for key in (leaked, excluded, foreign):
            rig.plane.kernel.virtual_servers[key] = VirtualServer(key, "rr")
        rig.plane.kernel.addresses |= {leaked.address, excluded.address}
        _, state = await answer(f"{url}/state/differences")
    assert sorted((found["verb"], found["object"]) for found in state["changes"]) == [
        ("delete", "10.96.9.9 on kube-ipvs0"),
        ("delete", "10.96.9.9:80/TCP"),
        ("delete", "10.99.0.1 on kube-ipvs0"),
    ]
