"""``ipvs-proxy doctor``: what on this node keeps, or may keep, Services from working, each with its remedy.

Judging is pure. The facts come from ``node.inventory`` and ``node.host_facts``, and from the agent if one answers.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from typing import Final

from ipvs_proxy.commands import ask
from ipvs_proxy.commands.interference import interferences
from ipvs_proxy.commands.node_findings import Kind, find, finding_text
from ipvs_proxy.commands.text import document, several
from ipvs_proxy.kernel.filter.backend import NFTABLES
from ipvs_proxy.kernel.filter.foreign.rules import Effect
from ipvs_proxy.netlink.errors import Unusable
from ipvs_proxy.node.host_facts import HostFacts, read_host_facts
from ipvs_proxy.node.inventory import Inventory, take_inventory
from ipvs_proxy.plan.tables import Family, Protocol, family_of
from ipvs_proxy.state.documents import Document, NodeState

FINE, ERROR, PROBLEMS = 0, 1, 2
#: From this many virtual servers on, a kernel without estimator threads loses tens of milliseconds at a time to them.
MANY_ESTIMATORS: Final = 10_000
#: The API server's default of ``--service-node-port-range``.
NODE_PORTS: Final = (30000, 32767)
#: What follows if a chain drops by default, and what helps.
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
#: At most this many chains of others are named.
NAMED: Final = 5
#: From this many connections per bucket on, looking one up is slow.
CROWDED: Final = 16
_USUAL_SCHEDULER: Final = "rr"
_WIDTH: Final = 80


class Level(Enum):
    """How bad something is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Diagnosis(Document, frozen=True):
    """A fact of this node, how bad it is, and what to do about it."""

    level: Level
    topic: str
    text: str
    remedy: str = ""


#: How bad the findings are that ``migrate check`` has too.
_LEVELS: Final[Mapping[Kind, Level]] = {
    Kind.MISSING_PIECE: Level.PROBLEM,
    Kind.FAMILY_NOT_SERVED: Level.WARNING,
    Kind.FLAW: Level.PROBLEM,
    Kind.RULES_IN_OTHER_VARIANT: Level.PROBLEM,
    Kind.FOREIGN_VIRTUAL_SERVERS: Level.OK,
    Kind.IPVS_MODE: Level.PROBLEM,
    Kind.NO_KUBE_PROXY: Level.WARNING,
    Kind.CLEARED: Level.WARNING,
}


def examine(agent: str) -> list[Diagnosis]:
    """Look at this node. ``agent`` is where the agent answers: ``IP:port``.

    Raises:
        Unusable: if this is no Linux, or if tables may not be read here.
        OSError, ValueError: if the kernel refuses to be read, or gives garbage.

    """
    state = _state(agent)
    scheduler, strict_arp = (_USUAL_SCHEDULER, False) if isinstance(state, str) else (state.scheduler, state.strict_arp)
    found = take_inventory(scheduler=scheduler, strict_arp=strict_arp, ports=())
    facts = read_host_facts(found.iptables, [family for family in Family if family not in found.unsupported])
    return [*judge_kernel(found), *judge_host(found, facts), *judge_agent(found, state)]


def doctor(agent: str, output: str) -> int:
    """Print what is found; return the exit status: FINE, PROBLEMS (a warning is none), or ERROR with one line."""
    try:
        diagnoses = examine(agent)
    except (Unusable, OSError, ValueError) as error:
        sys.stderr.write(f"ipvs-proxy: error: {error}\n")
        return ERROR
    sys.stdout.write(diagnoses_text(diagnoses) if output == "text" else document(diagnoses, output))
    return PROBLEMS if any(diagnosis.level is Level.PROBLEM for diagnosis in diagnoses) else FINE


def _state(agent: str) -> NodeState | str:
    try:
        return ask.ask(agent, "/state", NodeState, limit=0)
    except ask.NoAnswer as error:
        return str(error)


