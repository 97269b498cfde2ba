"""The tables of ``docs/scheduling.md`` about schedulers and weights are true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from msgspec import structs

from ipvs_proxy.plan.annotations import SCHEDULERS
from ipvs_proxy.plan.fragment import Context
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.scheduling import flag_names
from ipvs_proxy.plan.services import plan_service
from tests.support.objects import annotated_slice, endpoint, endpoint_slice, real, service, virtual

TEXT = (Path(__file__).parents[2] / "docs" / "scheduling.md").read_text()
RULES = "node=edge-1:0, zone=eu-1a:3, local:10, *:2"
VIP, POD = virtual("10.96.0.10"), "10.0.0.1"


def rows(first: str) -> list[list[str]]:
    """Return the rows of the table whose first column has this name; cells without their code marks."""
    table = re.search(rf"^\| {first} \|.*\n\|[-|]+\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    assert table is not None, first
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in table[1].splitlines()]


def annotations(cell: str, prefix: str = "") -> dict[str, str]:
    """Return the annotations of a cell such as ``scheduler: lc; weights: local:3``."""
    found = [part.partition(":") for part in cell.split(";")] if cell not in {"", "none"} else []
    return {prefix + name.strip(): text.strip() for name, _, text in found}


@pytest.mark.parametrize(("agent", "wish", "scheduler", "flags", "source"), rows("agent"))
def test_who_chooses_the_scheduler(agent: str, wish: str, scheduler: str, flags: str, source: str) -> None:
    made = service()
    metadata = structs.replace(made.metadata, annotations=annotations(wish, "ipvs-proxy.io/"))
    pieces = [endpoint_slice(endpoint(POD, node="here"))]
    fragment = plan_service(structs.replace(made, metadata=metadata), pieces, Context("here", agent), Marks())
    server, _ = fragment.virtual_servers[VIP]
    shown = ", ".join(flag_names(server.scheduler, server.flags)) or "none"
    assert (server.scheduler, shown, fragment.schedulings[VIP].source.value) == (scheduler, flags, source)


@pytest.mark.parametrize(("node", "zone", "wish", "weight"), rows("node"))
def test_who_gives_an_endpoint_its_weight(node: str, zone: str, wish: str, weight: str) -> None:
    assert f"With the rules `{RULES}` on node `here`:" in TEXT
    made = service()
    made = structs.replace(made, metadata=structs.replace(made.metadata, annotations={"ipvs-proxy.io/weights": RULES}))
    piece = endpoint_slice(structs.replace(endpoint(POD, node=node), zone=zone))
    piece = annotated_slice(piece, annotations(wish))
    fragment = plan_service(made, [piece], Context("here"), Marks())
    assert fragment.virtual_servers[VIP][0].real_servers[real(POD)].weight == int(weight)


def test_every_scheduler_is_described() -> None:
    named = {name for row in rows("scheduler") for name in row[0].split(", ")}
    assert named == SCHEDULERS
