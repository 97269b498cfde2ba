"""All that a node's kernel holds of Services, as text that is the same whenever the state is."""

from __future__ import annotations

import re

from lab.topology import Topology

_COUNTERS = re.compile(r" \[\d+:\d+\]$", re.MULTILINE)
_MARK = re.compile(r"^add \S+-INTERNAL (\S+) skbmark (0x[0-9a-f]+)", re.MULTILINE)
_BY_MARK = re.compile(r"-f (\d+)")
#: A member of the set of a bit of marks.
_BIT = re.compile(r"add \S+-MARK-0x")
_OF_THIS_RUN = re.compile(r" initval 0x[0-9a-f]+| skbmark \S+")
_TABLE = re.compile(r"^\*.*?^COMMIT\n", re.MULTILINE | re.DOTALL)


def kernel_state(net: Topology) -> str:
    """Return what ``ipvsadm``, ``ipset``, ``ip`` and ``iptables-save`` print of the node.

    Without what may differ from run to run: counters, seeds of hashes, numbers of marks (which are given out in the
    order in which Services are planned), tables without rules, and the order of what has none. Real servers and rules
    are in the kernel's order.
    """
    saved_sets = net.run("node", "ipset", "save")
    holders = {int(mark, 16): holder for holder, mark in _MARK.findall(saved_sets)}
    shown_servers = _BY_MARK.sub(
        lambda match: f"-f {holders.get(int(match[1]), match[1])}", net.run("node", "ipvsadm", "-Sn")
    )
    virtual_servers = sorted(shown_servers.splitlines(), key=lambda line: line.split()[1:3])
    unseeded = _OF_THIS_RUN.sub("", saved_sets)
    sets = sorted(line for line in unseeded.splitlines() if not _BIT.match(line))
    shown = net.run("node", "ip", "-o", "address", "show", "dev", "kube-ipvs0").splitlines()
    addresses = sorted(line.split()[3] for line in shown)
    state = "\n".join([*virtual_servers, *sets, *addresses, ""])
    for command in ("iptables-save", "ip6tables-save"):
        tables = _TABLE.findall(_COUNTERS.sub("", net.run("node", command)))
        state += "".join([f"# {command}\n", *sorted(table for table in tables if "\n-A " in table)])
    return state