def diagnoses_text(diagnoses: list[Diagnosis]) -> str:
    """Write what was found, the worst first, and how many problems and warnings that is."""
    ordered = sorted(diagnoses, key=lambda diagnosis: list(Level).index(diagnosis.level), reverse=True)
    level_width = max(len(level.value) for level in Level) + 2
    topic_width = max(len(diagnosis.topic) for diagnosis in ordered) + 2
    text = ""
    for diagnosis in ordered:
        start = f"{diagnosis.level.value:<{level_width}}{diagnosis.topic:<{topic_width}}"
        text += finding_text(start, diagnosis.text, diagnosis.remedy, width=_WIDTH)
    counted = {level: sum(diagnosis.level is level for diagnosis in ordered) for level in Level}
    total = f"{several(counted[Level.PROBLEM], 'problem')}, {several(counted[Level.WARNING], 'warning')}"
    return f"{text}\n{total}\n"


def judge_kernel(found: Inventory) -> Iterator[Diagnosis]:
    """Judge what the kernel offers, and how it is set."""
    chosen = found.iptables
    used = f"; {NFTABLES}, as {found.reason}" if found.packet_filter == NFTABLES else ""
    if chosen is not None:
        used = f"; iptables {chosen.version_text} ({chosen.backend})"
    yield Diagnosis(Level.OK, "kernel", f"Linux {_version_text(found)}{used}")
    for finding in find(found, beside=found.beside):
        yield Diagnosis(_LEVELS[finding.kind], finding.topic, finding.text, finding.remedy)
    for change in found.sysctls:
        name = change.dotted_name
        yield Diagnosis(
            Level.PROBLEM if found.agent else Level.WARNING,
            "sysctl",
            f"{name} is {change.found}, Services need {change.wanted}",
            f"sysctl -w {name}={change.wanted}, and look in /etc/sysctl.d for what sets it; an agent does at its start",
        )
    if not found.sysctls and not found.missing:
        yield Diagnosis(Level.OK, "sysctl", "all that Services need is set")


def _version_text(found: Inventory) -> str:
    return ".".join(map(str, found.kernel))


def judge_host(found: Inventory, facts: HostFacts) -> Iterator[Diagnosis]:
    """Judge what else is at work on the host."""
    if facts.link_manager:
        drop_in = (
            "[keyfile] unmanaged-devices=interface-name:kube-ipvs0 in /etc/NetworkManager/conf.d"
            if facts.link_manager == "NetworkManager"
            else "a .network file with [Match] Name=kube-ipvs0 and [Link] Unmanaged=yes in /etc/systemd/network"
        )
        text = f"{facts.link_manager} manages kube-ipvs0 and may take its addresses away"
        yield Diagnosis(Level.PROBLEM, "link", text, drop_in)
    for address, name in sorted(facts.twice.items()):
        yield Diagnosis(
            Level.PROBLEM,
            "addresses",
            f"{address} is on kube-ipvs0 and on {name}: every port of it that is no Service's is shut",
            f"take the address off {name}, or out of the Service",
        )
    # With strictARP it is among the settings that the agent sees to, and so among those of judge_kernel.
    if facts.announcers and facts.arp_ignore == 0 and not any("arp_ignore" in change.name for change in found.sysctls):
        yield Diagnosis(
            Level.PROBLEM,
            "ARP",
            f"{' and '.join(facts.announcers)} announces addresses, and this node answers ARP for all of kube-ipvs0",
            "set ipvs.strictARP: true",
        )
    yield from _judge_firewall(facts, _used(found))
    yield from _judge_chains(found)
    for one in interferences(found):
        level = Level.WARNING if one.effect is Effect.MARKS else Level.PROBLEM
        yield Diagnosis(level, one.table, one.text, one.remedy)
    if facts.bridge_calls_iptables == 0 and facts.bridges:
        yield Diagnosis(
            Level.WARNING,
            "bridge",
            "bridged packets pass by iptables: answers between pods of this node may not find their way back",
            "sysctl -w net.bridge.bridge-nf-call-iptables=1 if pods are on a bridge of this node",
        )
    yield from _judge_room(found, facts)
    yield from _judge_ipvs(found, facts)


