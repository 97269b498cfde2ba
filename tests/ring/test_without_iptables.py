"""The second kernel of the ring has what RHEL 10 has by default: neither ipset nor what iptables needs."""

from __future__ import annotations

import os
import socket
from errno import EINVAL
from pathlib import Path
from shutil import which
from struct import pack

import pytest

from ipvs_proxy.kernel.filter.backend import AUTO
from ipvs_proxy.kernel.filter.ipset.table import Sets
from ipvs_proxy.netlink.errors import MissingPiece
from ipvs_proxy.netlink.socket import NETLINK_NETFILTER, NetlinkSocket
from ipvs_proxy.netlink.wire import Request, attribute, text_attribute
from ipvs_proxy.node import requirements
from lab.packet_filter import IPTABLES, NFTABLES

pytestmark = pytest.mark.without_iptables


def test_kernel_has_no_ipset() -> None:
    with pytest.raises(MissingPiece, match="the kernel has no ipset"):
        Sets([])


def test_kernel_has_no_match_of_iptables() -> None:
    # NFNL_MSG_COMPAT_GET of linux/netfilter/nf_tables_compat.h
    payload = pack("=BBH", 2, 0, 0) + text_attribute(1, "comment") + attribute(2, bytes(4)) + attribute(3, bytes(4))
    with NetlinkSocket(NETLINK_NETFILTER) as asked, pytest.raises(OSError, match=os.strerror(EINVAL)):
        asked.ask(Request(11 << 8, payload))


def test_kernel_has_no_table_of_iptables() -> None:
    assert not Path("/proc/net/ip_tables_names").exists()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw, pytest.raises(OSError):
        raw.getsockopt(socket.IPPROTO_IP, 64, 84)  # IPT_SO_GET_INFO


@pytest.mark.parametrize("program", ["iptables", "ip6tables-restore", "iptables-legacy", "iptables-nft", "ipset"])
def test_host_has_no_program_of_iptables(program: str) -> None:
    assert which(program) is None


def test_node_can_be_served_with_nftables_alone() -> None:
    for packet_filter in (NFTABLES, AUTO):
        host = requirements.require_all(packet_filter)
        assert (host.iptables, len(host.families), host.unsupported) == (None, 2, {})
    with pytest.raises(MissingPiece, match="the kernel has no ipset"):
        requirements.require_all(IPTABLES)
