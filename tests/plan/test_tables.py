"""The nouns: their text is what operators read in logs and what witnesses print, their numbers are the kernel's."""

from __future__ import annotations

import pytest

from ipvs_proxy.plan.tables import (
    ACTIVE,
    DRAINING,
    HASHED,
    MASQUERADE,
    ONE_PACKET,
    PERSISTENT,
    SCHED1,
    SCHED2,
    Family,
    Protocol,
    VirtualServer,
    VirtualServerKey,
    endpoint_text,
    family_of,
    text_of,
)
from tests.support.objects import packed, real, virtual


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (virtual("10.0.0.1", 53, Protocol.UDP), "10.0.0.1:53/UDP"),
        (virtual("fd00:0::1", 80), "[fd00::1]:80/TCP"),
        (virtual("10.0.0.1", 3868, Protocol.SCTP), "10.0.0.1:3868/SCTP"),
        (real("10.0.0.1", 8080), "10.0.0.1:8080"),
        (real("fd00::1", 8080), "[fd00::1]:8080"),
    ],
)
def test_keys_read_like_kube_proxys_names_of_servers(key: object, text: str) -> None:
    assert str(key) == text


def test_the_family_is_the_length_of_the_address() -> None:
    assert family_of(packed("10.0.0.1")) is Family.IPV4
    assert family_of(packed("fd00::1")) is Family.IPV6
    assert (Family.IPV4.label, Family.IPV6.label) == ("IPv4", "IPv6")
    assert text_of(packed("FD00::0001")) == "fd00::1"
    assert endpoint_text(packed("fd00::1"), 1) == "[fd00::1]:1"


def test_numbers_are_those_of_the_kernel() -> None:
    assert [int(protocol) for protocol in (Protocol.TCP, Protocol.UDP, Protocol.SCTP)] == [6, 17, 132]
    assert [int(family) for family in (Family.IPV4, Family.IPV6)] == [2, 10]
    assert (PERSISTENT, HASHED, ONE_PACKET, SCHED1, SCHED2) == (1, 2, 4, 8, 16)
    assert MASQUERADE == 0
    assert (tuple(ACTIVE), tuple(DRAINING)) == ((1, 0, 0, 0), (0, 0, 0, 0))


def test_a_key_with_plain_numbers_is_the_same_key() -> None:
    assert VirtualServerKey(packed("10.0.0.1"), 6, 80) == virtual("10.0.0.1")
    assert hash(VirtualServerKey(packed("10.0.0.1"), 6, 80)) == hash(virtual("10.0.0.1"))


def test_settings_are_all_that_a_set_can_change() -> None:
    server = VirtualServer(virtual("10.0.0.1"), "mh", 17, 600, 24, {real("10.0.0.2"): ACTIVE})
    assert server.settings == ("mh", 17, 600, 24)
