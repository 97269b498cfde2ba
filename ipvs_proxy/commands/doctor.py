"""``ipvs-proxy doctor``: what on this node keeps, or may keep, Services from working, each with its remedy.

Judging is pure; what is judged comes from ``node.inventory`` and ``node.host_facts``, and from the
agent if one answers.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from enum import Enum
from typing import Final

from ipvs_proxy.commands import ask
from ipvs_proxy.commands.interference import interferences
from ipvs_proxy.commands.text import document, several, wrapped
from ipvs_proxy.kernel.filter.foreign.rules import Effect
from ipvs_proxy.netlink.errors import Unusable
from ipvs_proxy.node.host_facts import Checkup, check
from ipvs_proxy.node.inventory import Survey, survey
from ipvs_proxy.plan.tables import Family, Protocol, family_of
from ipvs_proxy.state.documents import Document, NodeState

FINE, ERROR, PROBLEMS = 0, 1, 2
#: So many virtual servers cost a kernel without threads for their estimators tens of milliseconds at a time.
MANY_ESTIMATORS: Final = 10_000
#: The API server's default of ``--service-node-port-range``.
NODE_PORTS: Final = (30000, 32767)
#: What a chain that drops by default is in the way of, and what helps.
_DROPPING: Final = {
    "INPUT": (
        "connections to Services pass it before IPVS sees them, and go no further if no rule accepts them",
        "accept the pods' networks and the node ports in INPUT",
    ),
    "FORWARD": (
        "what no rule accepts does not reach endpoints elsewhere",
        "have the network plugin accept the pods' networks",
    ),
}
#: So many connections in one bucket make looking one up slow.
CROWDED: Final = 16
_USUAL_SCHEDULER: Final = "rr"
_WIDTH: Final = 80


class Level(Enum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(Document, frozen=True):
    """A fact of this node, and what to do about it."""

    level: Level
    topic: str
    text: str
    remedy: str = ""


def examine(agent: str) -> list[Finding]:
    """Look at this node.

    Raises:
        Unusable: if this is no Linux, or if tables may not be read here.
        OSError, ValueError: if the kernel refuses to be read, or gives garbage.

    """
    state = _state(agent)
    scheduler, strict_arp = (_USUAL_SCHEDULER, False) if isinstance(state, str) else (state.scheduler, state.strict_arp)
    found = survey(scheduler=scheduler, strict_arp=strict_arp, ports=())
    facts = check(found.iptables, [family for family in Family if family not in found.unsupported])
    return [*judge_kernel(found), *judge_host(found, facts), *judge_agent(found, state)]


def doctor(agent: str, output: str) -> int:
    """Print the findings; return the exit status: FINE, PROBLEMS (a warning is none), or ERROR with one line."""
    try:
        findings = examine(agent)
    except (Unusable, OSError, ValueError) as error:
        sys.stderr.write(f"ipvs-proxy: error: {error}\n")
        return ERROR
    sys.stdout.write(findings_text(findings) if output == "text" else document(findings, output))
    return PROBLEMS if any(finding.level is Level.PROBLEM for finding in findings) else FINE


def _state(agent: str) -> NodeState | str:
    try:
        return ask.ask(agent, "/state", NodeState, limit=0)
    except ask.NoAnswer as error:
        return str(error)


def findings_text(findings: list[Finding]) -> str:
    """Write the findings, the worst first, and how many there are."""
    ordered = sorted(findings, key=lambda finding: list(Level).index(finding.level), reverse=True)
    level_width = max(len(level.value) for level in Level) + 2
    topic_width = max(len(finding.topic) for finding in ordered) + 2
    lines: list[str] = []
    for finding in ordered:
        start = f"{finding.level.value:<{level_width}}{finding.topic:<{topic_width}}"
        lines.append(wrapped(finding.text, start=start, width=_WIDTH))
        if finding.remedy:
            lines.append(wrapped(f"-> {finding.remedy}", start=" " * len(start), width=_WIDTH))
    counted = {level: sum(finding.level is level for finding in ordered) for level in Level}
    verdict = f"{several(counted[Level.PROBLEM], 'problem')}, {several(counted[Level.WARNING], 'warning')}"
    return "".join([*lines, "\n", verdict, "\n"])


def judge_kernel(found: Survey) -> Iterator[Finding]:
    """Judge what the kernel offers, and how it is set."""
    chosen = found.iptables
    variant = "" if chosen is None else f"; iptables {'.'.join(map(str, chosen.version))} ({chosen.backend})"
    yield Finding(Level.OK, "kernel", f"Linux {found.kernel}{variant}")
    for line in found.missing:
        what, _, remedy = line.partition(": ")
        yield Finding(Level.PROBLEM, "kernel", what, remedy)
    for family, reason in found.unsupported.items():
        yield Finding(Level.WARNING, family.label, f"is not served on this node: {reason}")
    for warning in found.warnings:
        what, _, remedy = warning.partition("; ")
        yield Finding(Level.PROBLEM, "kernel", what, remedy)
    for change in found.sysctls:
        name = change.name.replace("/", ".")
        yield Finding(
            Level.PROBLEM if found.agent else Level.WARNING,
            "sysctl",
            f"{name} is {change.found}, Services need {change.wanted}",
            f"sysctl -w {name}={change.wanted}, and look in /etc/sysctl.d for what sets it; an agent does at its start",
        )
    if not found.sysctls and not found.missing:
        yield Finding(Level.OK, "sysctl", "all that Services need is set")
    backend = "" if chosen is None else chosen.backend
    for variant in sorted({variant for _, variant in (*found.iptables_mode, *found.ipvs_mode)} - {backend}):
        yield Finding(
            Level.PROBLEM,
            "iptables",
            f"there are rules of kube-proxy in {variant}, beside {backend}, which is in use: both are in effect",
            "run ipvs-proxy cleanup --kube-proxy while neither agent nor kube-proxy runs here",
        )
    if found.foreign:
        names = ", ".join(found.foreign[:3]) + (f" and {len(found.foreign) - 3} more" if len(found.foreign) > 3 else "")
        yield Finding(
            Level.OK, "others", f"{several(len(found.foreign), 'virtual server')} of others, which stay: {names}"
        )


def judge_host(found: Survey, facts: Checkup) -> Iterator[Finding]:
    """Judge what else is at work on the host."""
    if facts.link_manager:
        drop_in = (
            "[keyfile] unmanaged-devices=interface-name:kube-ipvs0 in /etc/NetworkManager/conf.d"
            if facts.link_manager == "NetworkManager"
            else "a .network file with [Match] Name=kube-ipvs0 and [Link] Unmanaged=yes in /etc/systemd/network"
        )
        text = f"{facts.link_manager} manages kube-ipvs0 and may take its addresses away"
        yield Finding(Level.PROBLEM, "link", text, drop_in)
    for address, name in sorted(facts.twice.items()):
        yield Finding(
            Level.PROBLEM,
            "addresses",
            f"{address} is on kube-ipvs0 and on {name}: every port of it that is no Service's is shut",
            f"take the address off {name}, or out of the Service",
        )
    # With strictARP it is among the settings that the agent sees to, and so among those of judge_kernel.
    if facts.announcers and facts.arp_ignore == 0 and not any("arp_ignore" in change.name for change in found.sysctls):
        yield Finding(
            Level.PROBLEM,
            "ARP",
            f"{' and '.join(facts.announcers)} announces addresses, and this node answers ARP for all of kube-ipvs0",
            "set ipvs.strictARP: true",
        )
    yield from _judge_firewall(facts, _used(found))
    for one in interferences(found):
        level = Level.WARNING if one.effect is Effect.MARKS else Level.PROBLEM
        yield Finding(level, one.table, one.text, one.remedy)
    if facts.bridge_calls_iptables == 0 and facts.bridges:
        yield Finding(
            Level.WARNING,
            "bridge",
            "bridged packets pass by iptables: answers between pods of this node may not find their way back",
            "sysctl -w net.bridge.bridge-nf-call-iptables=1 if pods are on a bridge of this node",
        )
    yield from _judge_room(found, facts)
    yield from _judge_ipvs(found, facts)


def _judge_room(found: Survey, facts: Checkup) -> Iterator[Finding]:
    """Judge whether there is room for connections, and for node ports."""
    if facts.conntrack_entries is not None and facts.conntrack_room:
        used = facts.conntrack_entries * 100 // facts.conntrack_room
        text = f"{facts.conntrack_entries:,} of {facts.conntrack_room:,} entries ({used} %)"
        full = Finding(
            Level.PROBLEM, "conntrack", f"{text}: new connections will be dropped", "raise conntrack.maxPerCore"
        )
        yield full if used >= 90 else Finding(Level.OK, "conntrack", text)
    if facts.local_ports is not None:
        first, last = facts.local_ports
        shared = [
            port
            for port in sorted(_node_ports(found))
            if first <= port <= last and not any(low <= port <= high for low, high in facts.reserved_ports)
        ]
        if shared:
            more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
            yield Finding(
                Level.WARNING,
                "ports",
                f"net.ipv4.ip_local_port_range {first}-{last} has the node port {shared[0]}{more} in it: a connection "
                "of this node may take it as its source",
                f"sysctl -w net.ipv4.ip_local_reserved_ports={NODE_PORTS[0]}-{NODE_PORTS[1]}",
            )


def _node_ports(found: Survey) -> set[int]:
    return {key.port for key in found.served if not key.mark and key.address not in found.tables.addresses}


def _used(found: Survey) -> set[str]:
    """Return the families that Services use here, by their labels; all if there is no Service yet."""
    families = {family_of(key.address) for key in found.served} or set(Family)
    return {family.label for family in families}


def _judge_firewall(facts: Checkup, used: Collection[str]) -> Iterator[Finding]:
    for family, rules in facts.ahead.items():
        if family not in used:
            continue
        more = f" and {len(rules) - 1} more" if len(rules) > 1 else ""
        yield Finding(
            Level.WARNING,
            "firewall",
            f"the {family} chain INPUT accepts before it comes to our rules: {rules[0]}{more}; such ports of this node "
            "are open at every address on kube-ipvs0",
            "append such rules instead of inserting them (iptables -A, not -I)",
        )
    if facts.firewalld:
        yield Finding(
            Level.WARNING,
            "firewall",
            "firewalld is running: what its zones do not know is dropped, whatever other rules accept",
            "firewall-cmd --permanent --zone=trusted --add-source=CIDR for the pods' networks, "
            "--add-interface=kube-ipvs0, and open the node ports; or turn it off",
        )
    for (family, chain), policy in facts.policies.items():
        if policy != "DROP" or family not in used:
            continue
        what, remedy = _DROPPING[chain]
        yield Finding(
            Level.WARNING,
            "firewall",
            f"the {family} chain {chain} drops by default: {what}",
            f"{remedy}, or set the policy to ACCEPT",
        )


def _judge_ipvs(found: Survey, facts: Checkup) -> Iterator[Finding]:
    estimators = found.schedulers.total()
    version = tuple(map(int, found.kernel.split(".")))
    if facts.run_estimation == 0:
        yield Finding(
            Level.WARNING,
            "IPVS",
            "net.ipv4.vs.run_estimation is 0: the kernel counts no connections, packets and bytes, all rates are 0",
            "sysctl -w net.ipv4.vs.run_estimation=1 if you want them",
        )
    elif estimators >= MANY_ESTIMATORS and version < (6, 2):
        yield Finding(
            Level.WARNING,
            "IPVS",
            f"{estimators:,} virtual servers are counted in one timer of Linux {found.kernel}: packets wait meanwhile",
            "use Linux 6.2 or later, or sysctl -w net.ipv4.vs.run_estimation=0, without traffic figures then",
        )
    yield from _judge_connections(facts)
    datagrams = any(key.protocol == Protocol.UDP and not key.mark for key in found.served)
    if datagrams and facts.no_path_mtu == 0:
        yield Finding(
            Level.OK,
            "MTU",
            "this node's own UDP datagrams to a Service fail (EMSGSIZE) if they are larger than the MTU; pods' do not",
            "have programs of the node send smaller ones, see the troubleshooting page",
        )


def _judge_connections(facts: Checkup) -> Iterator[Finding]:
    """Judge whether IPVS finds its connections fast; from Linux 7.1 on, the table grows with them."""
    if facts.connection_buckets is None:
        return
    connections, factor = facts.connections or 0, facts.load_factor
    text = f"its table has {facts.connection_buckets:,} buckets"
    if connections <= CROWDED * facts.connection_buckets:
        yield Finding(Level.OK, "IPVS", f"{text} for {several(connections, 'connection')}")
        return
    remedy = "load the module with a larger table: options ip_vs conn_tab_bits=20 in /etc/modprobe.d"
    if factor is not None and factor > 0:
        remedy = f"sysctl -w net.ipv4.vs.conn_lfactor=-4: with {factor} the table stays that small"
    yield Finding(
        Level.WARNING, "IPVS", f"{text} for {several(connections, 'connection')}: looking one up gets slow", remedy
    )


def judge_agent(found: Survey, state: NodeState | str) -> Iterator[Finding]:
    """Judge who keeps the tables, and how they do; ``state`` is what the agent tells, or why it does not."""
    if found.kube_proxy is not None:
        text = f"{found.kube_proxy} is running on this node"
        level = Level.PROBLEM if found.agent else Level.OK
        remedy = "two agents undo each other's work: take one of them off this node" if found.agent else ""
        yield Finding(level, "kube-proxy", text, remedy)
    if isinstance(state, str):
        remedy = state if found.agent else "start it, or see ipvs-proxy migrate check"
        yield Finding(
            Level.WARNING, "agent", "is running and does not answer" if found.agent else "is not running", remedy
        )
        return
    if not state.healthy:
        yield Finding(Level.PROBLEM, "agent", "is not healthy: changes wait for two sync periods", "look at its log")
    if state.api_failures:
        text = f"sees no changes of Services: nothing is heard of {state.api_failures[0]}"
        yield Finding(Level.WARNING, "agent", text, "look at the API server, and at the agent's token and rights")
    if state.waiting:
        named = ", ".join(state.refused[:3])
        text = f"the kernel refuses {several(state.waiting, 'object')}, tried again and again: {named}"
        yield Finding(Level.PROBLEM, "agent", text, "its log has the kernel's answers (operation_failed)")
    if state.conflicts:
        text = f"{several(state.conflicts, 'virtual server')} claimed by more than one Service: the oldest has it"
        yield Finding(Level.WARNING, "agent", text, "its log names them (conflict)")
    if state.repairs:
        last = state.repairs[0]
        text = f"it had to repair {last.what} ({', '.join(last.objects)}): somebody else changes the kernel's tables"
        yield Finding(Level.WARNING, "agent", text, "ipvs-proxy status lists the last repairs")
    if state.healthy and not state.waiting:
        served = several(state.service_count, "Service")
        yield Finding(Level.OK, "agent", f"ipvs-proxy {state.version} is healthy, with {served}")
