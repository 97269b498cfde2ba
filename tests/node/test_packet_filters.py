"""What each packet filter needs of a host, and what is said of one that lacks it.

Which one is chosen, ``tests/ring/test_choice.py`` tests in kernels that differ.
"""

from __future__ import annotations

import shlex

import pytest

from ipvs_proxy.kernel.filter.iptables.programs import LEGACY, NF_TABLES, Iptables
from ipvs_proxy.netlink.errors import MissingPiece
from ipvs_proxy.node import packet_filters
from ipvs_proxy.plan.tables import Family

IPTABLES = Iptables(suffix="", backend=NF_TABLES, version=(1, 8, 9), reason="test")


@pytest.mark.parametrize("lacking", ["set", "addrtype", "conntrack", "MASQUERADE", "MARK"])
@pytest.mark.parametrize("backend", [NF_TABLES, LEGACY])
def test_a_kernel_without_an_extension_is_named_with_its_module_and_the_package(monkeypatch, lacking, backend):
    monkeypatch.setattr(packet_filters, "has_extension", lambda name, family, *, is_target: name != lacking)
    iptables = Iptables(suffix="", backend=backend, version=(1, 8, 9), reason="test")
    expected = rf"lacks the iptables extension {lacking}: load the module xt_\w+ .*kernel-modules-extra on RHEL"
    with pytest.raises(MissingPiece, match=expected):
        packet_filters.require_extensions(iptables, Family.IPV4)


def test_a_kernel_that_cannot_be_asked_has_none_for_nf_tables_and_may_have_all_for_legacy(monkeypatch):
    monkeypatch.setattr(packet_filters, "has_extension", lambda name, family, *, is_target: None)
    with pytest.raises(MissingPiece, match=r"load the module nft_compat .*kernel-modules-extra on RHEL"):
        packet_filters.require_extensions(IPTABLES, Family.IPV4)
    packet_filters.require_extensions(
        Iptables(suffix="", backend=LEGACY, version=(1, 8, 9), reason="test"), Family.IPV4
    )


@pytest.fixture
def proc(tmp_path):
    """Return a ``/proc`` of a host with both families."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net/if_inet6").touch()
    (tmp_path / "sys/net/ipv6/conf/all").mkdir(parents=True)
    (tmp_path / "sys/net/ipv6/conf/all/disable_ipv6").write_text("0\n")
    return tmp_path


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Return a function that makes ``iptables`` and ``ip6tables`` end with a status and an error."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))

    def install(name: str, status: int = 0, error: str = "") -> None:
        (directory / name).write_text(f"#!/bin/sh\necho {shlex.quote(error)} >&2\nexit {status}\n")
        (directory / name).chmod(0o755)

    return install


def test_both_families_are_supported_where_both_nat_tables_are_there(proc, programs):
    programs("iptables")
    programs("ip6tables")
    assert packet_filters.supported_families(IPTABLES, proc=proc) == ((Family.IPV4, Family.IPV6), {})


def test_ipv6_needs_to_be_in_the_kernel(proc, programs):
    programs("iptables")
    (proc / "net/if_inet6").unlink()
    families, unsupported = packet_filters.supported_families(IPTABLES, proc=proc)
    assert families == (Family.IPV4,)
    assert "the kernel has no IPv6" in unsupported[Family.IPV6]


def test_ipv6_needs_to_be_enabled(proc, programs):
    programs("iptables")
    (proc / "sys/net/ipv6/conf/all/disable_ipv6").write_text("1\n")
    families, unsupported = packet_filters.supported_families(IPTABLES, proc=proc)
    assert families == (Family.IPV4,)
    assert "disable_ipv6 is 1" in unsupported[Family.IPV6]


def test_a_family_without_a_nat_table_is_left_out_with_its_reason(proc, programs):
    programs("iptables", 3, "iptables v1.8.9 (legacy): can't initialize iptables table `nat': Table does not exist")
    programs("ip6tables")
    families, unsupported = packet_filters.supported_families(IPTABLES, proc=proc)
    assert families == (Family.IPV6,)
    assert "Table does not exist" in unsupported[Family.IPV4]


def test_no_family_at_all_ends_the_start(proc, programs):
    programs("iptables", 3, "no table")
    (proc / "net/if_inet6").unlink()
    with pytest.raises(MissingPiece, match=r"neither IPv4 nor IPv6 can be served: IPv4: .*no table; IPv6: the kernel"):
        packet_filters.supported_families(IPTABLES, proc=proc)
