"""The pages that show the state, served over a controller with a fake kernel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from errno import EPERM
from typing import Any

from aiohttp import web

from ipvs_proxy.agent.web.state_pages import add_state
from ipvs_proxy.agent.web.view import View
from ipvs_proxy.kernel.ipvs.records import Activity, Balanced, Connections, Counters, Observation
from ipvs_proxy.plan.tables import Family, VirtualServerKey
from ipvs_proxy.settings.merge import effective
from tests.support.fake_dataplane import FakeDataplane
from tests.support.loopback import serving
from tests.support.rig import Rig, running


class FakeIpvs:
    """Reads the fake kernel, records what it reads, and fails on demand."""

    def __init__(self, plane: FakeDataplane) -> None:
        self.plane = plane
        self.reads: list[VirtualServerKey] = []
        self.fails = False
        self.balanced = Balanced(Counters(7, 0, 0, 0, 0), Counters(2, 0, 0, 0, 0))

    def __call__(self) -> FakeIpvs:
        return self

    def observe(self, key: VirtualServerKey, *, real_servers: bool = True) -> Observation | None:
        if self.fails:
            raise PermissionError(EPERM, "not today")
        self.reads.append(key)
        found = self.plane.kernel.virtual_servers.get(key)
        if found is None:
            return None
        listed = found.real_servers if real_servers else {}
        activity = {key: Activity(one, Connections(1, 0, 0), self.balanced) for key, one in listed.items()}
        return Observation(found, self.balanced, activity)

    def close(self) -> None:
        """Do nothing: nothing is open."""


@asynccontextmanager
async def shown(*objects: Any) -> AsyncIterator[tuple[str, Rig, FakeIpvs]]:
    plane = FakeDataplane()
    async with running(plane, *objects) as rig:
        ipvs = FakeIpvs(plane)
        view = View(
            rig.controller,
            rig.programmer,
            settings=lambda: effective(
                {
                    "hostname_override": "node",
                    "scheduler": "lc",
                    "strict_arp": "true",
                    "exclude_cidrs": ("10.99.0.0/16",),
                }
            ),
            families=tuple(Family),
            rules=dict,
            host_addresses=set,
            health=rig.health,
            drains=rig.drains,
            history=rig.history,
            open_tables=lambda: plane,  # type: ignore[arg-type,return-value]
            name_of_role=plane.name_of_role,
            open_ipvs=ipvs,  # type: ignore[arg-type]
            read_rules=lambda family: OTHERS if family is Family.IPV4 else {},
        )
        application = web.Application()
        add_state(application, view)
        async with serving(application) as url:
            yield url, rig, ipvs


#: A host port of 8080 on every address of the node.
OTHERS = {
    "nf_tables": "*nat\n:PREROUTING ACCEPT [0:0]\n"
    "-A PREROUTING -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 8080 -j DNAT --to-destination 10.244.0.9:80\nCOMMIT\n"
}
