"""The table of nftables against a real kernel: members, drift and its repair; ``nft`` is the witness."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import closing
from errno import EINVAL, ENOENT
from ipaddress import ip_network
from socket import AF_INET, AF_INET6, inet_pton

import pytest
from structlog.testing import capture_logs

from ipvs_proxy.kernel.filter.backend import Cleaning
from ipvs_proxy.kernel.filter.nftables import codec, program
from ipvs_proxy.kernel.filter.nftables.names import definitions
from ipvs_proxy.kernel.filter.nftables_filter import NftablesFilter, NftablesTraces, open_nftables
from ipvs_proxy.netlink.socket import NETLINK_NETFILTER, NetlinkSocket
from ipvs_proxy.plan import roles
from ipvs_proxy.plan.masquerading import Interface, Masquerading
from ipvs_proxy.plan.tables import Family, Protocol, Role, SetEntry, SetEntryOperation, Verb
from tests.support.namespaces import fresh_namespace, missing_piece, run

pytestmark = pytest.mark.skipif(missing_piece() is not None, reason=str(missing_piece()))

CLUSTER_IP = roles.CLUSTER_IP[Family.IPV4]
INTERNAL = roles.INTERNAL[Family.IPV4]
RANGES = roles.LOAD_BALANCER_SOURCE_CIDR[Family.IPV4]
SETTINGS = {family: Masquerading() for family in Family}


def packed(text: str) -> bytes:
    return inet_pton(AF_INET6 if ":" in text else AF_INET, text)


def entry(number: int) -> SetEntry:
    return SetEntry(bytes((10, 96, number // 256 % 256, number % 256)), Protocol.TCP, 80 + number // 65536)


def add(member: SetEntry, role: Role = CLUSTER_IP) -> SetEntryOperation:
    return SetEntryOperation(Verb.ADD, role, member)


def delete(member: SetEntry, role: Role = CLUSTER_IP) -> SetEntryOperation:
    return SetEntryOperation(Verb.DELETE, role, member)


def nft(text: str) -> None:
    """Do as somebody else on the node."""
    done = subprocess.run(["nft", "-f", "-"], input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def witnessed(name: str) -> set[str]:
    """Return the members of a set as ``nft`` prints them."""
    (found,) = (
        item[kind]
        for item in json.loads(run("nft", "-j", "list", "ruleset"))["nftables"]
        for kind in ("set", "map")
        if kind in item and item[kind]["name"] == name
    )
    members = set()
    for element in found.get("elem", ()):
        key, mark = element if "map" in found and isinstance(found["map"], str) else (element, None)
        parts = key["concat"] if isinstance(key, dict) else [key]
        members.add(" . ".join(map(str, parts)) + ("" if mark is None else f" : {mark:#x}"))
    return members


def generation() -> int:
    """Return how many transactions there have been."""
    with NetlinkSocket(NETLINK_NETFILTER) as socket:
        return codec.decode_generation(socket.ask(codec.GET_GENERATION))


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with fresh_namespace():
        yield


@pytest.fixture
def made() -> Iterator[NftablesFilter]:
    """A packet filter whose table is written, and of which all is known."""
    with closing(open_nftables(SETTINGS)) as opened:
        opened.ensure()
        opened.write()
        opened.repair()
        yield opened


def test_an_empty_node_gets_the_table_and_then_nothing_more(made: NftablesFilter) -> None:
    writes = made.writes()
    assert (made.missing(), made.drift(), made.ensure(), made.repair()) == ([], [], [], [])
    assert made.writes() == writes
    with closing(open_nftables(SETTINGS)) as second:
        assert (second.ensure(), second.write(), second.repair(), second.writes()) == ([], [], [], 0)
        assert second.read() == {definition.role: set() for definition in definitions()}


@pytest.mark.parametrize(
    "settings",
    [
        {Family.IPV4: Masquerading(local=ip_network("10.244.0.0/16"), own_pods=ip_network("10.244.1.0/24"))},
        {Family.IPV6: Masquerading(local=Interface("cali", is_prefix=True))},
        {family: Masquerading(masquerade_all=True) for family in Family},
        {family: Masquerading(masquerade_bit=13, local=Interface("cbr0")) for family in Family},
        {Family.IPV4: Masquerading(local=ip_network("10.244.1.9/32"))},
        {Family.IPV4: Masquerading(local=Interface("a*b*"))},
    ],
    ids=["networks", "a prefix of interfaces", "everything", "without marks", "one address", "asterisks"],
)
def test_what_is_written_is_what_nft_prints(settings: dict[Family, Masquerading]) -> None:
    with closing(open_nftables(settings)) as opened:
        assert opened.ensure()
        assert opened.write()
        lengths = [add(SetEntry(packed("203.0.113.1"), 6, 80, packed("10.0.0.0"), one), RANGES) for one in (0, 8, 32)]
        if Family.IPV4 in settings:
            assert opened.apply(lengths) == [0, 0, 0]
        assert opened.drift() == [], "before anything has been learnt of how this nft prints it"


def test_other_settings_are_written(made: NftablesFilter) -> None:
    changed = {family: Masquerading(masquerade_all=True) for family in Family}
    assert made.follow(changed)
    assert not made.follow(changed)
    assert {finding.split(":")[0] for finding in made.repair()} == {
        f"chain services{suffix} was changed" for suffix in ("", "-6")
    }
    assert made.repair() == []


def test_settings_that_change_while_rules_are_written_wait_for_nobody_and_are_written_next(
    made: NftablesFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ({family: Masquerading(masquerade_bit=bit) for family in Family} for bit in (15, 16))
    carry_out = program.carry_out

    def slowly(text: str) -> None:
        carry_out(text)
        made.follow(second)

    made.follow(first)
    monkeypatch.setattr(program, "carry_out", slowly)
    assert made.repair(), "those of the first settings"
    monkeypatch.setattr(program, "carry_out", carry_out)
    assert made.repair(), "those of the second"
    assert (made.drift(), made.repair()) == ([], [])


@pytest.mark.parametrize(
    ("role", "member", "name", "text"),
    [
        (roles.IPVS_IPS[Family.IPV4], SetEntry(packed("10.96.0.1")), "ipvs-ips", "10.96.0.1"),
        (roles.IPVS_IPS[Family.IPV6], SetEntry(packed("fd00::1")), "ipvs-ips-6", "fd00::1"),
        (CLUSTER_IP, SetEntry(packed("10.96.0.1"), 17, 53), "cluster-ip", "10.96.0.1 . udp . 53"),
        (roles.NO_LOCAL[Family.IPV6], SetEntry(packed("fd00::1"), 132, 9), "no-local-6", "fd00::1 . sctp . 9"),
        (roles.NODE_PORT_TCP[Family.IPV6], SetEntry(port=30080), "node-port-tcp-6", "30080"),
        (INTERNAL, SetEntry(packed("10.0.0.1"), 6, 80, mark=0x2005), "internal", "10.0.0.1 . tcp . 80 : 0x2005"),
        (
            roles.LOOP_BACK[Family.IPV4],
            SetEntry(packed("10.244.1.1"), 6, 80, packed("10.244.1.1")),
            "loop-back",
            "10.244.1.1 . tcp . 80 . 10.244.1.1",
        ),
        (
            RANGES,
            SetEntry(packed("203.0.113.1"), 6, 443, packed("10.1.0.0"), 16),
            "load-balancer-source-cidr/16",
            "203.0.113.1 . tcp . 443 . 10.1.0.0",
        ),
        (
            roles.LOAD_BALANCER_SOURCE_CIDR[Family.IPV6],
            SetEntry(packed("fd00::1"), 6, 443, packed("2001:db8::"), 32),
            "load-balancer-source-cidr-6/32",
            "fd00::1 . tcp . 443 . 2001:db8::",
        ),
    ],
)
def test_members_come_and_go(made: NftablesFilter, role: Role, member: SetEntry, name: str, text: str) -> None:
    assert made.apply([add(member, role)]) == [0]
    assert witnessed(name) == {text}
    assert made.read()[role] == {member}
    assert made.apply([add(member, role), add(member, role)]) == [0, 0], "it is there already"
    assert made.apply([delete(member, role), delete(member, role)]) == [0, 0]
    assert made.apply([delete(member, role)]) == [0], "it is not there any more"
    assert witnessed(name) == set()
    assert made.repair() == []


def test_every_operation_has_its_own_result_and_the_rest_is_carried_out(made: NftablesFilter) -> None:
    made.apply([add(entry(1)), add(entry(2))])
    operations = [
        *(add(entry(number)) for number in range(10, 700)),
        add(SetEntry(packed("fd00::1"), 6, 80)),
        delete(entry(1)),
        delete(entry(9999)),
        add(entry(3), Role("somebody else's", Family.IPV4)),
        add(entry(2)),
    ]
    assert [code for code in made.apply(operations) if code] == [EINVAL, ENOENT]
    assert len(witnessed("cluster-ip")) == 691
    assert made.read()[CLUSTER_IP] == {entry(2), *(entry(number) for number in range(10, 700))}


def test_of_several_operations_on_a_member_the_last_decides(made: NftablesFilter) -> None:
    one, other = entry(1), entry(2)
    assert made.apply([add(one), delete(one), delete(other), add(other)]) == [0, 0, 0, 0]
    assert made.read()[CLUSTER_IP] == {other}


@pytest.mark.parametrize("operations", ["the new one", "both"])
def test_another_mark_takes_the_place_of_the_old_one_in_one_transaction(made: NftablesFilter, operations: str) -> None:
    old, new, third = (entry(1)._replace(mark=mark) for mark in (0x2005, 0x2009, 0x200D))
    made.apply([add(old, INTERNAL)])
    before = generation()
    wanted = [add(new, INTERNAL)] if operations == "the new one" else [delete(old, INTERNAL), add(new, INTERNAL)]
    assert made.apply(wanted) == [0] * len(wanted)
    assert witnessed("internal") == {"10.96.0.1 . tcp . 80 : 0x2009"}
    assert generation() == before + 1
    assert made.apply([delete(new, INTERNAL), add(third, INTERNAL), add(entry(2), CLUSTER_IP)]) == [0, 0, 0]
    assert made.read()[INTERNAL] == {third}


def test_source_ranges_change_in_one_transaction(made: NftablesFilter) -> None:
    def ranged(text: str) -> SetEntry:
        network = ip_network(text)
        return SetEntry(packed("203.0.113.1"), 6, 443, network.network_address.packed, network.prefixlen)

    first = {ranged("10.0.0.0/8"), ranged("10.1.0.0/16"), ranged("10.1.2.0/24"), ranged("192.0.2.1/32")}
    assert not any(made.apply([add(one, RANGES) for one in first]))
    assert made.read()[RANGES] == first, "one inside another is as good as any"
    before = generation()
    assert made.apply([delete(ranged("10.0.0.0/8"), RANGES), add(ranged("10.2.0.0/16"), RANGES)]) == [0, 0]
    assert generation() == before + 1
    assert made.read()[RANGES] == (first | {ranged("10.2.0.0/16")}) - {ranged("10.0.0.0/8")}
    # The next agent finds the sets for the lengths that there are, and writes nothing.
    with closing(open_nftables(SETTINGS)) as second:
        assert (second.ensure(), second.write(), second.writes()) == ([], [], 0)
        assert second.read()[RANGES] == made.read()[RANGES]


def test_many_members_are_read_whole_while_the_kernel_makes_room(made: NftablesFilter) -> None:
    members = {entry(number) for number in range(20_000)}
    assert not any(made.apply([add(member) for member in members]))
    for _ in range(3):
        assert made.read()[CLUSTER_IP] == members


def test_a_missing_set_is_named(made: NftablesFilter) -> None:
    nft("delete table inet ipvs-proxy")
    assert made.apply([add(entry(1)), delete(entry(2))]) == [ENOENT, 0]
    assert made.describe(ENOENT) == "No such file or directory"
    assert set(made.missing()) >= {"cluster-ip", "cluster-ip-6", "internal"}
    assert "table" not in run("nft", "list", "tables"), "nothing is made by the way"


DAMAGE = {
    "nftables.service is restarted": ("flush ruleset", "the table inet ipvs-proxy is missing"),
    "the table is deleted": ("delete table inet ipvs-proxy", "the table inet ipvs-proxy is missing"),
    "the table is flushed": (
        "flush table inet ipvs-proxy",
        "chain services was changed: 11 missing (ip saddr 127.0.0.0/8 return)",
    ),
    "a chain is flushed": (
        "flush chain inet ipvs-proxy firewall",
        "chain firewall was changed: 4 missing (ip daddr . meta l4proto . th dport @load-balancer-fw "
        "jump source-ranges)",
    ),
    "a rule is added": (
        "insert rule inet ipvs-proxy firewall-6 drop",
        "chain firewall-6 was changed: 1 foreign (drop)",
    ),
    "a chain is added": (
        "add chain inet ipvs-proxy other { type filter hook input priority 0; policy drop; }",
        "chain other is not ours",
    ),
    "a policy is changed": (
        "chain inet ipvs-proxy filter-input { policy drop; }",
        "chain filter-input was changed: 1 missing (type filter hook input priority -10; policy accept;), "
        "1 foreign (type filter hook input priority -10; policy drop;)",
    ),
    "a set is deleted": ("delete set inet ipvs-proxy leaving", "set leaving is missing"),
    "a set is another": (
        "delete set inet ipvs-proxy leaving; add set inet ipvs-proxy leaving { type ipv4_addr; }",
        "set leaving was changed: 2 missing (typeof ip daddr . meta l4proto . th dport), 1 foreign (type ipv4_addr)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_drift_is_found_and_repaired_in_one_transaction(made: NftablesFilter, damage: str) -> None:
    commands, finding = DAMAGE[damage]
    nft("table inet mine { chain in { type filter hook input priority 0; ct state established accept; }; }")
    made.apply([add(entry(1))])
    mine = run("nft", "list", "table", "inet", "mine")
    nft(commands)
    assert finding in made.drift()
    before, writes = generation(), made.writes()
    assert finding in made.repair()
    assert (generation(), made.writes()) == (before + 1, writes + 1)
    assert (made.drift(), made.repair(), made.ensure()) == ([], [], [])
    if commands != "flush ruleset":
        assert run("nft", "list", "table", "inet", "mine") == mine
    if "table" not in finding:
        assert made.read()[CLUSTER_IP] == {entry(1)}, "a set that was as it should be has its members"


def test_chains_of_others_that_decide_before_ours_are_told_of_once_and_stay(made: NftablesFilter) -> None:
    theirs = "table ip mine { chain in { type filter hook input priority filter; policy drop; }; }"
    with capture_logs() as logs:
        nft(theirs)
        assert made.repair() == []
        nft("add table ip other")
        assert made.repair() == []
    assert [entry for entry in logs if entry["event"] == "chains_before_ours"] == [
        {
            "event": "chains_before_ours",
            "log_level": "info",
            "found": ["table ip mine: chain in (filter hook input priority 0, policy drop)"],
            "count": 1,
        }
    ]
    assert "policy drop" in run("nft", "list", "table", "ip", "mine")


def test_there_is_nothing_to_read_as_long_as_only_we_write(
    made: NftablesFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    read_tables = program.read_tables

    def counted() -> str:
        nonlocal reads
        reads += 1
        return read_tables()

    monkeypatch.setattr(program, "read_tables", counted)
    for number in range(3):
        made.apply([add(entry(number)), add(entry(99)), delete(entry(77))])
        assert made.repair() == []
    assert reads == 0
    nft("add table ip somebody")
    assert [made.repair(), made.repair(), reads] == [[], [], 1]
    # Between two of our own.
    made.apply([add(entry(4))])
    nft("insert rule inet ipvs-proxy firewall drop")
    made.apply([add(entry(5))])
    assert made.repair() == ["chain firewall was changed: 1 foreign (drop)"]


def test_members_are_as_they_were_read_as_long_as_only_we_write(made: NftablesFilter) -> None:
    assert made.read_changed().keys() == made.read().keys(), "nothing has been read yet"
    made.apply([add(entry(1)), delete(entry(2))])
    made.apply([add(SetEntry(packed("203.0.113.1"), 6, 80, packed("10.0.0.0"), 8), RANGES)])
    assert made.read_changed(), "a set for another length was made by nft"
    made.apply([add(entry(3))])
    assert made.read_changed() == {}
    nft("add element inet ipvs-proxy cluster-ip { 10.96.9.9 . tcp . 80 }")
    made.apply([add(entry(4))])
    assert SetEntry(packed("10.96.9.9"), 6, 80) in made.read_changed()[CLUSTER_IP]
    assert made.read_changed() == {}
    nft("delete table inet ipvs-proxy")
    assert set(made.read_changed().values()) == {None}, "each set is missing"


def test_what_is_ours_is_taken_away_and_nothing_else(made: NftablesFilter) -> None:
    nft("add table inet mine; add table ip ipvs-proxy; add table ip kube-proxy")
    made.apply([add(entry(1))])

    def removed(*, dry_run: bool = False, kube_proxy: bool = False, with_sets: bool = True) -> Cleaning:
        cleaning = Cleaning([], [])
        with closing(NftablesTraces(cleaning)) as traces:
            assert traces.read().get(CLUSTER_IP, {entry(1)}) == {entry(1)}
            traces.remove(cleaning, kube_proxy=kube_proxy, with_sets=with_sets, dry_run=dry_run)
        return cleaning

    assert removed(dry_run=True) == (["the nftables table inet ipvs-proxy"], [])
    assert made.drift() == []
    ((text,), problems) = removed(with_sets=False)
    assert (text.partition(" ")[2], problems) == ("chains of the nftables table inet ipvs-proxy", [])
    assert "chain" not in run("nft", "list", "table", "inet", "ipvs-proxy")
    assert removed() == (["the nftables table inet ipvs-proxy"], [])
    assert removed() == ([], [])
    tables = ["table inet mine", "table ip ipvs-proxy", "table ip kube-proxy"]
    assert sorted(run("nft", "list", "tables").splitlines()) == tables
    assert removed(kube_proxy=True) == (["the nftables table kube-proxy of IPv4"], [])
    assert sorted(run("nft", "list", "tables").splitlines()) == tables[:-1]
