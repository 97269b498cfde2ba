"""What kube-proxy left behind in its other modes, and how it is taken away.

In iptables mode every Service has chains of its own; kube-proxy itself leaves them when its mode changes to IPVS.
Chains of the same name in both modes (KUBE-SERVICES of the nat table, say) are not touched here: our own write sets
them. The rules that led to what goes are deleted with it; a chain that a rule of somebody else leads to stays, empty.
Kubelet's chains are nobody's leftovers. Only the variant of iptables in use is looked at: rules in the other one are of
a time when the host used that.

In nftables mode all is in one table of each family, ``kube-proxy``. It is deleted over netlink, as the host may have no
``nft``.

While these rules are there they serve the Services, so they go after the first virtual servers are complete.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import closing
from struct import pack
from typing import Final

from ipvs_proxy.kernel.filter.iptables.programs import Iptables
from ipvs_proxy.kernel.filter.iptables.render import Chain
from ipvs_proxy.netlink.socket import NETLINK_NETFILTER, NetlinkSocket, open_socket
from ipvs_proxy.netlink.wire import ACK, REQUEST, Outcome, Request, frame, parse, text_attribute
from ipvs_proxy.plan.tables import Family

#: Chains that only iptables mode has, by table.
_CHAINS: Final = {
    "nat": re.compile(r"KUBE-(NODEPORTS|PROXY-CANARY|(SVC|SVL|EXT|FW|SEP|XLB)-[A-Z0-9]{16})"),
    "filter": re.compile(r"KUBE-(SERVICES|EXTERNAL-SERVICES|NODEPORTS|PROXY-CANARY)"),
    "mangle": re.compile(r"KUBE-PROXY-CANARY"),
}
#: Jumps of iptables mode to a chain that IPVS mode has too, which IPVS mode makes in other places.
_JUMP: Final = '--comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL'

_TABLE: Final = "kube-proxy"
# linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_NFTABLES: Final = 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_GET_TABLE, _DELETE_TABLE = _NFTABLES << 8 | 1, _NFTABLES << 8 | 2
_TABLE_NAME: Final = 1
_RECEIVE_BUFFER: Final = 64 * 1024


class Leftovers:
    """The leftovers in the network namespace of the thread that makes the calls."""

    def __init__(self, iptables: Iptables, families: tuple[Family, ...]) -> None:
        self._iptables = iptables
        self._families = families

    def find(self, seen: Mapping[Family, str] | None = None) -> list[str]:
        """Say what there is, one line for each kind; nothing on a clean node.

        ``seen`` is the output of ``iptables-save`` by family, where somebody has just read it.

        Raises:
            Unusable: if the rules cannot be read.

        """
        findings: list[str] = []
        for family in self._families:
            chains = chains_of(self._iptables.save(family) if seen is None else seen[family])
            if chains:
                findings.append(f"{family.label}: {sum(map(len, chains.values()))} chains of iptables mode")
            if has_table(family):
                findings.append(f"{family.label}: the table of nftables mode")
        return findings

    def remove(self) -> list[str]:
        """Take away what there is; say what it was.

        Raises:
            Unusable: if rules cannot be read or written.
            OSError: if the kernel refuses to delete the table.

        """
        findings = self.find()
        for family in self._families if findings else ():
            text = removal(self._iptables.save(family))
            if text:
                self._iptables.restore(family, text)
            if has_table(family):
                delete_table(family)
        return findings


def chains_of(saved: str) -> dict[str, list[str]]:
    """Return the chains of iptables mode by table, from the output of ``iptables-save``."""
    found: dict[str, list[str]] = {}
    table = ""
    for line in saved.split("\n"):
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            name = line[1:].split(" ", 1)[0]
            if is_of_iptables_mode(Chain(table, name)):
                found.setdefault(table, []).append(name)
    return found


def is_of_iptables_mode(chain: Chain) -> bool:
    """Return whether a chain is one that only iptables mode has."""
    return chain.table in _CHAINS and bool(_CHAINS[chain.table].fullmatch(chain.name))


def removal(saved: str) -> str:
    """Return the input of ``iptables-restore --noflush`` that removes iptables mode; empty if there is nothing."""
    chains = chains_of(saved)
    jumps = _jumps(saved, chains)
    lines: list[str] = []
    for table in dict.fromkeys([*chains, *jumps]):
        names = chains.get(table, [])
        ours, foreign = jumps.get(table, ([], set()))
        lines.append(f"*{table}")
        lines += [f":{name} - [0:0]" for name in names]
        lines += ["-D" + jump.removeprefix("-A") for jump in ours]
        lines += [f"-X {name}" for name in names if name not in foreign]
        lines.append("COMMIT")
    return "\n".join(lines) + "\n" if lines else ""


def _jumps(saved: str, chains: Mapping[str, list[str]]) -> dict[str, tuple[list[str], set[str]]]:
    """Return by table the rules of built-in chains that lead to what goes, and the chains that others lead to."""
    found: dict[str, tuple[list[str], set[str]]] = {}
    table, gone, built_in = "", frozenset[str](), set[str]()
    for line in saved.split("\n"):
        if line.startswith("*"):
            table, gone, built_in = line[1:], frozenset(chains.get(line[1:], ())), set()
        elif line.startswith(":") and line.split(" ")[1] != "-":
            built_in.add(line[1:].split(" ", 1)[0])
        elif line.startswith("-A "):
            source, target = line.split(" ", 2)[1], line.rsplit(" ", 1)[1]
            if line.endswith(_JUMP) or (target in gone and source in built_in):
                found.setdefault(table, ([], set()))[0].append(line)
            elif target in gone and source not in gone and not source.startswith("KUBE-"):
                found.setdefault(table, ([], set()))[1].add(target)
    return found


def _header(family: Family) -> bytes:
    """Return a struct nfgenmsg: family, version, and for a batch the subsystem in network order."""
    return pack("=BB", family, 0) + pack(">H", _NFTABLES)


def has_table(family: Family) -> bool:
    """Return whether a family has the table of nftables mode."""
    request = Request(_GET_TABLE, _header(family) + text_attribute(_TABLE_NAME, _TABLE))
    with NetlinkSocket(NETLINK_NETFILTER) as socket:
        try:
            socket.ask(request)
        except OSError:  # no such table, or no nf_tables at all
            return False
    return True


def delete_table(family: Family) -> None:
    """Delete the table of nftables mode: changes of nf_tables come as a batch in one datagram.

    Raises:
        OSError: if the kernel refuses.

    """
    deletion = Request(_DELETE_TABLE, _header(family) + text_attribute(_TABLE_NAME, _TABLE))
    batch = (Request(_BATCH_BEGIN, _header(family)), deletion, Request(_BATCH_END, _header(family)))
    flags = (REQUEST, REQUEST | ACK, REQUEST)
    datagram = b"".join(
        frame(request, sequence=number, flags=flag)
        for number, (request, flag) in enumerate(zip(batch, flags, strict=True), 1)
    )
    with closing(open_socket(NETLINK_NETFILTER, receive_buffer=_RECEIVE_BUFFER)) as socket:
        socket.settimeout(3.0)
        socket.sendto(datagram, (0, 0))
        while True:
            for reply in parse(socket.recv(_RECEIVE_BUFFER)):
                if isinstance(reply, Outcome) and reply.error:
                    raise OSError(reply.error, f"the nftables table {_TABLE} of {family.label} cannot be deleted")
                if isinstance(reply, Outcome) and reply.sequence == 2:
                    return
