"""Which lines of the kernel's table of connections say that data may still come."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipvs_proxy.kernel.ipvs.connections import Target, open_among
from ipvs_proxy.plan.marks import CLASS, mark_key
from ipvs_proxy.plan.tables import Family, Protocol
from tests.support.objects import real, virtual

#: As Linux prints them.
HEADER = "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData\n"
IPV4 = "{protocol} C6336409 {client} 0A600001 0050 0AF40101 1F90 {state:11} {expires:7}\n"
IPV6 = (
    "{protocol} fd00:0051:0000:0000:0000:0000:0000:0009 {client} fd00:0096:0000:0000:0000:0000:0000:0001 0050 "
    "fd00:0010:0244:0001:0000:0000:0000:0001 1F90 {state:11} {expires:7}\n"
)
TARGETS: dict[str, Target] = {
    IPV4: (virtual("10.96.0.1"), real("10.244.1.1")),
    IPV6: (virtual("fd00:96::1"), real("fd00:10:244:1::1")),
}


def look(path: Path, targets: set[Target], *lines: str) -> set[Target]:
    table = path / "ip_vs_conn"
    table.write_text(HEADER + "".join(lines))
    return open_among(targets, table)


@pytest.mark.parametrize("line", [IPV4, IPV6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize(
    ("protocol", "state", "is_open"),
    [
        ("TCP", "ESTABLISHED", True),
        ("TCP", "SYN_RECV", True),
        ("TCP", "FIN_WAIT", True),
        ("TCP", "CLOSE_WAIT", True),
        ("TCP", "LAST_ACK", True),
        ("TCP", "TIME_WAIT", False),
        ("TCP", "CLOSE", False),
        ("SCTP", "ESTABLISHED", True),
        ("SCTP", "SHUTDOWN_SENT", True),
        ("SCTP", "SHUTDOWN_RECEIVED", True),
        ("SCTP", "SHUTDOWN_ACK_SENT", False),
        ("SCTP", "CLOSED", False),
        ("UDP", "UDP", True),
    ],
)
def test_a_connection_is_open_until_both_sides_have_ended_it(
    tmp_path: Path, line: str, protocol: str, state: str, *, is_open: bool
) -> None:
    server, real_server = TARGETS[line]
    target = (server._replace(protocol=Protocol[protocol]), real_server)
    written = line.format(protocol=f"{protocol:3}", client="D431", state=state, expires=119)
    assert look(tmp_path, {target}, written) == ({target} if is_open else set())


def test_other_virtual_servers_and_templates_do_not_count(tmp_path: Path) -> None:
    target = TARGETS[IPV4]
    line = IPV4.format(protocol="TCP", client="D431", state="ESTABLISHED", expires=899)
    others = [
        line.replace("0050", "0051"),
        line.replace("0A600001", "0A600002"),
        line.replace("1F90", "1F91"),
        line.replace("TCP", "UDP"),
        IPV4.format(protocol="TCP", client="0000", state="ASSURED", expires=10_000),
        "TCP what is\n",
    ]
    assert look(tmp_path, {target}, *others) == set()
    assert look(tmp_path, {target}, *others, line) == {target}


def test_a_connection_by_a_mark_counts_for_its_real_server(tmp_path: Path) -> None:
    marked = (mark_key(CLASS | 5, Family.IPV4), real("10.244.1.1"))
    line = IPV4.format(protocol="TCP", client="D431", state="ESTABLISHED", expires=899)
    assert marked[0].protocol == Protocol.TCP
    assert look(tmp_path, {marked, TARGETS[IPV4]}, line) == {marked, TARGETS[IPV4]}
    assert look(tmp_path, {marked}, line.replace("0AF40101", "0AF40102")) == set()
