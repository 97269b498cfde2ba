"""Roles are keys of 100,000 members: each is one object, and hashing it calls no Python."""

from __future__ import annotations

import pytest

from ipvs_proxy.plan import roles
from ipvs_proxy.plan.roles import Roles
from ipvs_proxy.plan.tables import Family, Protocol, Role


def test_a_role_is_compared_and_hashed_by_identity() -> None:
    assert Role.__hash__ is object.__hash__
    assert Role.__eq__ is object.__eq__
    assert roles.CLUSTER_IP[Family.IPV4] != Role("cluster-ip", Family.IPV4)


@pytest.mark.parametrize("both", [roles.CLUSTER_IP, roles.INTERNAL, *roles.MARK_BITS.values()], ids=str)
def test_a_role_is_of_one_family(both: Roles) -> None:
    assert {family: role.family for family, role in both.items()} == {family: family for family in Family}


@pytest.mark.parametrize("ports", [roles.NODE_PORTS, roles.LOCAL_NODE_PORTS])
def test_each_protocol_has_node_ports(ports: dict[Protocol, Roles]) -> None:
    assert ports.keys() == set(Protocol)
    assert len({id(both) for both in ports.values()}) == len(Protocol)
