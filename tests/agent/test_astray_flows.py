"""Which tracked flows go when a virtual server is new, beside a kube-proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import pytest

from ipvs_proxy.agent.sync import astray_flows
from ipvs_proxy.agent.sync.astray_flows import AstrayFlows
from ipvs_proxy.plan.flows import Flow
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import Family, Protocol, VirtualServer, VirtualServerKey
from tests.support.objects import packed, virtual

VIP, OTHER = virtual("10.96.0.10"), virtual("10.96.0.11")
DATAGRAMS = VirtualServerKey(VIP.address, Protocol.UDP, VIP.port)
CLIENT, POD = packed("198.51.100.9"), packed("10.244.1.1")


def flow(key: VirtualServerKey, answers_from: bytes, port: int = 80) -> Flow:
    return Flow(key.protocol, CLIENT, 40000, key.address, key.port, answers_from, port, CLIENT, 40000)


ASTRAY = flow(VIP, VIP.address)
FLOWS = [ASTRAY, flow(VIP, POD, 8080), flow(OTHER, OTHER.address), flow(DATAGRAMS, DATAGRAMS.address)]


class Flows:
    """A table of tracked flows that notes what is read and deleted."""

    def __init__(self) -> None:
        self.reads: list[tuple[Family, int]] = []
        self.deleted: list[Flow] = []
        self.fails = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""

    def read(self, family: Family, protocol: int, *, keep: Callable[[Flow], bool]) -> list[Flow]:
        self.reads.append((family, protocol))
        if self.fails:
            raise OSError(1, "not today")
        return [found for found in FLOWS if found.protocol == protocol and keep(found)]

    def delete(self, flows: Sequence[Flow]) -> list[int]:
        self.deleted += flows
        return [0] * len(flows)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(astray_flows, "SETTLE", 0.0)
    monkeypatch.setattr(astray_flows, "REST", 0.0)


@pytest.mark.usefixtures("quick")
async def test_untranslated_flows_to_a_new_virtual_server_go_once_and_no_others() -> None:
    desired: dict[VirtualServerKey, VirtualServer] = {}
    table = Flows()
    cleaner = AstrayFlows(lambda: desired, open_table=lambda: table)
    task = asyncio.create_task(cleaner.clean_for_ever())

    async def written(*keys: VirtualServerKey) -> list[tuple[Family, int]]:
        table.reads.clear()
        cleaner.observe_write(TableKeys(set(keys)), desired, desired)
        for _ in range(50):
            await asyncio.sleep(0.002)
        return list(table.reads)

    desired[DATAGRAMS] = VirtualServer(DATAGRAMS, "rr")
    assert await written(DATAGRAMS, OTHER) == [], "the one is of UDP, the other not wanted"
    desired[VIP] = VirtualServer(VIP, "rr")
    assert await written(VIP, DATAGRAMS) == [(Family.IPV4, Protocol.TCP)]
    assert table.deleted == [ASTRAY]
    assert await written(VIP) == [], "a change of its endpoints makes it no new one"
    server = desired.pop(VIP)
    assert await written(VIP) == []
    desired[VIP] = server
    assert await written(VIP) == [(Family.IPV4, Protocol.TCP)], "it was gone in between"
    table.fails = True
    desired[OTHER] = VirtualServer(OTHER, "rr")
    assert await written(OTHER) == [(Family.IPV4, Protocol.TCP)]
    assert not task.done(), "a fault is none of the others' business"
    task.cancel()
