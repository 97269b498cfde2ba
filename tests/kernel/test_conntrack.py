"""Reading and deleting flows when the kernel refuses, changes its table, or writes garbage: with scripted answers."""

from __future__ import annotations

import os
from collections import deque
from errno import EACCES, EINVAL, ENOENT, EOPNOTSUPP, EPERM, EPROTONOSUPPORT
from typing import NamedTuple

import pytest

from ipvs_proxy.kernel.conntrack import table as conntrack
from ipvs_proxy.kernel.conntrack.codec import encode_delete, encode_dump
from ipvs_proxy.kernel.conntrack.table import ATTEMPTS, Conntrack
from ipvs_proxy.netlink.errors import UNKNOWN, MissingPiece
from ipvs_proxy.netlink.wire import NESTED, attribute
from ipvs_proxy.plan.flows import Flow
from ipvs_proxy.plan.tables import Family, Protocol
from tests.support.objects import packed

FLOW = Flow(
    Protocol.UDP, packed("10.0.0.1"), 4000, packed("10.96.0.10"), 53,
    packed("10.96.0.10"), 53, packed("10.0.0.1"), 4000,
)  # fmt: skip
FILTERED, UNFILTERED = (encode_dump(Family.IPV4, Protocol.UDP, filtered=filtered) for filtered in (True, False))


def written(flow: Flow) -> bytes:
    """Return the flow as the kernel writes it: the tuple of a delete, and the other way round."""
    turned = flow._replace(
        source=flow.reply_source,
        source_port=flow.reply_source_port,
        destination=flow.reply_destination,
        destination_port=flow.reply_destination_port,
    )
    return encode_delete(flow).payload + attribute(2 | NESTED, encode_delete(turned).payload[8:])


class Dump(NamedTuple):
    """One answer to a dump."""

    payloads: tuple[bytes, ...] = ()
    whole: bool = True
    error: int = 0


class Scripted:
    """Stands for the socket: gives the answers in order and notes what it was asked."""

    def __init__(self, *answers: Dump, results: list[int] | None = None) -> None:
        self.answers = deque(answers)
        self.results = results or []
        self.asked = []

    def stream(self, request, take):
        self.asked.append(request)
        answer = self.answers.popleft()
        if answer.error:
            raise OSError(answer.error, os.strerror(answer.error))
        for payload in answer.payloads:
            take(payload)
        return answer.whole

    def execute(self, requests):
        self.asked += requests
        return self.results


@pytest.fixture
def table(monkeypatch):
    def make(*answers: Dump, results: list[int] | None = None) -> tuple[Conntrack, Scripted]:
        scripted = Scripted(*answers, results=results)
        monkeypatch.setattr(conntrack, "NetlinkSocket", lambda protocol: scripted)
        return Conntrack(), scripted

    return make


def read(table: Conntrack, keep=lambda flow: True) -> list[Flow]:
    return table.read(Family.IPV4, Protocol.UDP, keep=keep)


def test_kernel_is_asked_for_one_protocol_and_what_it_gives_is_filtered_again(table):
    other = FLOW._replace(source_port=4001)
    tcp = FLOW._replace(protocol=Protocol.TCP)
    flows, scripted = table(Dump((written(FLOW), written(tcp), written(other))))
    assert read(flows, keep=lambda flow: flow.source_port == 4001) == [other]
    assert scripted.asked == [FILTERED]


@pytest.mark.parametrize("error", [EINVAL, EOPNOTSUPP])
def test_kernel_that_refuses_the_filter_is_asked_for_everything(table, error):
    flows, scripted = table(Dump(error=error), Dump((written(FLOW),)))
    assert read(flows) == [FLOW]
    assert scripted.asked == [FILTERED, UNFILTERED]


def test_kernel_without_conntrack_netlink_is_a_missing_piece(table):
    flows, _ = table(Dump(error=EINVAL), Dump(error=EINVAL))
    with pytest.raises(MissingPiece, match="no conntrack netlink: load the module nf_conntrack_netlink"):
        read(flows)


def test_reading_without_the_capability_is_a_missing_piece(table):
    flows, _ = table(Dump(error=EPERM))
    with pytest.raises(MissingPiece, match="run as root with the capability CAP_NET_ADMIN"):
        read(flows)


def test_any_other_refusal_is_given_as_it_is(table):
    flows, scripted = table(Dump(error=EACCES))
    with pytest.raises(OSError, match=os.strerror(EACCES)) as refusal:
        read(flows)
    assert not isinstance(refusal.value, MissingPiece)
    assert scripted.asked == [FILTERED]


def test_kernel_without_nfnetlink_is_a_missing_piece(monkeypatch):
    def refuse(protocol):
        raise OSError(EPROTONOSUPPORT, os.strerror(EPROTONOSUPPORT))

    monkeypatch.setattr(conntrack, "NetlinkSocket", refuse)
    with pytest.raises(MissingPiece, match="no nfnetlink"):
        Conntrack()


def test_dump_of_a_table_that_changed_is_taken_again(table):
    other = FLOW._replace(source_port=4001)
    flows, scripted = table(Dump((written(FLOW),), whole=False), Dump((written(other),)))
    assert read(flows) == [other]
    assert len(scripted.asked) == 2


def test_after_five_dumps_the_last_one_has_to_do(table):
    dumps = [Dump((written(FLOW._replace(source_port=port)),), whole=False) for port in range(ATTEMPTS + 1)]
    flows, scripted = table(*dumps)
    assert read(flows) == [FLOW._replace(source_port=4)]
    assert len(scripted.asked) == ATTEMPTS == 5


def test_flow_that_is_garbage_is_left_out(table):
    flows, _ = table(Dump((b"\2\0\0\0", written(FLOW), b"")))
    assert read(flows) == [FLOW]


def test_each_deletion_has_its_result_and_what_is_gone_already_is_deleted(table):
    flows, scripted = table(results=[0, ENOENT, EPERM, UNKNOWN])
    four = [FLOW._replace(source_port=port) for port in range(4)]
    assert flows.delete(four) == [0, 0, EPERM, UNKNOWN]
    assert scripted.asked == [encode_delete(flow) for flow in four]
