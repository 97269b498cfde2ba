"""On which node an endpoint was that has just left."""

from __future__ import annotations

from ipvs_proxy.agent.sync.departed import DepartedEndpoints
from tests.support.fake_dataplane import FakeDataplane
from tests.support.objects import endpoint, endpoint_slice, packed
from tests.support.rig import WEB, running


def test_only_nodes_of_others_are_known_and_only_until_they_are_forgotten() -> None:
    departed = DepartedEndpoints("node")
    departed.note(
        endpoint_slice(
            endpoint("10.244.0.1", node="other"), endpoint("10.244.0.2", node="node"), endpoint("10.244.0.3")
        )
    )
    departed.note(endpoint_slice())
    nodes = [departed.node_of(packed(f"10.244.0.{number}")) for number in (1, 2, 3, 4)]
    assert nodes == ["other", "", "", ""]
    departed.note(endpoint_slice(endpoint("10.244.0.1", node="third")))
    assert departed.node_of(packed("10.244.0.1")) == "third"
    departed.clear()
    assert departed.node_of(packed("10.244.0.1")) == ""


def test_what_was_noted_and_not_asked_for_is_forgotten_too() -> None:
    departed = DepartedEndpoints("node")
    departed.note(endpoint_slice(endpoint("10.244.0.1", node="other")))
    departed.clear()
    assert departed.node_of(packed("10.244.0.1")) == ""


async def test_a_drain_knows_the_node_of_its_endpoint() -> None:
    stays = endpoint("10.244.0.1", node="first")
    before = endpoint_slice(stays, endpoint("10.244.0.2", node="second"), endpoint("10.244.0.3", node="node"))
    async with running(FakeDataplane(), WEB, before) as rig:
        rig.replace(before, endpoint_slice(stays))
        await rig.until(lambda: len(rig.drains) == 2)
        assert rig.drains.suspects(1_000.0) == {"second"}