def _judge_chains(found: Inventory) -> Iterator[Diagnosis]:
    """Judge what of others' tables of nftables decides before ours."""
    for chain in found.before_ours[:NAMED]:
        drops = chain.endswith("policy drop)")
        what = "what no rule in it accepts is dropped, whatever ours do" if drops else "it may lead them elsewhere"
        yield Diagnosis(
            Level.WARNING,
            "nftables",
            f"{chain} decides about connections to Services before our table: {what}",
            "accept the pods' networks and the ports of Services there" if drops else "give it a priority above -110",
        )
    if len(found.before_ours) > NAMED:
        more = f"{len(found.before_ours) - NAMED} more chains of others decide before our table"
        yield Diagnosis(Level.WARNING, "nftables", more, "nft list chains shows them")


def _judge_room(found: Inventory, facts: HostFacts) -> Iterator[Diagnosis]:
    """Judge whether there is room for connections, and for node ports."""
    if facts.conntrack_entries is not None and facts.conntrack_room:
        used = facts.conntrack_entries * 100 // facts.conntrack_room
        text = f"{facts.conntrack_entries:,} of {facts.conntrack_room:,} entries ({used} %)"
        full = Diagnosis(
            Level.PROBLEM, "conntrack", f"{text}: new connections will be dropped", "raise conntrack.maxPerCore"
        )
        yield full if used >= 90 else Diagnosis(Level.OK, "conntrack", text)
    if facts.local_ports is not None:
        first, last = facts.local_ports
        shared = [
            port
            for port in sorted(_node_ports(found))
            if first <= port <= last and not any(low <= port <= high for low, high in facts.reserved_ports)
        ]
        if shared:
            more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
            yield Diagnosis(
                Level.WARNING,
                "ports",
                f"net.ipv4.ip_local_port_range {first}-{last} has the node port {shared[0]}{more} in it: a connection "
                "of this node may take it as its source",
                f"sysctl -w net.ipv4.ip_local_reserved_ports={NODE_PORTS[0]}-{NODE_PORTS[1]}",
            )


def _node_ports(found: Inventory) -> set[int]:
    return {key.port for key in found.served if not key.mark and key.address not in found.tables.addresses}


def _used(found: Inventory) -> set[str]:
    """Return the families that Services use here, by their labels; all if there is no Service yet."""
    families = {family_of(key.address) for key in found.served} or set(Family)
    return {family.label for family in families}


