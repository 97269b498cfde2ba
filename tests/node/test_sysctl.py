"""Sysctls against a tree of files like ``/proc/sys``."""

from __future__ import annotations

import pytest

from ipvs_proxy.netlink.errors import Unusable
from ipvs_proxy.node.sysctl import (
    SysctlChange,
    find_changes,
    forwarding_problems,
    kernel_problems,
    kernel_version,
    make_changes,
)

DEFAULTS = {
    "net/ipv4/vs/conntrack": "0",
    "net/ipv4/vs/conn_reuse_mode": "1",
    "net/ipv4/vs/expire_nodest_conn": "0",
    "net/ipv4/vs/expire_quiescent_template": "0",
    "net/ipv4/ip_forward": "0",
    "net/ipv4/conf/all/arp_ignore": "0",
    "net/ipv4/conf/all/arp_announce": "0",
    "net/ipv6/conf/all/forwarding": "0",
    "kernel/osrelease": "6.1.0-56-amd64",
}
WANTED = {
    "net/ipv4/vs/conntrack": "1",
    "net/ipv4/vs/expire_nodest_conn": "1",
    "net/ipv4/vs/expire_quiescent_template": "1",
    "net/ipv4/ip_forward": "1",
}


@pytest.fixture
def tree(tmp_path):
    """Return a function that sets files below a root, which has a fresh namespace's defaults, and returns the root."""

    def make(**values: str):
        for name, value in {**DEFAULTS, **{key.replace("__", "/"): value for key, value in values.items()}}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{value}\n")
        return tmp_path

    return make


def contents(root) -> dict[str, str]:
    return {name: (root / name).read_text().strip() for name in DEFAULTS}


def test_what_differs_is_written_and_told(tree):
    root = tree()
    assert make_changes(root=root) == [SysctlChange(name, "0", value) for name, value in WANTED.items()]
    assert contents(root) == {**DEFAULTS, **WANTED}
    assert find_changes(root=root) == []


def test_what_is_right_is_not_written(tree):
    root = tree(**{name.replace("/", "__"): value for name, value in WANTED.items()})
    before = {name: (root / name).stat().st_mtime_ns for name in DEFAULTS}
    assert make_changes(root=root) == []
    assert {name: (root / name).stat().st_mtime_ns for name in DEFAULTS} == before


def test_drift_only_reads(tree):
    root = tree()
    assert [str(change) for change in find_changes(root=root)] == [
        "sysctl net.ipv4.vs.conntrack is 0, wanted 1",
        "sysctl net.ipv4.vs.expire_nodest_conn is 0, wanted 1",
        "sysctl net.ipv4.vs.expire_quiescent_template is 0, wanted 1",
        "sysctl net.ipv4.ip_forward is 0, wanted 1",
    ]
    assert contents(root) == DEFAULTS


def test_strict_arp_adds_its_two(tree):
    root = tree()
    names = {change.name: change.wanted for change in make_changes(root=root, strict_arp=True)}
    assert names == {**WANTED, "net/ipv4/conf/all/arp_ignore": "1", "net/ipv4/conf/all/arp_announce": "2"}
    assert make_changes(root=root) == [], "without strict ARP they are not set back"


@pytest.mark.parametrize(
    ("release", "found", "wanted"),
    [
        ("4.0.9", "1", None),
        ("4.1.0", "1", "0"),
        ("4.18.0-553.el8_10.x86_64", "1", "0"),
        ("5.8.18", "0", None),
        ("5.9.0-rc1", "0", "1"),
        ("5.9.1", "1", None),
        ("5.10.0-8-amd64", "1", None),
        ("6.18.44-fc", "0", "1"),
        ("10.0", "0", "1"),
    ],
)
def test_conn_reuse_mode_depends_on_the_kernel(tree, release, found, wanted):
    root = tree(kernel__osrelease=release, net__ipv4__vs__conn_reuse_mode=found)
    changes = [change for change in find_changes(root=root) if change.name.endswith("conn_reuse_mode")]
    assert changes == ([] if wanted is None else [SysctlChange("net/ipv4/vs/conn_reuse_mode", found, wanted)])


def test_a_failed_write_names_setting_values_cause_and_remedy(tree):
    root = tree()
    path = root / "net/ipv4/ip_forward"
    path.unlink()
    path.symlink_to("/proc/sys/kernel/osrelease")  # nobody can write there, root included
    with pytest.raises(Unusable) as raised:
        make_changes(root=root)
    assert str(raised.value).startswith("sysctl net.ipv4.ip_forward is ")
    assert ", wanted 1, and cannot be written (" in str(raised.value)
    assert "sysctl -w net.ipv4.ip_forward=1" in str(raised.value)
    assert (root / "net/ipv4/vs/conntrack").read_text().strip() == "1", "those before it are written"


def test_a_setting_that_does_not_exist_ends_it_before_anything_is_written(tree):
    root = tree()
    (root / "net/ipv4/ip_forward").unlink()
    with pytest.raises(Unusable, match=r"net\.ipv4\.ip_forward does not exist: mount /proc/sys"):
        make_changes(root=root)
    (root / "net/ipv4/vs/conntrack").unlink()
    with pytest.raises(Unusable, match=r"net\.ipv4\.vs\.conntrack does not exist: load the module ip_vs"):
        make_changes(root=root)
    assert (root / "net/ipv4/vs/expire_nodest_conn").read_text().strip() == "0"


def test_what_cannot_be_read_is_an_error_of_one_line(tree):
    root = tree()
    (root / "net/ipv4/ip_forward").unlink()
    (root / "net/ipv4/ip_forward").mkdir()
    with pytest.raises(Unusable, match=r"cannot be read .*: Is a directory"):
        find_changes(root=root)


@pytest.mark.parametrize("release", ["", "linux", "6"])
def test_what_is_no_version_is_refused(tree, release):
    with pytest.raises(Unusable, match="which is no version of Linux"):
        kernel_version(tree(kernel__osrelease=release))


def test_missing_ipv6_forwarding_is_a_warning_and_never_written(tree):
    root = tree()
    (problem,) = forwarding_problems(root)
    assert problem.text.startswith("sysctl net.ipv6.conf.all.forwarding is 0: ")
    assert problem.remedy == "set it to 1 if this node serves them (sysctl -w net.ipv6.conf.all.forwarding=1)"
    assert str(problem) == f"{problem.text}; {problem.remedy}", "as the log has it"
    assert kernel_problems(root) == []
    make_changes(root=root)
    assert contents(root)["net/ipv6/conf/all/forwarding"] == "0"
    assert forwarding_problems(tree(net__ipv6__conf__all__forwarding="1")) == []


def test_a_kernel_that_cannot_balance_reused_ports_is_a_warning(tree):
    (problem,) = kernel_problems(tree(kernel__osrelease="5.4.0-208-generic"))
    assert "Linux 5.4" in problem.text
    assert problem.remedy == "use Linux 5.9 or later"
