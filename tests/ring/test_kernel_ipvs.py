"""IPVS against a real kernel; ipvsadm is the witness."""

from __future__ import annotations

import socket as sockets
from contextlib import closing
from errno import EEXIST, EINVAL, ENOENT, ESRCH

import pytest

from ipvs_proxy.kernel.ipvs.records import Connections, Timeouts
from ipvs_proxy.kernel.ipvs.table import Ipvs
from ipvs_proxy.netlink import socket as netlink_socket
from ipvs_proxy.netlink.errors import UNKNOWN, Unusable
from ipvs_proxy.plan.tables import (
    ACTIVE,
    DRAINING,
    ONE_PACKET,
    PERSISTENT,
    SCHED1,
    SCHED2,
    Protocol,
    RealServer,
    RealServerKey,
    RealServerOperation,
    Verb,
    VirtualServer,
    VirtualServerKey,
    VirtualServerOperation,
)
from tests.support.namespaces import fresh_namespace, missing_piece, run

pytestmark = pytest.mark.skipif(missing_piece() is not None, reason=str(missing_piece()))


def packed(text: str) -> bytes:
    return sockets.inet_pton(sockets.AF_INET6 if ":" in text else sockets.AF_INET, text)


def virtual(address: str, port: int = 80, protocol: int = Protocol.TCP) -> VirtualServerKey:
    return VirtualServerKey(packed(address), protocol, port)


def real(address: str, port: int = 8080) -> RealServerKey:
    return RealServerKey(packed(address), port)


def add(key: VirtualServerKey, scheduler: str = "rr", **settings) -> VirtualServerOperation:
    return VirtualServerOperation(Verb.ADD, VirtualServer(key, scheduler, **settings))


def witnessed() -> list[str]:
    return sorted(line.strip() for line in run("ipvsadm", "-Sn").splitlines())


@pytest.fixture(autouse=True)
def namespace():
    with fresh_namespace():
        yield


@pytest.fixture
def ipvs():
    with closing(Ipvs()) as made:
        yield made


@pytest.mark.parametrize(
    ("vip", "pod", "protocol", "service", "endpoint"),
    [
        ("10.96.0.1", "10.0.0.1", Protocol.TCP, "-t 10.96.0.1:80", "10.0.0.1:8080"),
        ("10.96.0.1", "10.0.0.1", Protocol.UDP, "-u 10.96.0.1:80", "10.0.0.1:8080"),
        ("10.96.0.1", "10.0.0.1", Protocol.SCTP, "--sctp-service 10.96.0.1:80", "10.0.0.1:8080"),
        ("fd00::1", "fd01::1", Protocol.TCP, "-t [fd00::1]:80", "[fd01::1]:8080"),
        ("fd00::1", "fd01::1", Protocol.UDP, "-u [fd00::1]:80", "[fd01::1]:8080"),
        ("fd00::1", "fd01::1", Protocol.SCTP, "--sctp-service [fd00::1]:80", "[fd01::1]:8080"),
    ],
)
def test_add_set_and_delete_in_both_families_and_all_protocols(ipvs, vip, pod, protocol, service, endpoint):
    key, server = virtual(vip, protocol=protocol), real(pod)
    assert ipvs.apply([add(key), RealServerOperation(Verb.ADD, key, server, ACTIVE)]) == [0, 0]
    assert witnessed() == [f"-A {service} -s rr", f"-a {service} -r {endpoint} -m -w 1"]
    assert ipvs.read().virtual_servers == {key: VirtualServer(key, "rr", real_servers={server: ACTIVE})}

    changed = VirtualServer(key, "lc", flags=PERSISTENT, timeout=300)
    operations = [
        VirtualServerOperation(Verb.SET, changed),
        RealServerOperation(Verb.SET, key, server, DRAINING),
    ]
    assert ipvs.apply(operations) == [0, 0]
    # ipvsadm leaves out -M when it is the whole address
    assert witnessed() == [f"-A {service} -s lc -p 300", f"-a {service} -r {endpoint} -m -w 0"]
    assert ipvs.read_one(key) == VirtualServer(key, "lc", PERSISTENT, 300, None, {server: DRAINING})

    assert ipvs.apply([RealServerOperation(Verb.DELETE, key, server, DRAINING)]) == [0]
    assert witnessed() == [f"-A {service} -s lc -p 300"]
    assert ipvs.apply([VirtualServerOperation(Verb.DELETE, changed)]) == [0]
    assert witnessed() == []
    assert ipvs.read_one(key) is None


