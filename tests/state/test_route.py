"""The way of a new connection, for each kind of client, address and policy."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from ipvs_proxy.kernel.filter.ipset.names import name_of
from ipvs_proxy.plan import roles
from ipvs_proxy.plan.marks import CLASS, mark_key
from ipvs_proxy.plan.masquerading import Interface, Masquerading
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.roles import Roles
from ipvs_proxy.plan.tables import ACTIVE, DRAINING, Family, SetEntry, VirtualServer
from ipvs_proxy.state.route import Origin, Route, Verdict, trace
from tests.support.objects import packed, real, virtual

VIP = virtual("10.96.0.10")
NODE, POD, OWN_POD, OUTSIDE = "192.0.2.1", "10.244.9.9", "10.244.1.9", "203.0.113.9"
LOCAL, REMOTE = real("10.244.1.2"), real("10.244.2.2")
RULES = Masquerading(local=ip_network("10.244.0.0/16"), own_pods=ip_network("10.244.1.0/24"))
NODE_PORTS = (*roles.NODE_PORTS.values(), *roles.LOCAL_NODE_PORTS.values())
MARK = CLASS | 1 << 2 | 1


def tables(*given: Roles, marked: bool = False, weights: tuple[int, ...] = (1, 1)) -> KernelTables:
    """Tables with the virtual server, a member for it in some roles, and one for a mark."""
    entry = SetEntry(*VIP[:3])
    entries = {role[Family.IPV4]: {SetEntry(port=VIP.port) if role in NODE_PORTS else entry} for role in given}
    servers = {
        server: (ACTIVE if weight else DRAINING) for server, weight in zip((LOCAL, REMOTE), weights, strict=False)
    }
    found = KernelTables({VIP: VirtualServer(VIP, "rr", real_servers=servers)}, {VIP.address}, entries)
    if marked:
        entries[roles.INTERNAL[Family.IPV4]] = {entry._replace(mark=MARK)}
        key = mark_key(MARK, Family.IPV4)
        found.virtual_servers[key] = VirtualServer(key, "rr", real_servers={REMOTE: ACTIVE})
    return found


def way(client: str, found: KernelTables, rules: Masquerading = RULES) -> Route:
    return trace(packed(client), VIP, tables=found, rules=rules, host_addresses={packed(NODE)}, name_of_role=name_of)


@pytest.mark.parametrize(
    ("client", "origin"),
    [
        (NODE, Origin.NODE),
        ("127.0.0.1", Origin.NODE),
        ("10.96.0.10", Origin.NODE),
        (POD, Origin.CLUSTER),
        (OUTSIDE, Origin.OUTSIDE),
    ],
)
def test_where_a_client_is_follows_from_its_address(client: str, origin: Origin) -> None:
    assert way(client, tables(roles.CLUSTER_IP)).origin is origin


@pytest.mark.parametrize(
    ("base", "client", "rules", "masqueraded"),
    [
        ((roles.CLUSTER_IP,), POD, RULES, False),
        ((roles.CLUSTER_IP,), OUTSIDE, RULES, True),
        ((roles.CLUSTER_IP,), NODE, RULES, True),
        ((roles.CLUSTER_IP,), POD, Masquerading(masquerade_all=True), True),
        ((roles.CLUSTER_IP,), POD, Masquerading(), False),
        ((roles.CLUSTER_IP,), NODE, Masquerading(), True),
        ((roles.CLUSTER_IP,), OWN_POD, Masquerading(local=Interface("cni0"), own_pods=RULES.own_pods), False),
        ((roles.LOAD_BALANCER,), OUTSIDE, RULES, True),
        ((roles.LOAD_BALANCER, roles.LOAD_BALANCER_LOCAL), OUTSIDE, RULES, False),
        ((roles.EXTERNAL_IP,), OUTSIDE, RULES, True),
        ((roles.EXTERNAL_IP_LOCAL,), OUTSIDE, RULES, False),
        ((roles.NODE_PORT_TCP,), OUTSIDE, RULES, True),
        ((roles.NODE_PORT_TCP, roles.NODE_PORT_LOCAL_TCP), OUTSIDE, RULES, False),
        ((roles.CLUSTER_IP,), "127.0.0.1", RULES, False),
    ],
)
def test_masquerading_follows_the_sets_and_the_settings(
    base: tuple[str, ...], client: str, rules: Masquerading, masqueraded: bool
) -> None:
    found = way(client, tables(*base), rules)
    assert (found.verdict, found.masqueraded) == (Verdict.BALANCED, masqueraded)
    assert found.steps[-1].startswith("masqueraded: " if masqueraded else "the client keeps its address: ")


@pytest.mark.parametrize(
    ("client", "key", "masqueraded"),
    [
        (OUTSIDE, VIP, False),
        (POD, mark_key(MARK, Family.IPV4), True),
        (NODE, mark_key(MARK, Family.IPV4), True),
        (OWN_POD, mark_key(MARK, Family.IPV4), False),
    ],
)
def test_clients_in_the_cluster_follow_a_mark(client: str, key: object, masqueraded: bool) -> None:
    found = way(client, tables(roles.LOAD_BALANCER, roles.LOAD_BALANCER_LOCAL, marked=True))
    assert (found.verdict, found.virtual_server, found.masqueraded) == (Verdict.BALANCED, key, masqueraded)


def test_policy_without_local_endpoint_drops_outside_clients_only() -> None:
    found = tables(roles.LOAD_BALANCER, roles.LOAD_BALANCER_LOCAL, roles.NO_LOCAL, marked=True, weights=())
    assert way(OUTSIDE, found).verdict is Verdict.DROPPED
    assert way(POD, found).verdict is Verdict.BALANCED


def test_service_without_endpoint_refuses() -> None:
    assert way(POD, tables(roles.CLUSTER_IP, roles.NO_ENDPOINT, weights=())).verdict is Verdict.REFUSED


def test_virtual_server_that_only_drains_refuses_new_connections() -> None:
    found = way(POD, tables(roles.CLUSTER_IP, weights=(0, 0)))
    assert (found.verdict, found.real_servers) == (Verdict.REFUSED, ())


def test_other_port_of_a_services_address_is_refused_and_another_address_not_served() -> None:
    found = tables(roles.CLUSTER_IP)
    del found.virtual_servers[VIP]
    assert way(POD, found).verdict is Verdict.REFUSED
    found.addresses.clear()
    assert way(POD, found).verdict is Verdict.NOT_SERVED


@pytest.mark.parametrize(
    ("client", "own_allowed", "verdict"),
    [
        ("198.51.100.7", False, Verdict.BALANCED),
        (OUTSIDE, False, Verdict.DROPPED),
        (NODE, False, Verdict.DROPPED),
        (NODE, True, Verdict.BALANCED),
    ],
)
def test_source_ranges_decide_first(client: str, own_allowed: bool, verdict: Verdict) -> None:
    found = tables(roles.LOAD_BALANCER, roles.LOAD_BALANCER_FW)
    entry = SetEntry(*VIP[:3])
    found.entries[roles.LOAD_BALANCER_SOURCE_CIDR[Family.IPV4]] = {
        entry._replace(source=packed("198.51.100.0"), prefix_length=24)
    }
    if own_allowed:
        found.entries[roles.LOAD_BALANCER_SOURCE_IP[Family.IPV4]] = {entry._replace(source=VIP.address)}
    route = way(client, found)
    assert route.verdict is verdict
    assert "source ranges (198.51.100.0/24)" in route.steps[1]


def test_client_that_is_an_endpoint_may_meet_itself() -> None:
    found = tables(roles.CLUSTER_IP)
    found.entries[roles.LOOP_BACK[Family.IPV4]] = {SetEntry(LOCAL.address, VIP.protocol, LOCAL.port, LOCAL.address)}
    assert "hairpin" in way("10.244.1.2", found).steps[-1]
    assert "hairpin" not in way(POD, found).steps[-1]


DNAT = "-A PREROUTING {}-p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.1.3:8080"


def beside(*rules: str, table: str = "nat") -> dict[str, str]:
    """What is saved of the variant that the node does not use."""
    return {"legacy": f"*{table}\n:PREROUTING ACCEPT [0:0]\n" + "\n".join(rules) + "\nCOMMIT\n"}


@pytest.mark.parametrize(
    ("client", "others", "verdict", "step"),
    [
        (OUTSIDE, beside(DNAT.format("")), Verdict.TAKEN, "in nat PREROUTING (legacy) takes it before the Service: -A"),
        (NODE, beside(DNAT.format("")), Verdict.BALANCED, ""),
        (
            NODE,
            beside(DNAT.replace("PREROUTING", "OUTPUT").format("")),
            Verdict.TAKEN,
            "in nat OUTPUT (legacy) takes it",
        ),
        (POD, beside(DNAT.format("-s 10.244.9.0/24 ")), Verdict.TAKEN, "takes it before the Service: -A PREROUTING -s"),
        (OUTSIDE, beside(DNAT.format("-s 10.244.9.0/24 ")), Verdict.BALANCED, ""),
        (
            OUTSIDE,
            beside(DNAT.format("-i eth0 ")),
            Verdict.BALANCED,
            "takes it before the Service, if all that it asks for",
        ),
        (
            OUTSIDE,
            beside("-A PREROUTING -p tcp -j DROP", table="raw"),
            Verdict.DROPPED,
            "in raw PREROUTING (legacy) drops",
        ),
        (OUTSIDE, beside("-A PREROUTING -j CT --notrack", table="raw"), Verdict.BALANCED, "keeps conntrack off it"),
        (
            OUTSIDE,
            beside("-A PREROUTING -j CONNMARK --restore-mark --nfmask 0x80", table="mangle"),
            Verdict.BALANCED,
            "changes the bits 0x80 of its packet mark",
        ),
    ],
)
def test_rules_of_others_that_come_first_are_told(
    client: str, others: dict[str, str], verdict: Verdict, step: str
) -> None:
    found = trace(
        packed(client),
        VIP,
        tables=tables(roles.CLUSTER_IP),
        rules=RULES,
        host_addresses={packed(NODE)},
        name_of_role=name_of,
        others=others,
    )
    assert found.verdict is verdict
    told = [text for text in found.steps if "of others" in text]
    assert (step in told[0]) if step else not told
    assert bool(found.real_servers) is (verdict is Verdict.BALANCED)


def test_steps_of_rules_that_end_nothing_are_bounded() -> None:
    others = beside(*[DNAT.format(f"-i eth{number} ") for number in range(50)], DNAT.format(""))
    found = trace(
        packed(OUTSIDE),
        VIP,
        tables=tables(roles.CLUSTER_IP),
        rules=RULES,
        host_addresses=(),
        name_of_role=name_of,
        others=others,
    )
    assert (len(found.steps), found.verdict) == (7, Verdict.TAKEN)
