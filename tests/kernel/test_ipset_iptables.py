"""How the packet filter of ipset and iptables saves processes in a start; what it does to the kernel is the ring's to see."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ipvs_proxy.kernel.filter import ipset_iptables
from ipvs_proxy.kernel.filter.ipset_iptables import IpsetIptables
from ipvs_proxy.kernel.filter.iptables.saved import Saved, parse
from ipvs_proxy.plan.masquerading import Masquerading
from ipvs_proxy.plan.tables import Family

SEEN = parse("*nat\n:KUBE-SVC-0123456789ABCDEF - [0:0]\nCOMMIT\n")


class LookedAt:
    """Rules that say how often they were looked at, and what they were told was there."""

    def __init__(self) -> None:
        self.settings = Masquerading()
        self.looks = 0
        self.told: list[Saved] = []

    def look(self) -> Saved:
        self.looks += 1
        return SEEN

    def write(self, seen: Saved) -> list[str]:
        self.told.append(seen)
        return ["nat: chain KUBE-SERVICES is missing"]


@pytest.fixture
def rules() -> LookedAt:
    return LookedAt()


@pytest.fixture
def packet_filter(rules: LookedAt) -> IpsetIptables:
    # Nothing runs iptables: what was seen is handed on.
    return IpsetIptables(cast("Any", None), {Family.IPV4: cast("Any", rules)}, cast("Any", None))


def test_a_start_looks_at_the_rules_once(packet_filter: IpsetIptables, rules: LookedAt) -> None:
    packet_filter.look()
    assert packet_filter.find_other_modes() == ["IPv4: 1 chains of iptables mode"]
    assert packet_filter.write() == ["IPv4 nat: chain KUBE-SERVICES is missing"]
    assert (rules.looks, rules.told) == (1, [SEEN])


def test_what_was_seen_before_a_write_is_not_taken_for_what_is_there(
    packet_filter: IpsetIptables, rules: LookedAt
) -> None:
    packet_filter.write()
    packet_filter.write()
    assert rules.looks == 2


def test_what_was_seen_long_ago_is_looked_at_again(
    packet_filter: IpsetIptables, rules: LookedAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ipset_iptables, "RECENT", -1.0)
    packet_filter.look()
    packet_filter.write()
    assert rules.looks == 2


def test_rules_that_follow_other_settings_must_be_written_again(packet_filter: IpsetIptables) -> None:
    other = Masquerading(masquerade_all=True)
    assert not packet_filter.follow({Family.IPV4: Masquerading()})
    assert packet_filter.follow({Family.IPV4: other})
    assert packet_filter.settings == {Family.IPV4: other}
    assert not packet_filter.follow({Family.IPV4: other})