def test_settings_survive_the_way_through_the_kernel(ipvs):
    servers = [
        VirtualServer(virtual("10.96.0.1"), "sh", SCHED1 | SCHED2),
        VirtualServer(virtual("10.96.0.2", 53, Protocol.UDP), "rr", ONE_PACKET),
        VirtualServer(virtual("10.96.0.3"), "wrr", PERSISTENT, 10800, 24),
        VirtualServer(virtual("fd00::3"), "wlc", PERSISTENT, 60, 64),
        VirtualServer(
            virtual("10.96.0.4"),
            "lc",
            real_servers={real("10.0.0.1"): RealServer(100, 0, 50, 40), real("10.0.0.2", 80): DRAINING},
        ),
    ]
    for server in servers:
        operations = [VirtualServerOperation(Verb.ADD, server)] + [
            RealServerOperation(Verb.ADD, server.key, key, value) for key, value in server.real_servers.items()
        ]
        assert set(ipvs.apply(operations)) == {0}
    assert ipvs.read().virtual_servers == {server.key: server for server in servers}
    assert "-A -t 10.96.0.3:80 -s wrr -p 10800 -M 255.255.255.0" in witnessed()
    assert "-A -t 10.96.0.1:80 -s sh -b sh-fallback,sh-port" in witnessed()


def test_what_ipvsadm_made_is_read(ipvs):
    run("ipvsadm", "-A", "-t", "192.0.2.1:443", "-s", "wlc", "-p", "100", "-M", "255.255.0.0")
    run("ipvsadm", "-a", "-t", "192.0.2.1:443", "-r", "10.0.0.9:443", "-g", "-w", "7")
    run("ipvsadm", "-A", "-f", "42", "-s", "rr")
    table = ipvs.read()
    key = virtual("192.0.2.1", 443)
    # DSR cannot map ports; forwarding 3 is IP_VS_CONN_F_DROUTE
    assert table.virtual_servers == {
        key: VirtualServer(key, "wlc", PERSISTENT, 100, 16, {real("10.0.0.9", 443): RealServer(7, 3)})
    }
    assert [(foreign.fwmark, foreign.scheduler) for foreign in table.foreign] == [(42, "rr")]
    assert ipvs.read_virtual_servers().virtual_servers.keys() == {key}


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (add(virtual("10.96.0.1")), EEXIST),
        (add(virtual("10.96.0.2"), "nonsense"), ENOENT),
        (add(virtual("10.96.0.2"), "a-name-that-is-too-long"), EINVAL),
        (add(VirtualServerKey(b"123", Protocol.TCP, 80)), EINVAL),
        (add(virtual("10.96.0.2", 65536)), EINVAL),
        (VirtualServerOperation(Verb.DELETE, VirtualServer(virtual("10.96.0.2"), "")), ESRCH),
        (VirtualServerOperation(Verb.SET, VirtualServer(virtual("10.96.0.2"), "rr")), ESRCH),
        (RealServerOperation(Verb.ADD, virtual("10.96.0.1"), real("10.0.0.1"), ACTIVE), EEXIST),
        (RealServerOperation(Verb.ADD, virtual("10.96.0.2"), real("10.0.0.1"), ACTIVE), ESRCH),
        (RealServerOperation(Verb.SET, virtual("10.96.0.1"), real("10.0.0.2"), ACTIVE), ENOENT),
        (RealServerOperation(Verb.DELETE, virtual("10.96.0.1"), real("10.0.0.2"), ACTIVE), ENOENT),
        (RealServerOperation(Verb.ADD, virtual("10.96.0.1"), real("10.0.0.2"), RealServer(-1)), EINVAL),
        (RealServerOperation(Verb.ADD, virtual("10.96.0.1"), real("10.0.0.2", -1), ACTIVE), EINVAL),
        (RealServerOperation(Verb.ADD, virtual("10.96.0.1"), real("fd01::1"), ACTIVE), EINVAL),
    ],
)
def test_a_failure_is_reported_and_its_neighbours_succeed(ipvs, operation, expected):
    key = virtual("10.96.0.1")
    assert ipvs.apply([add(key), RealServerOperation(Verb.ADD, key, real("10.0.0.1"), ACTIVE)]) == [0, 0]
    before, after = add(virtual("10.97.0.1")), add(virtual("10.97.0.2"))
    assert ipvs.apply([before, operation, after]) == [0, expected, 0]
    assert ipvs.read().virtual_servers.keys() == {key, before.virtual_server.key, after.virtual_server.key}


def test_five_hundred_failures_among_two_thousand_are_each_attributed(ipvs):
    key = virtual("10.96.0.1")
    assert ipvs.apply([add(key)]) == [0]
    operations, expected = [], []
    for number in range(2000):
        fails = number % 4 == 3
        # every fourth adds its predecessor again
        server = real(f"10.{1 + (number - fails) // 250}.0.{1 + (number - fails) % 250}")
        operations.append(RealServerOperation(Verb.ADD, key, server, ACTIVE))
        expected.append(EEXIST if fails else 0)
    sent = ipvs.traffic.system_calls
    assert ipvs.apply(operations) == expected
    assert ipvs.traffic.system_calls - sent < 600  # one reply a failure, and 8 batches of 256
    assert len(ipvs.read().virtual_servers[key].real_servers) == 1500
    assert len(witnessed()) == 1501


