"""Facts of the host, read from files as a kernel and its services write them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ipvs_proxy.kernel.filter.iptables.saved import SavedTable, parse
from ipvs_proxy.kernel.links.addresses import LINK
from ipvs_proxy.node import host_facts


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_facts_are_read_and_what_is_not_there_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_facts, "_twice", dict)
    assert host_facts.read_host_facts(None, (), root=tmp_path) == host_facts.HostFacts()
    write(
        tmp_path,
        proc__sys__net__ipv4__vs__run_estimation="1\n",
        proc__sys__net__ipv4__ip_no_pmtu_disc="0\n",
        proc__sys__net__ipv4__ip_local_reserved_ports="1-5,9\n",
        proc__net__ip_vs_conn="Pro FromIP\nTCP 1\nUDP 2\n",
        sys__class__net__cbr0__bridge__bridge_id="8000.0\n",
        proc__net__ip_vs="IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port\n",
        proc__sys__net__netfilter__nf_conntrack_count="7\n",
        proc__sys__net__netfilter__nf_conntrack_max="262144\n",
        proc__sys__net__ipv4__conf__all__arp_ignore="0\n",
        proc__sys__net__ipv4__ip_local_port_range="32768\t60999\n",
        proc__12__comm="speaker\n",
        proc__13__comm="firewalld\n",
    )
    assert host_facts.read_host_facts(None, (), root=tmp_path) == host_facts.HostFacts(
        run_estimation=1,
        connection_buckets=4096,
        connections=2,
        no_path_mtu=0,
        bridges=True,
        reserved_ports=[(1, 5), (9, 9)],
        conntrack_entries=7,
        conntrack_room=262144,
        arp_ignore=0,
        local_ports=(32768, 60999),
        announcers=["speaker"],
        firewalld=True,
    )


def test_kernel_that_tells_how_its_table_of_connections_is_needs_no_counting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_facts, "_twice", dict)
    status = "Conns:\t{}\nConn buckets:\t{} ({} bits, lfactor {})\nServices:\t2\n"
    write(
        tmp_path,
        proc__net__ip_vs="IP Virtual Server version 1.2.1 (size=256)\n",
        proc__net__ip_vs_status=status.format(70, 1024, 10, -4),
        proc__sys__net__ipv4__vs__conn_lfactor="-4\n",
    )
    found = host_facts.read_host_facts(None, (), root=tmp_path)
    assert (found.connections, found.connection_buckets, found.load_factor) == (70, 1024, -4)
    write(tmp_path, proc__net__ip_vs_status=status.format(0, 0, 0, 0))
    assert host_facts.read_host_facts(None, (), root=tmp_path).connection_buckets is None, "there is no table yet"


@pytest.mark.parametrize(
    ("files", "manager"),
    [
        ({}, ""),
        ({"run__NetworkManager__devices__9": "[device]\nmanaged=true\n"}, "NetworkManager"),
        ({"run__NetworkManager__devices__9": "[device]\nmanaged=false\n"}, ""),
        ({"run__NetworkManager__devices__8": "[device]\nmanaged=true\n"}, ""),
        ({"run__systemd__netif__links__9": "# private\nADMIN_STATE=configured\n"}, "systemd-networkd"),
        ({"run__systemd__netif__links__9": "ADMIN_STATE=unmanaged\n"}, ""),
    ],
)
def test_who_manages_our_link_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], manager: str
) -> None:
    monkeypatch.setattr(host_facts, "_twice", dict)
    monkeypatch.setattr(socket, "if_nametoindex", {LINK: 9}.__getitem__)
    write(tmp_path, **files)
    assert host_facts.read_host_facts(None, (), root=tmp_path).link_manager == manager


class Saved:
    """What stands in for iptables: its saved tables."""

    def save(self, _: object) -> str:
        return "*nat\n:FORWARD ACCEPT [0:0]\nCOMMIT\n*filter\n:INPUT ACCEPT [1:2]\n:FORWARD DROP [3:4]\nCOMMIT\n"


def table(*rules: str) -> SavedTable:
    return parse("\n".join(["*filter", *rules]))["filter"]


def test_policies_are_those_of_the_filter_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_facts, "_twice", dict)
    found = host_facts.read_host_facts(Saved(), [host_facts.Family.IPV4], root=tmp_path)  # type: ignore[arg-type]
    assert found.policies == {("IPv4", "INPUT"): "ACCEPT", ("IPv4", "FORWARD"): "DROP"}


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT", True),
        ("-A INPUT -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT", True),
        ("-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", False),
        ("-A INPUT -i lo -j ACCEPT", False),
        ("-A INPUT -p icmp -j ACCEPT", False),
        ("-A INPUT -d 169.254.20.10/32 -p udp -m udp --dport 53 -j ACCEPT", False),
        ("-A INPUT -d fd00::a/128 -p udp -m udp --dport 53 -j ACCEPT", False),
        ("-A INPUT -d 169.254.0.0/16 -p udp -m udp --dport 53 -j ACCEPT", True),
        ("-A INPUT ! -d 169.254.20.10/32 -p udp -m udp --dport 53 -j ACCEPT", True),
        ("-A INPUT -p tcp -m tcp --dport 22 -j DROP", False),
        ("-A FORWARD -p tcp -m tcp --dport 22 -j ACCEPT", False),
    ],
)
def test_rule_that_opens_ports_in_front_of_ours_is_told(rule: str, told: bool) -> None:
    ours = '-A INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER'
    assert host_facts.accepted_ahead(table(rule, ours)) == ([rule] if told else [])
    assert host_facts.accepted_ahead(table(ours, rule)) == []
    assert host_facts.accepted_ahead(table(rule)) == []
