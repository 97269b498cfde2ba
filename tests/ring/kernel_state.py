"""All that a node's kernel holds of Services, as text that is the same whenever the state is."""

from __future__ import annotations

import re

from lab.topology import Topology

_COUNTERS = re.compile(r" \[\d+:\d+\]$", re.MULTILINE)
_TABLE = re.compile(r"^\*.*?^COMMIT\n", re.MULTILINE | re.DOTALL)


def kernel_state(net: Topology) -> str:
    """Return what ``ipvsadm``, ``ipset``, ``ip`` and ``iptables-save`` print of the node.

    Without what differs from run to run: counters, seeds of hashes, tables without rules, and the order of what has
    none. Real servers and rules are in the kernel's order.
    """
    virtual_servers = sorted(net.run("node", "ipvsadm", "-Sn").splitlines(), key=lambda line: line.split()[1:3])
    sets = sorted(re.sub(r" initval 0x[0-9a-f]+", "", line) for line in net.run("node", "ipset", "save").splitlines())
    shown = net.run("node", "ip", "-o", "address", "show", "dev", "kube-ipvs0").splitlines()
    addresses = sorted(line.split()[3] for line in shown)
    state = "\n".join([*virtual_servers, *sets, *addresses, ""])
    for command in ("iptables-save", "ip6tables-save"):
        tables = _TABLE.findall(_COUNTERS.sub("", net.run("node", command)))
        state += "".join([f"# {command}\n", *sorted(table for table in tables if "\n-A " in table)])
    return state