def test_lost_answers_are_unknown_and_do_not_reach_later_requests(ipvs, monkeypatch):
    key = virtual("10.96.0.1")
    assert ipvs.apply([add(key)]) == [0]
    ipvs.close()
    # A receive buffer for a few answers, and batches that produce more.
    monkeypatch.setattr(netlink_socket, "RECEIVE_BUFFER", 4096)
    monkeypatch.setattr(netlink_socket, "REPLY_COST", 1)
    results = ipvs.apply([add(key)] * 100)
    assert len(results) == 100
    assert UNKNOWN in results
    assert set(results) <= {UNKNOWN, EEXIST}
    # Nothing of the overflow is taken for an answer to what follows.
    assert ipvs.apply([add(virtual("10.96.0.2")), add(key), add(virtual("10.96.0.3"))]) == [0, EEXIST, 0]
    assert len(ipvs.read().virtual_servers) == 3


@pytest.mark.parametrize("scheduler", ["rr", "wrr", "lc", "wlc", "sh", "dh", "mh", "sed", "nq"])
def test_the_kernels_schedulers_are_found(ipvs, scheduler):
    ipvs.probe_scheduler(scheduler)
    assert witnessed() == []


@pytest.mark.parametrize("scheduler", ["nonsense", "none", "", "a-name-that-is-too-long"])
def test_an_unknown_scheduler_is_refused(ipvs, scheduler):
    with pytest.raises(Unusable, match=f"no scheduler '{scheduler}'"):
        ipvs.probe_scheduler(scheduler)
    assert witnessed() == []


def test_the_probe_leaves_a_virtual_server_of_its_own_address_alone(ipvs):
    run("ipvsadm", "-A", "-t", "198.51.100.0:20000", "-s", "wlc")
    ipvs.probe_scheduler("rr")
    assert witnessed() == ["-A -t 198.51.100.0:20000 -s wlc"]


def test_connections_are_counted(ipvs):
    key, server = virtual("10.96.0.1"), real("127.0.0.1", 18080)
    run("ip", "address", "add", "10.96.0.1/32", "dev", "lo")
    ipvs.apply([add(key, flags=PERSISTENT, timeout=60), RealServerOperation(Verb.ADD, key, server, ACTIVE)])
    with sockets.create_server(("127.0.0.1", 18080)) as listener:
        assert ipvs.connections(key) == {server: Connections(0, 0, 0)}
        with sockets.create_connection(("10.96.0.1", 80), timeout=5):
            listener.accept()[0].close()
            counts = ipvs.connections(key)[server]
            assert counts.persistent == 1
            assert counts.active + counts.inactive == 1
    assert ipvs.connections(virtual("10.96.0.9")) == {}


def test_timeouts_and_version(ipvs):
    ipvs.set_timeouts(Timeouts(tcp=1000, tcp_fin=0, udp=33))
    assert ipvs.timeouts() == Timeouts(1000, 120, 33)
    assert "Timeout (tcp tcpfin udp): 1000 120 33" in run("ipvsadm", "-l", "--timeout")
    assert ipvs.version().count(".") == 2
    with pytest.raises(OSError, match="setting the timeouts"):
        ipvs.set_timeouts(Timeouts(tcp=0xFFFFFFFF, tcp_fin=0, udp=0))


def test_a_virtual_server_that_comes_while_the_table_is_read_is_not_missed(ipvs, monkeypatch):
    ipvs.apply([add(virtual("10.96.0.1")), add(virtual("10.96.0.2"))])
    read_real_servers = ipvs.read_real_servers
    newcomers = iter(["10.97.0.1", "10.97.0.2"])

    def somebody_interferes(key):
        for address in newcomers:
            run("ipvsadm", "-A", "-t", f"{address}:80", "-s", "rr")
            run("ipvsadm", "-a", "-t", f"{address}:80", "-r", "10.0.0.1:8080", "-m")
            break
        return read_real_servers(key)

    monkeypatch.setattr(ipvs, "read_real_servers", somebody_interferes)
    found = ipvs.read().virtual_servers
    assert found.keys() == {virtual(f"10.{net}.0.{host}") for net in (96, 97) for host in (1, 2)}
    assert found[virtual("10.97.0.2")].real_servers == {real("10.0.0.1"): ACTIVE}


def test_reading_writes_nothing(ipvs):
    ipvs.apply([add(virtual("10.96.0.1"))])
    writes = ipvs.traffic.writes
    ipvs.read()
    ipvs.read_one(virtual("10.96.0.1"))
    ipvs.connections(virtual("10.96.0.1"))
    ipvs.version()
    assert ipvs.traffic.writes == writes == 1


def test_nothing_to_do_sends_nothing(ipvs):
    before = ipvs.traffic.system_calls
    assert ipvs.apply([]) == []
    assert ipvs.traffic.system_calls == before
