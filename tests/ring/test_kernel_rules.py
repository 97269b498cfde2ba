"""Rules against a real kernel, in both variants of iptables; ``iptables-save`` is the witness."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from contextlib import closing
from ipaddress import ip_network
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ipvs_proxy.kernel.filter.ipset.names import definitions
from ipvs_proxy.kernel.filter.ipset.table import Sets
from ipvs_proxy.kernel.filter.iptables import programs as iptables_module
from ipvs_proxy.kernel.filter.iptables import rules
from ipvs_proxy.kernel.filter.iptables.chains import CHAINS, JUMPS
from ipvs_proxy.kernel.filter.iptables.programs import LEGACY, NF_TABLES, Iptables, choose_variant
from ipvs_proxy.kernel.filter.iptables.removal import is_ours, removal
from ipvs_proxy.kernel.filter.iptables.render import render
from ipvs_proxy.kernel.filter.iptables.rules import IptablesRules
from ipvs_proxy.kernel.filter.iptables.saved import parse
from ipvs_proxy.netlink.errors import Unusable
from ipvs_proxy.node import requirements, sysctl
from ipvs_proxy.plan.masquerading import Interface, Masquerading
from ipvs_proxy.plan.tables import Family
from tests.support.namespaces import fresh_namespace, missing_piece, run

pytestmark = pytest.mark.skipif(missing_piece() is not None, reason=str(missing_piece()))

ROOT = Path(__file__).parents[2]
POD_NETWORKS = {Family.IPV4: ip_network("10.244.0.0/16"), Family.IPV6: ip_network("fd00:10:244::/56")}
SUFFIXES = {NF_TABLES: "-nft", LEGACY: "-legacy"}

FOREIGN = """\
*nat
:CNI-HOSTPORT - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT
-A CNI-HOSTPORT -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.244.0.9:80
COMMIT
*filter
:FIREWALL - [0:0]
-A INPUT -j FIREWALL
-A FIREWALL -s 192.0.2.0/24 -j DROP
COMMIT
"""

#: What kube-proxy leaves on a node with nothing but ClusterIP Services, as it writes it.
KUBE_PROXY = """\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A KUBE-SERVICES -s 127.0.0.0/8 -j RETURN
-A KUBE-POSTROUTING -m comment --comment "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose" \
-m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE
-A KUBE-SERVICES -m comment --comment "Kubernetes service cluster ip + port for masquerade purpose" \
-m set --match-set KUBE-CLUSTER-IP dst,dst ! -s 10.244.0.0/16 -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
-A KUBE-POSTROUTING -m mark ! --mark 0x00004000/0x00004000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x00004000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
[7:420] -A KUBE-MARK-MASQ -j MARK --or-mark 0x00004000
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SOURCE-RANGES-FIREWALL - [0:0]
:KUBE-IPVS-FILTER - [0:0]
:KUBE-IPVS-OUT-FILTER - [0:0]
-A KUBE-SOURCE-RANGES-FIREWALL -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x00004000/0x00004000 -j ACCEPT
[9:540] -A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" \
-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-NODE-PORT -m comment --comment "Kubernetes health check node port" \
-m set --match-set KUBE-HEALTH-CHECK-NODE-PORT dst -j ACCEPT
-A KUBE-IPVS-FILTER -m set --match-set KUBE-LOAD-BALANCER dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set KUBE-CLUSTER-IP dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set KUBE-EXTERNAL-IP dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set KUBE-EXTERNAL-IP-LOCAL dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set KUBE-HEALTH-CHECK-NODE-PORT dst -j RETURN
-A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set KUBE-IPVS-IPS dst -j REJECT
COMMIT
"""


@pytest.fixture(autouse=True)
def namespace():
    """Run in a fresh namespace that has the sets."""
    with fresh_namespace():
        with closing(Sets(definitions())) as sets:
            sets.ensure()
        yield


def variant(backend: str) -> Iptables:
    suffix = SUFFIXES[backend]
    if not shutil.which(f"iptables{suffix}-restore"):
        pytest.skip(f"iptables{suffix} is not installed")
    return Iptables(suffix=suffix, backend=backend, version=(1, 8, 9), reason="test")


@pytest.fixture(params=SUFFIXES)
def iptables(request) -> Iptables:
    return variant(request.param)


def make(iptables: Iptables, family: Family = Family.IPV4, settings: Masquerading | None = None) -> IptablesRules:
    return IptablesRules(family, settings or Masquerading(local=POD_NETWORKS[family]), iptables=iptables)


def witnessed(iptables: Iptables, family: Family = Family.IPV4) -> dict[str, list[str]]:
    """Return what ``iptables-save`` prints for each table: chains, then rules, without policies and counters."""
    program = "iptables" if family is Family.IPV4 else "ip6tables"
    tables: dict[str, list[str]] = {}
    for line in run(f"{program}{iptables.suffix}-save").splitlines():
        if line.startswith("*"):
            tables[line] = lines = []
        elif line.startswith((":", "-A")):
            lines.append(line.split(" [")[0])
    return tables


def clean(iptables: Iptables) -> None:
    restore(iptables, removal(parse(iptables.save(Family.IPV4)), is_ours).text)


def restore(iptables: Iptables, text: str, family: Family = Family.IPV4) -> None:
    iptables.restore(family, text)


@pytest.mark.parametrize("family", Family)
def test_what_is_written_is_what_iptables_save_prints(iptables, family):
    network = POD_NETWORKS[family]
    settings = [  # IPv6 has the same rules, but for addresses and names
        Masquerading(local=network),
        Masquerading(local=network, masquerade_all=True),
        Masquerading(local=Interface("cbr0")),
        Masquerading(local=Interface("veth", is_prefix=True)),
        Masquerading(masquerade_bit=31),
    ]
    for setting in settings if family is Family.IPV4 else settings[:2]:
        made = make(iptables, family, setting)
        assert made.repair() != []
        wanted = render(setting, family=family, random_fully=True, bridge_netfilter=rules.BRIDGE_NETFILTER.exists())
        tables = witnessed(iptables, family)
        for chain, texts in wanted.chains.items():
            printed = [line for line in tables[f"*{chain.table}"] if line.startswith(f"-A {chain.name} ")]
            assert printed == list(texts)
        jumps = [
            line
            for lines in tables.values()
            for line in lines
            if line.startswith("-A") and not line.startswith(("-A KUBE", "-A IPVS-PROXY"))
        ]
        assert sorted(jumps) == sorted(jump.text for jump in JUMPS), "no jump is doubled by the next settings"
        assert made.repair() == []
        assert made.writes == 1
    assert made.drift() == []


def test_jumps_are_in_the_order_that_kube_proxy_makes(iptables):
    make(iptables).repair()
    lines = witnessed(iptables)["*filter"]
    assert [line.split()[-1] for line in lines if line.startswith("-A INPUT")] == [
        "KUBE-IPVS-FILTER",
        "KUBE-PROXY-FIREWALL",
        "KUBE-NODE-PORT",
    ]
    assert [line.split()[-1] for line in lines if line.startswith("-A FORWARD")] == [
        "KUBE-PROXY-FIREWALL",
        "KUBE-FORWARD",
    ]


def test_each_kind_of_drift_is_found_and_repaired_with_one_write(iptables):
    restore(iptables, FOREIGN)
    made = make(iptables)
    made.repair()
    right = witnessed(iptables)
    jump = next(jump for jump in JUMPS if jump.target == "KUBE-IPVS-OUT-FILTER").text.removeprefix("-A ")
    damages = {
        "*nat\n-F KUBE-SERVICES\nCOMMIT\n": ["nat: rules of chain KUBE-SERVICES were changed: 11 missing ("],
        f"*filter\n-D {jump}\nCOMMIT\n": ["filter: jump from OUTPUT to KUBE-IPVS-OUT-FILTER is missing"],
        f"*filter\n-D {jump}\n-X KUBE-IPVS-OUT-FILTER\nCOMMIT\n": [
            "filter: chain KUBE-IPVS-OUT-FILTER is missing",
            "filter: jump from OUTPUT to KUBE-IPVS-OUT-FILTER is missing",
        ],
        "*nat\n-R KUBE-MARK-MASQ 1 -j MARK --set-xmark 0x1/0x1\nCOMMIT\n": [
            "nat: rules of chain KUBE-MARK-MASQ were changed: 1 missing (-A KUBE-MARK-MASQ -j MARK --set-xmark 0x40"
        ],
        "*nat\n-I KUBE-POSTROUTING 1 -s 192.0.2.1 -j ACCEPT\nCOMMIT\n*filter\n-F KUBE-FORWARD\nCOMMIT\n": [
            "nat: rules of chain KUBE-POSTROUTING were changed: 1 foreign (-A KUBE-POSTROUTING -s 192.0.2.1/32 -j ACC",
            "filter: rules of chain KUBE-FORWARD were changed: 2 missing (",
        ],
        "*mangle\n-F IPVS-PROXY-OUTPUT\nCOMMIT\n": [
            "mangle: rules of chain IPVS-PROXY-OUTPUT were changed: 2 missing ("
        ],
    }
    for number, (damage, findings) in enumerate(damages.items(), start=2):
        restore(iptables, damage)
        found = made.repair()
        assert len(found) == len(findings), found
        assert all(text.startswith(start) for text, start in zip(found, findings, strict=True)), found
        assert made.writes == number
        assert witnessed(iptables) == right, damage
    assert made.repair() == []
    assert made.writes == 1 + len(damages)


def test_the_rules_of_kube_proxy_are_taken_over_and_jumps_stay_where_they_are(iptables):
    make(iptables).repair()
    right = witnessed(iptables)
    clean(iptables)
    restore(iptables, KUBE_PROXY)
    jumps = "".join(
        f"*{table}\n"
        + "".join(f"-I{jump.text[2:]}\n" for jump in JUMPS if jump.table == table and jump.target.startswith("KUBE"))
        + "COMMIT\n"
        for table in ("nat", "filter")
    )
    restore(iptables, jumps)
    restore(iptables, "*filter\n-I INPUT 1 -s 192.0.2.0/24 -j DROP\nCOMMIT\n")
    made = make(iptables)
    findings = made.repair()
    assert all("were changed" in finding or "IPVS-PROXY-" in finding for finding in findings), findings
    assert made.writes == 1
    taken_over = witnessed(iptables)
    first_input_rule = next(line for line in taken_over["*filter"] if line.startswith("-A INPUT"))
    taken_over["*filter"].remove("-A INPUT -s 192.0.2.0/24 -j DROP")
    assert taken_over == right
    assert first_input_rule == "-A INPUT -s 192.0.2.0/24 -j DROP"
    assert made.repair() == []


def test_rules_without_bridge_netfilter_are_right_too(iptables, monkeypatch, tmp_path):
    monkeypatch.setattr(rules, "BRIDGE_NETFILTER", tmp_path / "absent")
    made = make(iptables)
    made.repair()
    assert "physdev" not in str(witnessed(iptables))
    assert made.drift() == []
    monkeypatch.setattr(rules, "BRIDGE_NETFILTER", tmp_path)
    assert len(made.repair()) == 1, "it was loaded meanwhile"
    assert str(witnessed(iptables)).count("-m physdev ! --physdev-is-in") == 2


def test_a_missing_set_is_named_and_nothing_is_half_written(iptables):
    run("ipset", "destroy", "KUBE-LOOP-BACK")
    with pytest.raises(Unusable, match="the set KUBE-LOOP-BACK does not exist, create the sets before the rules"):
        make(iptables).repair()
    assert "KUBE" not in str(witnessed(iptables))


def test_a_held_lock_is_named_after_the_wait(monkeypatch, tmp_path):
    legacy = variant(LEGACY)
    monkeypatch.setattr(iptables_module, "LOCK_WAIT", 1)
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "lock"))
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Unusable, match="waited 1 s for the xtables lock: another program is writing rules"):
            make(legacy).repair()
    assert make(legacy).repair() != []


@pytest.fixture
def wrap(monkeypatch, tmp_path):
    """Return a function that puts a shell script before a program; ``REAL`` in it is the real one."""
    path = subprocess.run(["sh", "-c", "echo $PATH"], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setenv("PATH", f"{tmp_path}:{path}")

    def install(program: str, script: str) -> None:
        real = shutil.which(program, path=path)
        assert real is not None
        (tmp_path / program).write_text(f"#!/bin/sh\n{script.replace('REAL', real)}\n")
        (tmp_path / program).chmod(0o755)

    return install


def test_an_iptables_that_prints_in_another_form_does_not_cause_a_write_at_every_audit(wrap):
    nft = variant(NF_TABLES)
    wrap(
        "iptables-nft-save",
        "REAL \"$@\" | sed -e 's/--set-xmark 0x4000.0x4000/--or-mark 0x4000/' "
        "-e 's/-m comment --comment \"kubernetes ipvs access filter\" //' -e 's/--reject-with [a-z0-9-]*//' "
        '-e \'s/--comment "\\([^"]*\\)"/--comment  "\\1"/\'',
    )
    made = make(nft)
    with capture_logs() as logs:
        assert len(made.repair()) == len(CHAINS) + len(JUMPS)
        assert made.repair() == []
        assert made.drift() == []
    assert made.writes == 1
    (entry,) = logs
    assert entry["event"] == "rules_printed_in_other_form"
    assert entry["rules"] == 1 + 2 + 3  # the mark, the jumps, what rejects
    restore(nft, "*nat\n-F KUBE-MARK-MASQ\nCOMMIT\n")
    with capture_logs() as logs:
        (finding,) = made.repair()
    assert finding.startswith("nat: rules of chain KUBE-MARK-MASQ were changed: 1 missing")
    assert logs == [], "the forms are known by now"
    assert made.repair() == []


def test_what_a_start_writes_is_looked_at_by_the_first_audit(wrap, tmp_path):
    nft = variant(NF_TABLES)
    wrap(
        "iptables-nft-save",
        f"echo >>{tmp_path}/reads; REAL \"$@\" | sed -e 's/--set-xmark 0x4000.0x4000/--or-mark 0x4000/'",
    )
    reads = tmp_path / "reads"
    made = make(nft)
    assert len(made.write(made.look())) == len(CHAINS) + len(JUMPS)
    assert len(reads.read_text()) == 1
    with capture_logs() as logs:
        assert made.repair() == []
    assert [entry["event"] for entry in logs] == ["rules_printed_in_other_form"]
    assert (made.writes, len(reads.read_text())) == (1, 2)


def test_drift_before_the_first_audit_is_found_by_it(iptables):
    made = make(iptables)
    made.write(made.look())
    restore(iptables, "*nat\n-R KUBE-MARK-MASQ 1 -j MARK --set-xmark 0x1/0x1\nCOMMIT\n")
    (finding,) = made.repair()
    assert finding.startswith("nat: rules of chain KUBE-MARK-MASQ were changed")
    assert made.repair() == []


def test_a_change_by_somebody_else_during_the_write_is_not_taken_for_ours(wrap):
    nft = variant(NF_TABLES)
    wrap(
        "iptables-nft-restore",
        'REAL "$@" && iptables-nft -t nat -R KUBE-MARK-MASQ 1 -j MARK --set-xmark 0x1/0x1 '
        "&& iptables-nft -t nat -R KUBE-SERVICES 1 -s 192.0.2.0/24 -j RETURN",
    )
    made = make(nft)
    with capture_logs() as logs:
        made.repair()
    assert [entry["event"] for entry in logs] == ["rules_changed_while_written"]
    assert [finding.split(" were")[0] for finding in made.drift()] == [
        "nat: rules of chain KUBE-SERVICES",
        "nat: rules of chain KUBE-MARK-MASQ",
    ]


def test_cleanup_takes_all_of_ours_and_nothing_else(iptables):
    restore(iptables, FOREIGN)
    foreign = witnessed(iptables)
    made = make(iptables)
    made.repair()
    restore(iptables, "*nat\n-A CNI-HOSTPORT -p udp -j KUBE-MARK-MASQ\nCOMMIT\n")
    clean(iptables)
    left = witnessed(iptables)
    assert set(left["*nat"]) - set(foreign["*nat"]) == {":KUBE-MARK-MASQ -", "-A CNI-HOSTPORT -p udp -j KUBE-MARK-MASQ"}
    assert left["*filter"] == foreign["*filter"]
    restore(iptables, "*nat\n-D CNI-HOSTPORT -p udp -j KUBE-MARK-MASQ\nCOMMIT\n")
    clean(iptables)
    left = witnessed(iptables)
    # These tables are there once anybody has used them.
    assert all(line.endswith(" ACCEPT") for table in ("*mangle", "*raw") for line in left.pop(table, []))
    assert left == foreign
    assert removal(parse(iptables.save(Family.IPV4)), is_ours).text == ""


@pytest.mark.parametrize(
    ("hint", "hinted", "chosen"),
    [
        ("KUBE-IPTABLES-HINT", LEGACY, LEGACY),
        ("KUBE-KUBELET-CANARY", LEGACY, LEGACY),
        ("KUBE-IPTABLES-HINT", NF_TABLES, NF_TABLES),
        ("KUBE-SERVICES", LEGACY, NF_TABLES),
    ],
)
def test_the_variant_with_the_hint_of_the_kubelet_is_used(hint, hinted, chosen):
    if choose_variant().backend != NF_TABLES:
        pytest.skip("the default of this host is not nf_tables")
    restore(variant(hinted), f"*mangle\n:{hint} - [0:0]\nCOMMIT\n", Family.IPV6)
    found = choose_variant()
    assert found.backend == chosen
    if chosen == LEGACY:
        assert found.suffix == "-legacy"
        assert found.reason == "the kubelet keeps its rules in legacy, not in the default nf_tables"
    else:
        assert found.suffix == ""


def test_choosing_a_variant_creates_no_table():
    choose_variant()
    assert Path("/proc/net/ip_tables_names").read_text() == ""
    assert run("iptables-save") == ""


def test_preflight_finds_everything_and_leaves_nothing():
    host = requirements.require_all()
    assert host.families == (Family.IPV4, Family.IPV6)
    assert host.unsupported == {}
    assert "ipvs-probe" not in run("ip", "link")


def test_preflight_sees_that_ipv6_is_off():
    Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
    host = requirements.require_all()
    assert host.families == (Family.IPV4,)
    assert host.unsupported == {Family.IPV6: "sysctl net.ipv6.conf.all.disable_ipv6 is 1"}


def test_sysctls_are_set_once():
    names = {change.name for change in sysctl.make_changes()}
    assert {"net/ipv4/vs/conntrack", "net/ipv4/ip_forward"} <= names
    assert sysctl.make_changes() == []
    run("sysctl", "-w", "net.ipv4.vs.conn_reuse_mode=0")
    assert sysctl.find_changes() == [sysctl.SysctlChange("net/ipv4/vs/conn_reuse_mode", "0", "1")]
    assert len(sysctl.make_changes()) == 1
    assert run("sysctl", "-n", "net.ipv4.vs.conn_reuse_mode").strip() == "1"


def test_a_read_only_proc_sys_is_an_obstacle_only_where_something_is_to_be_written():
    script = (
        "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && "
        f"exec {sys.executable} -c 'from ipvs_proxy.node import sysctl; print(sysctl.make_changes())'"
    )
    command = ["unshare", "-m", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert "sysctl net.ipv4.vs.conntrack is 0, wanted 1, and cannot be written (Read-only file system)" in done.stderr
    sysctl.make_changes()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert done.stdout == "[]\n", done.stderr
