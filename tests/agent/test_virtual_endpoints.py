"""Endpoints that are virtual IPs, as a public report has them: another Service's cluster IP, and the Service's own."""

from __future__ import annotations

from structlog.testing import capture_logs

from ipvs_proxy.agent.sync.virtual_endpoints import VirtualEndpoints
from ipvs_proxy.kube.decode import Skipped
from ipvs_proxy.kube.objects import Service
from ipvs_proxy.plan.endpoints import Omission
from ipvs_proxy.plan.fragment import ServiceName
from tests.support.fake_dataplane import FakeDataplane
from tests.support.manifest_cases import CASES, content
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.rig import running

OBJECTS = [
    item for item in content((CASES / "20-endpoint-is-a-vip.yaml").read_text()).items if not isinstance(item, Skipped)
]
TOLD = ["service shop/b endpoint 10.96.1.1", "service shop/c endpoint 10.96.1.3"]


async def test_each_is_told_once_as_long_as_it_stays_so() -> None:
    told: list[tuple[Service | None, Omission]] = []
    async with running(FakeDataplane(), *OBJECTS) as rig:
        services = rig.controller.cache.services
        looking = VirtualEndpoints(rig.programmer.desired, services, lambda *found: told.append(found))
        with capture_logs() as logs:
            await looking.look()
            await looking.look()
        assert sorted(omission.where for _, omission in told) == TOLD
        assert sorted(line["where"] for line in logs if line["log_level"] == "warning") == TOLD
        assert {item.metadata.name for item, _ in told if item is not None} == {"b", "c"}
        web = services[ServiceName("shop", "web")]
        rig.replace(web, None)
        await rig.until(lambda: len(rig.programmer.desired.owners) == 2)
        await looking.look()
        rig.add(web)
        await rig.until(lambda: len(rig.programmer.desired.owners) == 3)
        await looking.look()
    assert [omission.where for _, omission in told][2:] == [TOLD[0]]


async def test_endpoints_of_pods_and_nodes_are_none() -> None:
    told: list[tuple[Service | None, Omission]] = []
    async with running(
        FakeDataplane(), service("web"), endpoint_slice(endpoint("10.244.0.1"), endpoint("192.0.2.1"))
    ) as rig:
        await VirtualEndpoints(rig.programmer.desired, {}, lambda *found: told.append(found)).look()
    assert told == []
