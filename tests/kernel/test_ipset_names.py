"""The sets against kube-proxy's table: a node is taken over in place, so names, types and comments must be the same."""

from __future__ import annotations

import pytest

from ipvs_proxy.kernel.filter.ipset.names import definition_of, definitions, name_of
from ipvs_proxy.plan import roles
from ipvs_proxy.plan.roles import Roles
from ipvs_proxy.plan.tables import Family, Role

# Name of IPv4, name of IPv6, type, comment of the rules.
TABLE = """
KUBE-LOOP-BACK | KUBE-6-LOOP-BACK | hash:ip,port,ip | \
Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose
KUBE-CLUSTER-IP | KUBE-6-CLUSTER-IP | hash:ip,port | Kubernetes service cluster ip + port for masquerade purpose
KUBE-EXTERNAL-IP | KUBE-6-EXTERNAL-IP | hash:ip,port | \
Kubernetes service external ip + port for masquerade and filter purpose
KUBE-EXTERNAL-IP-LOCAL | KUBE-6-EXTERNAL-IP-LOCAL | hash:ip,port | \
Kubernetes service external ip + port with externalTrafficPolicy=local
KUBE-LOAD-BALANCER | KUBE-6-LOAD-BALANCER | hash:ip,port | Kubernetes service lb portal
KUBE-LOAD-BALANCER-FW | KUBE-6-LOAD-BALANCER-FW | hash:ip,port | \
Kubernetes service load balancer ip + port for load balancer with sourceRange
KUBE-LOAD-BALANCER-LOCAL | KUBE-6-LOAD-BALANCER-LOCAL | hash:ip,port | \
Kubernetes service load balancer ip + port with externalTrafficPolicy=local
KUBE-LOAD-BALANCER-SOURCE-IP | KUBE-6-LOAD-BALANCER-SOURCE-IP | hash:ip,port,ip | \
Kubernetes service load balancer ip + port + source IP for packet filter purpose
KUBE-LOAD-BALANCER-SOURCE-CIDR | KUBE-6-LOAD-BALANCER-SOURCE-CID | hash:ip,port,net | \
Kubernetes service load balancer ip + port + source cidr for packet filter purpose
KUBE-NODE-PORT-TCP | KUBE-6-NODE-PORT-TCP | bitmap:port | Kubernetes nodeport TCP port for masquerade purpose
KUBE-NODE-PORT-LOCAL-TCP | KUBE-6-NODE-PORT-LOCAL-TCP | bitmap:port | \
Kubernetes nodeport TCP port with externalTrafficPolicy=local
KUBE-NODE-PORT-UDP | KUBE-6-NODE-PORT-UDP | bitmap:port | Kubernetes nodeport UDP port for masquerade purpose
KUBE-NODE-PORT-LOCAL-UDP | KUBE-6-NODE-PORT-LOCAL-UDP | bitmap:port | \
Kubernetes nodeport UDP port with externalTrafficPolicy=local
KUBE-NODE-PORT-SCTP-HASH | KUBE-6-NODE-PORT-SCTP-HASH | hash:ip,port | \
Kubernetes nodeport SCTP port for masquerade purpose with type 'hash ip:port'
KUBE-NODE-PORT-LOCAL-SCTP-HASH | KUBE-6-NODE-PORT-LOCAL-SCTP-HAS | hash:ip,port | \
Kubernetes nodeport SCTP port with externalTrafficPolicy=local with type 'hash ip:port'
KUBE-HEALTH-CHECK-NODE-PORT | KUBE-6-HEALTH-CHECK-NODE-PORT | bitmap:port | Kubernetes health check node port
KUBE-IPVS-IPS | KUBE-6-IPVS-IPS | hash:ip | Addresses on the ipvs interface
"""
ROWS = [line.split(" | ") for line in TABLE.strip().splitlines()]


@pytest.mark.parametrize(("ipv4", "ipv6", "kind", "comment"), ROWS, ids=[row[0] for row in ROWS])
def test_each_set_is_that_of_kube_proxy(ipv4: str, ipv6: str, kind: str, comment: str) -> None:
    role: Roles = getattr(roles, ipv4.removeprefix("KUBE-").removesuffix("-HASH").replace("-", "_"))
    for family, name in ((Family.IPV4, ipv4), (Family.IPV6, ipv6)):
        found = definition_of(role[family])
        assert (found.name, found.type.value, found.family, found.comment) == (name, kind, family, comment)
        assert name_of(role[family]) == name


def test_each_role_has_a_set_in_each_family() -> None:
    """Roles are told from everything else in their module by what they are."""
    named = [one for one in vars(roles).values() if isinstance(one, dict) and isinstance(one.get(Family.IPV4), Role)]
    every = {role for one in (*named, *roles.MARK_BITS.values()) for role in one.values()}
    assert {definition.role for definition in definitions()} == every


@pytest.mark.parametrize("family", Family)
def test_other_sets_are_named_as_ours_and_no_name_is_too_long_or_twice(family: Family) -> None:
    names = [definition.name for definition in definitions([family])]
    own = [name for name in names if not name.startswith("KUBE-")]
    assert len(names) - len(own) == len(ROWS) == 17
    assert all(name.startswith("IPVS-PROXY-") for name in own)
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 31


@pytest.mark.parametrize("family", Family)
def test_one_set_has_marks(family: Family) -> None:
    assert [found.role for found in definitions([family]) if found.marks] == [roles.INTERNAL[family]]