def _judge_firewall(facts: HostFacts, used: Collection[str]) -> Iterator[Diagnosis]:
    for family, rules in facts.ahead.items():
        if family not in used:
            continue
        more = f" and {len(rules) - 1} more" if len(rules) > 1 else ""
        yield Diagnosis(
            Level.WARNING,
            "firewall",
            f"the {family} chain INPUT accepts before it comes to our rules: {rules[0]}{more}; such ports of this node "
            "are open at every address on kube-ipvs0",
            "append such rules instead of inserting them (iptables -A, not -I)",
        )
    if facts.firewalld:
        yield Diagnosis(
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
        yield Diagnosis(
            Level.WARNING,
            "firewall",
            f"the {family} chain {chain} drops by default: {what}",
            f"{remedy}, or set the policy to ACCEPT",
        )


def _judge_ipvs(found: Inventory, facts: HostFacts) -> Iterator[Diagnosis]:
    estimators = found.schedulers.total()
    if facts.run_estimation == 0:
        yield Diagnosis(
            Level.WARNING,
            "IPVS",
            "net.ipv4.vs.run_estimation is 0: the kernel counts no connections, packets and bytes, all rates are 0",
            "sysctl -w net.ipv4.vs.run_estimation=1 if you want them",
        )
    elif estimators >= MANY_ESTIMATORS and found.kernel < (6, 2):
        yield Diagnosis(
            Level.WARNING,
            "IPVS",
            f"{estimators:,} virtual servers are counted in one timer of Linux {_version_text(found)}: packets wait "
            "meanwhile",
            "use Linux 6.2 or later, or sysctl -w net.ipv4.vs.run_estimation=0, without traffic figures then",
        )
    yield from _judge_connections(facts)
    datagrams = any(key.protocol == Protocol.UDP and not key.mark for key in found.served)
    if datagrams and facts.no_path_mtu == 0:
        yield Diagnosis(
            Level.OK,
            "MTU",
            "this node's own UDP datagrams to a Service fail (EMSGSIZE) if they are larger than the MTU; pods' do not",
            "have programs of the node send smaller ones, see the troubleshooting page",
        )


def _judge_connections(facts: HostFacts) -> Iterator[Diagnosis]:
    """Judge whether IPVS finds its connections fast; from Linux 7.1 on, the table grows with them."""
    if facts.connection_buckets is None:
        return
    connections, factor = facts.connections or 0, facts.load_factor
    text = f"its table has {facts.connection_buckets:,} buckets"
    if connections <= CROWDED * facts.connection_buckets:
        yield Diagnosis(Level.OK, "IPVS", f"{text} for {several(connections, 'connection')}")
        return
    remedy = "load the module with a larger table: options ip_vs conn_tab_bits=20 in /etc/modprobe.d"
    if factor is not None and factor > 0:
        remedy = f"sysctl -w net.ipv4.vs.conn_lfactor=-4: with {factor} the table stays that small"
    yield Diagnosis(
        Level.WARNING, "IPVS", f"{text} for {several(connections, 'connection')}: looking one up gets slow", remedy
    )


def judge_agent(found: Inventory, state: NodeState | str) -> Iterator[Diagnosis]:
    """Judge who keeps the tables, and how they do; ``state`` is what the agent tells, or why it does not."""
    if found.kube_proxy is not None:
        text = f"{found.kube_proxy} is running on this node"
        together = found.agent and not found.beside
        level = Level.PROBLEM if together else Level.OK
        remedy = "two agents undo each other's work: take one of them off this node" if together else ""
        yield Diagnosis(level, "kube-proxy", text, remedy)
    if isinstance(state, str):
        remedy = state if found.agent else "start it, or see ipvs-proxy migrate check"
        yield Diagnosis(
            Level.WARNING, "agent", "is running and does not answer" if found.agent else "is not running", remedy
        )
        return
    if not state.healthy:
        yield Diagnosis(Level.PROBLEM, "agent", "is not healthy: changes wait for two sync periods", "look at its log")
    if state.api_failures:
        text = f"sees no changes of Services: nothing is heard of {state.api_failures[0]}"
        yield Diagnosis(Level.WARNING, "agent", text, "look at the API server, and at the agent's token and rights")
    if state.waiting:
        named = ", ".join(state.refused[:3])
        text = f"the kernel refuses {several(state.waiting, 'object')}, tried again and again: {named}"
        yield Diagnosis(Level.PROBLEM, "agent", text, "its log has the kernel's answers (operation_failed)")
    if state.conflicts:
        text = f"{several(state.conflicts, 'virtual server')} claimed by more than one Service: the oldest has it"
        yield Diagnosis(Level.WARNING, "agent", text, "its log names them (conflict)")
    if state.repairs:
        last = state.repairs[0]
        text = f"it had to repair {last.what} ({', '.join(last.objects)}): somebody else changes the kernel's tables"
        yield Diagnosis(Level.WARNING, "agent", text, "ipvs-proxy status lists the last repairs")
    if state.healthy and not state.waiting:
        served = several(state.service_count, "Service")
        some = f" of the label {state.service_proxy_name}" if state.service_proxy_name else ""
        yield Diagnosis(Level.OK, "agent", f"ipvs-proxy {state.version} is healthy, with {served}{some}")
