"""Sets against a real kernel; ``ipset`` is the witness."""

from __future__ import annotations

import socket as sockets
from contextlib import closing
from errno import EINVAL, ENOENT

import pytest

from ipvs_proxy.kernel.filter.ipset.names import SetDefinition, SetType, definitions
from ipvs_proxy.kernel.filter.ipset.table import GROWING, Sets, describe_error
from ipvs_proxy.netlink.errors import Unusable
from ipvs_proxy.plan.tables import Family, Protocol, Role, SetEntry, SetEntryOperation, Verb
from tests.support.namespaces import fresh_namespace, missing_piece, run

pytestmark = pytest.mark.skipif(missing_piece() is not None, reason=str(missing_piece()))

FULL = 4352
WRONG_FAMILY = 4106

ALL = definitions()


def made(name: str, kind: SetType = SetType.HASH_IP_PORT, family: Family = Family.IPV4, **more: bool) -> SetDefinition:
    return SetDefinition(Role(name, family), name, kind, "", **more)


OTHER = made("KUBE-EXTERNAL-IP")
ONE = made("KUBE-CLUSTER-IP")


def packed(text: str) -> bytes:
    return sockets.inet_pton(sockets.AF_INET6 if ":" in text else sockets.AF_INET, text)


def entry(number: int) -> SetEntry:
    return SetEntry(bytes((10, 96, number // 256, number % 256)), Protocol.TCP, 80)


def add(member: SetEntry, to: SetDefinition = ONE) -> SetEntryOperation:
    return SetEntryOperation(Verb.ADD, to.role, member)


def delete(member: SetEntry, to: SetDefinition = ONE) -> SetEntryOperation:
    return SetEntryOperation(Verb.DELETE, to.role, member)


def witnessed(name: str) -> set[str]:
    """Return the members of a set as ``ipset save`` prints them."""
    lines = run("ipset", "save", name).splitlines()
    return {line.split(maxsplit=2)[2] for line in lines if line.startswith("add ")}


@pytest.fixture(autouse=True)
def namespace():
    with fresh_namespace():
        yield


@pytest.fixture
def sets():
    with closing(Sets([ONE])) as opened:
        opened.ensure()
        yield opened


def test_all_sets_are_made_with_kube_proxys_parameters():
    with closing(Sets(ALL)) as sets:
        assert sets.ensure() == [definition.name for definition in ALL]
        assert sets.ensure() == []
        assert sets.traffic.writes == len(ALL)
        assert sets.read() == {definition.role: set() for definition in ALL}
    witness = {line.split()[1]: line.split(maxsplit=2)[2].strip() for line in run("ipset", "save").splitlines()}
    assert witness.keys() == {definition.name for definition in ALL}
    for definition in ALL:
        if definition.type is SetType.BITMAP_PORT:
            assert witness[definition.name] == "bitmap:port range 0-65535"
        else:
            family = "inet" if definition.family is Family.IPV4 else "inet6"
            marks = " skbinfo" * definition.marks
            parameters = f"family {family} hashsize 1024 maxelem 65536{marks}"
            assert witness[definition.name] == f"{definition.type.value} {parameters}"


@pytest.mark.parametrize("definition", ALL, ids=lambda definition: definition.name)
def test_what_kube_proxy_made_is_taken_over(definition):
    family = [] if definition.type is SetType.BITMAP_PORT else ["family", definition.family.label.lower()]
    parameters = {"ipv4": "inet", "ipv6": "inet6"}
    command = ["ipset", "create", definition.name, definition.type.value, *[parameters.get(p, p) for p in family]]
    run(*command, *(["range", "0-65535"] if not family else ["hashsize", "4096", "maxelem", "100000"]))
    with closing(Sets([definition])) as sets:
        assert sets.ensure() == []
        assert sets.traffic.writes == 0
        assert sets.read() == {definition.role: set()}


@pytest.mark.parametrize(
    ("kind", "family", "member", "text"),
    [
        (SetType.HASH_IP, Family.IPV4, SetEntry(packed("10.96.0.1")), "10.96.0.1"),
        (SetType.HASH_IP, Family.IPV6, SetEntry(packed("fd00::1")), "fd00::1"),
        (SetType.HASH_IP_PORT, Family.IPV4, SetEntry(packed("10.96.0.1"), Protocol.UDP, 53), "10.96.0.1,udp:53"),
        (SetType.HASH_IP_PORT, Family.IPV6, SetEntry(packed("fd00::1"), Protocol.SCTP, 9999), "fd00::1,sctp:9999"),
        (
            SetType.HASH_IP_PORT_IP,
            Family.IPV4,
            SetEntry(packed("10.0.0.1"), Protocol.TCP, 8080, packed("10.0.0.1")),
            "10.0.0.1,tcp:8080,10.0.0.1",
        ),
        (
            SetType.HASH_IP_PORT_IP,
            Family.IPV6,
            SetEntry(packed("fd00::1"), Protocol.TCP, 8080, packed("fd00::1")),
            "fd00::1,tcp:8080,fd00::1",
        ),
        (
            SetType.HASH_IP_PORT_NET,
            Family.IPV4,
            SetEntry(packed("1.2.3.4"), Protocol.TCP, 443, packed("10.0.0.0"), 8),
            "1.2.3.4,tcp:443,10.0.0.0/8",
        ),
        (
            SetType.HASH_IP_PORT_NET,
            Family.IPV4,
            SetEntry(packed("1.2.3.4"), Protocol.TCP, 443, packed("10.0.0.1"), 32),
            "1.2.3.4,tcp:443,10.0.0.1",
        ),
        (
            SetType.HASH_IP_PORT_NET,
            Family.IPV6,
            SetEntry(packed("fd00::1"), Protocol.TCP, 443, packed("2001:db8::1"), 128),
            "fd00::1,tcp:443,2001:db8::1",
        ),
        (
            SetType.HASH_IP_PORT_NET,
            Family.IPV6,
            SetEntry(packed("fd00::1"), Protocol.TCP, 443, packed("2001:db8::"), 32),
            "fd00::1,tcp:443,2001:db8::/32",
        ),
        (SetType.BITMAP_PORT, Family.IPV4, SetEntry(port=30080), "30080"),
        (SetType.BITMAP_PORT, Family.IPV6, SetEntry(port=65535), "65535"),
    ],
)
def test_a_member_of_each_type_there_and_back(kind, family, member, text):
    definition = made("set", kind, family)
    with closing(Sets([definition])) as sets:
        sets.ensure()
        assert sets.apply([add(member, definition)]) == [0]
        assert witnessed("set") == {text}
        assert sets.read() == {definition.role: {member}}
        assert sets.apply([add(member, definition)]) == [0]
        assert sets.apply([delete(member, definition)]) == [0]
        assert witnessed("set") == set()
        assert sets.apply([delete(member, definition)]) == [0]
        run("ipset", "add", "set", text)
        assert sets.read() == {definition.role: {member}}


def test_five_hundred_failures_among_two_thousand_are_each_attributed(sets):
    wrong = SetEntry(packed("fd00::1"), Protocol.TCP, 80)
    operations = [add(wrong._replace(port=number) if number % 4 == 3 else entry(number)) for number in range(2000)]
    expected = [WRONG_FAMILY if number % 4 == 3 else 0 for number in range(2000)]
    results = sets.apply(operations)
    assert {result for result in results if result} <= {WRONG_FAMILY, 4097, 4109}
    assert [bool(result) for result in results] == [bool(result) for result in expected]
    assert len(witnessed(ONE.name)) == len(sets.read()[ONE.role]) == 1500


def test_the_order_of_operations_on_one_member_is_kept(sets):
    first, second = entry(1), entry(2)
    operations = [add(first), delete(first), add(first), add(second), delete(second)]
    assert sets.apply(operations) == [0] * 5
    assert witnessed(ONE.name) == {"10.96.0.1,tcp:80"}


def test_a_full_set_is_reported_member_by_member():
    with closing(Sets([ONE], hash_size=64, maximum_members=10, largest=10)) as sets:
        sets.ensure()
        assert "hashsize 64 maxelem 10" in run("ipset", "save")
        results = sets.apply([add(entry(number)) for number in range(12)])
        assert results == [0] * 10 + [FULL] * 2
        assert "maxelem" in describe_error(FULL)
        # What is in it already, and deleting, go on working.
        assert sets.apply([add(entry(3)), delete(entry(0))]) == [0, 0]
        assert sets.apply([add(entry(11))]) == [0]


def test_a_full_set_gets_room_and_rules_go_on_with_it():
    """kube-proxy leaves out what does not fit, without a word."""
    with closing(Sets([ONE, OTHER], maximum_members=10)) as sets:
        sets.ensure()
        refer = ("iptables", "-A", "INPUT", "-m", "set", "--match-set", ONE.name, "dst,dst", "-j", "DROP")
        run(*refer)
        members = [entry(number) for number in range(1000)]
        operations = [*map(add, members[:600]), add(entry(1), OTHER), delete(entry(3)), *map(add, members[600:])]
        assert sets.apply(operations) == [0] * len(operations)
        assert sets.read() == {ONE.role: set(members) - {entry(3)}, OTHER.role: {entry(1)}}
        assert len(witnessed(ONE.name)) == 999
        assert f"create {ONE.name} hash:ip,port family inet hashsize 1024 maxelem 1024" in run("ipset", "save")
        assert "maxelem 10" in run("ipset", "save", OTHER.name), "it was not full"
        assert "References: 1" in run("ipset", "list", ONE.name), "the rule refers to another set"
        assert run("ipset", "list", "-name").split() == [ONE.name, OTHER.name]
        # The next hundred find room and the next thousand make it once more: twice as much each time.
        assert set(sets.apply([add(entry(number)) for number in range(1000, 1020)])) == {0}
        assert "maxelem 1024" in run("ipset", "save", ONE.name)
        assert set(sets.apply([add(entry(number)) for number in range(1020, 1030)])) == {0}
        assert "maxelem 2048" in run("ipset", "save", ONE.name)


@pytest.mark.parametrize(
    ("kind", "options", "members"),
    [
        (SetType.HASH_IP, (), [SetEntry(packed(f"fd00::{number:x}")) for number in range(1, 40)]),
        (
            SetType.HASH_IP_PORT_NET,
            (),
            [SetEntry(packed("fd00::1"), 6, 80, packed(f"fd01:{number:x}::"), 32) for number in range(1, 40)],
        ),
        (
            SetType.HASH_IP_PORT,
            ("skbinfo",),
            [SetEntry(packed("fd00::1"), 6, port, mark=port) for port in range(1, 40)],
        ),
    ],
    ids=["hash:ip", "hash:ip,port,net", "marks"],
)
def test_a_set_that_kube_proxy_made_grows_with_all_that_its_members_have(kind, options, members):
    definition = made("KUBE-6-SET", kind, Family.IPV6, marks=bool(options))
    run("ipset", "create", definition.name, kind.value, "family", "inet6", "maxelem", "20", *options)
    run("ipset", "create", GROWING, "hash:ip")  # left by an agent that was killed
    with closing(Sets([definition])) as sets:
        assert sets.ensure() == []
        assert set(sets.apply([add(member, definition) for member in members])) == {0}
        assert sets.read() == {definition.role: set(members)}
        assert sets.present() == [definition.name]


def test_a_set_that_cannot_grow_is_reported_as_full_and_the_others_go_on():
    with closing(Sets([ONE, OTHER], maximum_members=10)) as sets:
        sets.ensure()
        # Somebody has a set of another kind under the name, and a rule that refers to it.
        run("ipset", "create", GROWING, "hash:ip")
        run("iptables", "-A", "INPUT", "-m", "set", "--match-set", GROWING, "dst", "-j", "DROP")
        results = sets.apply([*(add(entry(number)) for number in range(12)), add(entry(1), OTHER)])
        assert results == [0] * 10 + [FULL] * 2 + [0]
        run("iptables", "-F")


def test_seventy_thousand_members_are_as_many_as_somebody_wants():
    with closing(Sets([ONE])) as sets:
        sets.ensure()
        members = [
            SetEntry(bytes((10, 96 + number // 65536, number // 256 % 256, number % 256)), 6, 80)
            for number in range(70_000)
        ]
        calls = sets.traffic.system_calls
        assert set(sets.apply([add(member) for member in members])) == {0}
        assert sets.traffic.system_calls - calls < 1500
        assert sets.read() == {ONE.role: set(members)}
        header = run("ipset", "list", "-terse", ONE.name)
        assert "maxelem 131072" in header
        assert "Number of entries: 70000" in header


def test_a_missing_set_fails_alone_and_is_absent_from_what_is_read():
    other = made("other")
    with closing(Sets([ONE, other])) as sets:
        sets.ensure()
        run("ipset", "destroy", "other")
        operations = [add(entry(1)), add(entry(1), other), add(entry(2), other), add(entry(2))]
        assert sets.apply(operations) == [0, ENOENT, ENOENT, 0]
        assert sets.read() == {ONE.role: {entry(1), entry(2)}}
        assert sets.ensure() == ["other"]
        assert sets.apply(operations) == [0, 0, 0, 0]


def test_garbage_and_foreign_sets_fail_alone(sets):
    operations = [
        add(entry(1)),
        add(SetEntry(b"123", Protocol.TCP, 80)),
        add(SetEntry(packed("10.0.0.1"), Protocol.TCP, 65536)),
        add(entry(1), made("not-ours")),
        add(entry(2)),
    ]
    assert sets.apply(operations) == [0, EINVAL, EINVAL, ENOENT, 0]
    assert sets.read() == {ONE.role: {entry(1), entry(2)}}


def test_sets_that_do_not_fit_are_each_named_and_the_others_are_made():
    run("ipset", "create", "KUBE-CLUSTER-IP", "hash:ip,port", "family", "inet6")
    run("ipset", "create", "KUBE-LOOP-BACK", "bitmap:port", "range", "0-1023")
    with closing(Sets(definitions([Family.IPV4]))) as sets:
        with pytest.raises(Unusable) as refusal:
            sets.ensure()
        assert "KUBE-CLUSTER-IP is a hash:ip,port set of family 10, not hash:ip,port of IPv4" in str(refusal.value)
        assert "KUBE-LOOP-BACK is a bitmap:port set of family 0, not hash:ip,port,ip of IPv4" in str(refusal.value)
        assert len(sets.read()) == len(definitions([Family.IPV4])) - 2
    assert len(run("ipset", "list", "-name").split()) == len(definitions([Family.IPV4]))


def test_what_is_present_is_told_whatever_its_type():
    with closing(Sets(definitions([Family.IPV4]))) as sets:
        assert sets.present() == []
        run("ipset", "create", "KUBE-CLUSTER-IP", "hash:net")
        run("ipset", "create", "KUBE-IPVS-IPS", "hash:ip")
        run("ipset", "create", "MINE", "hash:ip")
        assert sorted(sets.present()) == ["KUBE-CLUSTER-IP", "KUBE-IPVS-IPS"]


def test_destroy(sets):
    run("ipset", "create", "list", "list:set")
    run("ipset", "add", "list", ONE.name)
    assert [describe_error(code) for code in sets.destroy([ONE.name, "missing"])] == [
        "the set is in use: a rule or another set refers to it",
        "Success",
    ]
    run("ipset", "destroy", "list")
    assert sets.destroy([ONE.name]) == [0]
    assert run("ipset", "list", "-name") == ""


def test_a_large_set_is_written_and_read():
    with closing(Sets([ONE])) as sets:
        sets.ensure()
        members = [entry(number) for number in range(10_000)]
        calls = sets.traffic.system_calls
        assert set(sets.apply([add(member) for member in members])) == {0}
        assert sets.traffic.system_calls - calls < 50
        assert sets.read() == {ONE.role: set(members)}


@pytest.mark.parametrize("name", ["", "a" * 32])
def test_a_name_that_no_set_can_have_is_refused(name):
    with pytest.raises(ValueError, match="no set's name"):
        Sets([ONE._replace(name=name)])


def test_reading_writes_nothing(sets):
    writes = sets.traffic.writes
    sets.ensure()
    sets.read()
    assert sets.traffic.writes == writes == 1


def test_only_sets_that_may_have_changed_are_read_again():
    with closing(Sets([ONE, OTHER])) as sets:
        sets.ensure()
        assert not any(sets.apply([add(entry(number)) for number in range(600)]))
        assert not any(sets.apply([add(entry(1), OTHER)]))
        assert sets.read_changed() == sets.read(), "nothing is certain at first"
        assert sets.read_changed() == {}
        run("ipset", "del", OTHER.name, "10.96.0.1,tcp:80")
        assert sets.read_changed() == {OTHER.role: set()}
        run("ipset", "add", OTHER.name, "10.96.0.2,tcp:80")
        run("ipset", "del", OTHER.name, "10.96.0.2,tcp:80")
        run("ipset", "add", ONE.name, "10.99.0.1,tcp:80")
        run("ipset", "del", ONE.name, "10.96.0.7,tcp:80")
        one = {entry(number) for number in range(600) if number != 7} | {
            entry(0)._replace(address=bytes((10, 99, 0, 1)))
        }
        assert sets.read_changed() == {ONE.role: one}, "as many members, but others"


def test_what_was_applied_makes_a_set_uncertain_also_where_somebody_takes_it_back(sets):
    assert sets.apply([add(entry(1))]) == [0]
    before = sets.read()
    assert sets.apply([add(entry(2))]) == [0]
    run("ipset", "del", ONE.name, "10.96.0.2,tcp:80")
    assert sets.read_changed() == before, "the kernel's answer is the one of before, what is known is not"
    assert sets.read_changed() == {}


def test_a_read_that_fails_leaves_certain_what_was_so_before(sets, monkeypatch):
    with closing(Sets([ONE, OTHER])) as both:
        both.ensure()
        both.read()
        assert both.apply([add(entry(1)), add(entry(1), OTHER)]) == [0, 0]
        header = both._header
        monkeypatch.setattr(both, "_header", lambda name: header(name) if name == ONE.name else failing())
        with pytest.raises(OSError, match="a fault"):
            both.read_changed()
        monkeypatch.undo()
        assert both.read_changed() == {ONE.role: {entry(1)}, OTHER.role: {entry(1)}}, (
            "nothing of it was given to anybody"
        )


def failing() -> None:
    raise OSError("a fault")


def test_a_set_that_is_missing_or_something_else_is_told_each_time(sets):
    assert sets.read_changed() == {ONE.role: set()}
    run("ipset", "destroy", ONE.name)
    assert sets.read_changed() == {ONE.role: None}
    run("ipset", "create", ONE.name, "hash:ip")
    assert sets.read_changed() == {ONE.role: None}
