"""What each kind of Service and each field leads to in the kernel, as ``ipvsadm``, ``ipset`` and ``ip`` show it.

One agent has all cases at once. Each case has addresses and ports of its own, made from its number, so what the kernel
holds of it can be told from the rest: ``{n}`` in what is expected is that number. Endpoints are named by where they
run: ``here`` is a pod of the node, ``there`` one of the peer.

``kinds.state`` is all that the kernel holds of them together. When that is meant to change, it is recorded again:
``.venv/bin/python -m lab .venv/bin/python -m tests.ring.test_kinds > tests/ring/kinds.state``.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lab import manifests
from lab.agent import Agent, eventually, running_agent
from lab.manifests import endpoint
from lab.packet_filter import IPTABLES, saved_sets
from lab.topology import ADDRESSES, Topology, topology
from tests.ring.kernel_state import kernel_state

HERE, THERE = ADDRESSES["pod1"]["IPv4"], ADDRESSES["pod4"]["IPv4"]
ALSO_HERE = ADDRESSES["pod2"]["IPv4"]
HERE6, THERE6 = ADDRESSES["pod1"]["IPv6"], ADDRESSES["pod4"]["IPv6"]
NODE, NODE6 = ADDRESSES["node"]["IPv4"], ADDRESSES["node"]["IPv6"]
ZONE = "zone-a"
RECORDED = Path(__file__).with_name("kinds.state")


@dataclass(frozen=True)
class Case:
    """A Service, its endpoints, and everything that the kernel holds of it."""

    spec: dict[str, Any] = field(default_factory=dict)
    ports: tuple[dict[str, Any], ...] = ({},)
    endpoints: tuple[dict[str, Any], ...] = (endpoint(HERE),)
    expected: str = ""
    ingress: tuple[dict[str, Any], ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    slice_fields: dict[str, Any] = field(default_factory=dict)
    more_slices: tuple[dict[str, Any], ...] = ()


CLUSTER = """
VS 10.96.3.{n}:80/TCP rr
RS 10.96.3.{n}:80/TCP 10.244.1.1:{t} 1
SET KUBE-CLUSTER-IP 10.96.3.{n},tcp:80
SET KUBE-IPVS-IPS 10.96.3.{n}
SET KUBE-LOOP-BACK 10.244.1.1,tcp:{t},10.244.1.1
ADDRESS 10.96.3.{n}
"""
#: The same with an endpoint of the peer, which is in no hairpin set.
REMOTE = CLUSTER.replace("10.244.1.1", "10.244.2.4").replace("SET KUBE-LOOP-BACK 10.244.2.4,tcp:{t},10.244.2.4\n", "")
EMPTY = """
VS 10.96.3.{n}:80/TCP rr
SET KUBE-CLUSTER-IP 10.96.3.{n},tcp:80
SET IPVS-PROXY-NO-ENDPOINT 10.96.3.{n},tcp:80
SET KUBE-IPVS-IPS 10.96.3.{n}
ADDRESS 10.96.3.{n}
"""
NODE_PORT = f"""
VS {NODE}:{{p}}/TCP rr
RS {NODE}:{{p}}/TCP 10.244.1.1:{{t}} 1
SET KUBE-NODE-PORT-TCP {{p}}
"""
BALANCED = """
VS 203.0.112.{n}:80/TCP rr
RS 203.0.112.{n}:80/TCP 10.244.1.1:{t} 1
SET KUBE-LOAD-BALANCER 203.0.112.{n},tcp:80
SET KUBE-IPVS-IPS 203.0.112.{n}
ADDRESS 203.0.112.{n}
"""
HINTED = (
    endpoint(HERE) | {"hints": {"forZones": [{"name": "zone-b"}]}},
    endpoint(THERE, "peer") | {"hints": {"forZones": [{"name": ZONE}]}},
)
#: The pod itself is in the hairpin set whatever is chosen.
HAIRPIN = "SET KUBE-LOOP-BACK 10.244.1.1,tcp:{t},10.244.1.1\n"

CASES = {
    "a cluster IP": Case(expected=CLUSTER),
    "a cluster IP of both families": Case(
        {
            "clusterIPs": ["10.96.3.{n}", "fd00:10:96::3:{n}"],
            "ipFamilies": ["IPv4", "IPv6"],
        },
        endpoints=(endpoint(HERE), endpoint(THERE6, "peer")),
        expected=CLUSTER
        + """
VS [fd00:10:96::3:{n}]:80/TCP rr
RS [fd00:10:96::3:{n}]:80/TCP [fd00:10:244:2::4]:{t} 1
SET KUBE-6-CLUSTER-IP fd00:10:96::3:{n},tcp:80
SET KUBE-6-IPVS-IPS fd00:10:96::3:{n}
ADDRESS fd00:10:96::3:{n}
""",
    ),
    "the families in the other order": Case(
        {
            "clusterIP": "fd00:10:96::3:{n}",
            "clusterIPs": ["fd00:10:96::3:{n}", "10.96.3.{n}"],
            "ipFamilies": ["IPv6", "IPv4"],
        },
        expected=CLUSTER
        + """
VS [fd00:10:96::3:{n}]:80/TCP rr
SET KUBE-6-CLUSTER-IP fd00:10:96::3:{n},tcp:80
SET IPVS-PROXY-6-NO-ENDPOINT fd00:10:96::3:{n},tcp:80
SET KUBE-6-IPVS-IPS fd00:10:96::3:{n}
ADDRESS fd00:10:96::3:{n}
""",
    ),
    "a headless Service": Case({"clusterIP": "None", "clusterIPs": ["None"]}),
    "an ExternalName": Case({"type": "ExternalName", "externalName": "example.org"}),
    "a Service of another proxy, by a label without value": Case(
        labels={"service.kubernetes.io/service-proxy-name": ""}
    ),
    "a node port": Case({"type": "NodePort"}, ({"nodePort": "{p}"},), expected=CLUSTER + NODE_PORT),
    "a node port of UDP": Case(
        {"type": "NodePort"},
        ({"nodePort": "{p}", "protocol": "UDP"},),
        expected=(CLUSTER + NODE_PORT).replace("TCP", "UDP").replace("tcp", "udp"),
    ),
    "a node port of SCTP": Case(
        {"type": "NodePort"},
        ({"nodePort": "{p}", "protocol": "SCTP"},),
        expected=(
            CLUSTER + NODE_PORT.replace("SET KUBE-NODE-PORT-TCP {p}", f"SET KUBE-NODE-PORT-SCTP-HASH {NODE},sctp:{{p}}")
        )
        .replace("TCP", "SCTP")
        .replace("tcp", "sctp"),
    ),
    "a node port of a Service of type ClusterIP": Case({}, ({"nodePort": "{p}"},), expected=CLUSTER + NODE_PORT),
    "a node port with the policy Local": Case(
        {"type": "NodePort", "externalTrafficPolicy": "Local"},
        ({"nodePort": "{p}"},),
        (endpoint(HERE), endpoint(THERE, "peer")),
        expected=CLUSTER
        + NODE_PORT
        + f"""
RS 10.96.3.{{n}}:80/TCP 10.244.2.4:{{t}} 1
SET KUBE-NODE-PORT-LOCAL-TCP {{p}}
SET IPVS-PROXY-INTERNAL {NODE},tcp:{{p}} skbmark
FWM rr
RS FWM 10.244.1.1:{{t}} 1
RS FWM 10.244.2.4:{{t}} 1
""",
    ),
    "a load balancer": Case({"type": "LoadBalancer"}, ingress=({"ip": "203.0.112.{n}"},), expected=CLUSTER + BALANCED),
    "an ingress address of mode VIP": Case(
        {"type": "LoadBalancer"}, ingress=({"ip": "203.0.112.{n}", "ipMode": "VIP"},), expected=CLUSTER + BALANCED
    ),
    "an ingress address of mode Proxy": Case(
        {"type": "LoadBalancer"}, ingress=({"ip": "203.0.112.{n}", "ipMode": "Proxy"},), expected=CLUSTER
    ),
    "an ingress that is a host name": Case(
        {"type": "LoadBalancer"}, ingress=({"hostname": "lb.example"},), expected=CLUSTER
    ),
    "an ingress address of a Service of type ClusterIP": Case(
        ingress=({"ip": "203.0.112.{n}"},), expected=CLUSTER + BALANCED
    ),
    "a load balancer without node port": Case(
        {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": False},
        ingress=({"ip": "203.0.112.{n}"},),
        expected=CLUSTER + BALANCED,
    ),
    "a load balancer with the policy Local": Case(
        {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": "{h}"},
        endpoints=(endpoint(THERE, "peer"),),
        ingress=({"ip": "203.0.112.{n}"},),
        expected=REMOTE
        + BALANCED.replace("RS 203.0.112.{n}:80/TCP 10.244.1.1:{t} 1\n", "")
        + """
SET KUBE-LOAD-BALANCER-LOCAL 203.0.112.{n},tcp:80
SET KUBE-HEALTH-CHECK-NODE-PORT {h}
SET IPVS-PROXY-INTERNAL 203.0.112.{n},tcp:80 skbmark
SET IPVS-PROXY-NO-LOCAL 203.0.112.{n},tcp:80
FWM rr
RS FWM 10.244.2.4:{t} 1
""",
    ),
    "source ranges": Case(
        {
            "type": "LoadBalancer",
            "loadBalancerSourceRanges": [" 198.51.100.0/24", "203.0.113.7/32", "10.1.2.3/8", "2001:db8::/32"],
        },
        ingress=({"ip": "203.0.112.{n}"},),
        expected=CLUSTER
        + BALANCED
        + """
SET KUBE-LOAD-BALANCER-FW 203.0.112.{n},tcp:80
SET KUBE-LOAD-BALANCER-SOURCE-CIDR 203.0.112.{n},tcp:80,198.51.100.0/24
SET KUBE-LOAD-BALANCER-SOURCE-CIDR 203.0.112.{n},tcp:80,203.0.113.7
SET KUBE-LOAD-BALANCER-SOURCE-CIDR 203.0.112.{n},tcp:80,10.0.0.0/8
""",
    ),
    "source ranges with the node's address in one": Case(
        {"type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0/24"]},
        ingress=({"ip": "203.0.112.{n}"},),
        expected=CLUSTER
        + BALANCED
        + """
SET KUBE-LOAD-BALANCER-FW 203.0.112.{n},tcp:80
SET KUBE-LOAD-BALANCER-SOURCE-CIDR 203.0.112.{n},tcp:80,192.0.2.0/24
SET KUBE-LOAD-BALANCER-SOURCE-IP 203.0.112.{n},tcp:80,203.0.112.{n}
""",
    ),
    "source ranges of which one is everybody": Case(
        {"type": "LoadBalancer", "loadBalancerSourceRanges": ["198.51.100.0/24", "0.0.0.0/0"]},
        ingress=({"ip": "203.0.112.{n}"},),
        expected=CLUSTER + BALANCED,
    ),
    "an external IP": Case(
        {"externalIPs": ["203.0.114.{n}", "2001:db8::1", "not-an-address", ""]},
        expected=CLUSTER + BALANCED.replace("203.0.112", "203.0.114").replace("KUBE-LOAD-BALANCER", "KUBE-EXTERNAL-IP"),
    ),
    "an external IP that is the node's": Case(
        {"externalIPs": [NODE]},
        ({"port": "{p}"},),
        expected=(
            CLUSTER.replace(":80", ":{p}")
            + NODE_PORT.replace("SET KUBE-NODE-PORT-TCP {p}", f"SET KUBE-EXTERNAL-IP {NODE},tcp:{{p}}")
        ),
    ),
    "an external IP with the policy Local": Case(
        {"externalIPs": ["203.0.114.{n}"], "externalTrafficPolicy": "Local"},
        expected=CLUSTER
        + BALANCED.replace("203.0.112", "203.0.114").replace("KUBE-LOAD-BALANCER", "KUBE-EXTERNAL-IP-LOCAL")
        + """
SET IPVS-PROXY-INTERNAL 203.0.114.{n},tcp:80 skbmark
FWM rr
RS FWM 10.244.1.1:{t} 1
""",
    ),
    "the external policy of a Service that nobody outside reaches": Case(
        {"externalTrafficPolicy": "Local"}, expected=CLUSTER
    ),
    "session affinity": Case(
        {
            "type": "LoadBalancer",
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}},
        },
        ({"nodePort": "{p}"},),
        ingress=({"ip": "203.0.112.{n}"},),
        expected=(CLUSTER + BALANCED + NODE_PORT).replace(" rr", " rr persistent 600"),
    ),
    "session affinity without a timeout": Case(
        {"sessionAffinity": "ClientIP"}, expected=CLUSTER.replace(" rr", " rr persistent 10800")
    ),
    "ports joined by name and protocol": Case(
        {},
        ({"name": "http"}, {"name": "alt", "port": 81}, {"name": "dns", "protocol": "UDP", "port": 53}),
        expected=CLUSTER
        + """
VS 10.96.3.{n}:81/TCP rr
RS 10.96.3.{n}:81/TCP 10.244.1.1:{t} 1
VS 10.96.3.{n}:53/UDP rr
SET KUBE-CLUSTER-IP 10.96.3.{n},tcp:81
SET KUBE-CLUSTER-IP 10.96.3.{n},udp:53
SET IPVS-PROXY-NO-ENDPOINT 10.96.3.{n},udp:53
""",
        slice_fields={
            "ports": [
                {"name": "http", "port": "{t}", "protocol": "TCP"},
                {"name": "alt", "port": "{t}", "protocol": "TCP"},
                {"name": "dns", "port": "{t}", "protocol": "TCP"},
            ]
        },
    ),
    "no endpoint": Case(endpoints=(), expected=EMPTY),
    "an endpoint with all conditions unknown": Case(
        endpoints=({"addresses": [HERE], "nodeName": "node"},), expected=CLUSTER
    ),
    "only the first address of an endpoint": Case(
        endpoints=({"addresses": [HERE, "10.244.1.99"], "nodeName": "node"},), expected=CLUSTER
    ),
    "an endpoint that is not ready": Case(
        endpoints=(endpoint(THERE, "peer"), endpoint(HERE, ready=False)), expected=REMOTE + HAIRPIN
    ),
    "terminating endpoints that serve, beside a ready one": Case(
        endpoints=(endpoint(THERE, "peer"), endpoint(HERE, ready=False, serving=True, terminating=True)),
        expected=REMOTE + HAIRPIN,
    ),
    "terminating endpoints that serve, and no other": Case(
        endpoints=(
            endpoint(THERE, "peer", ready=False, serving=False, terminating=True),
            endpoint(HERE, ready=False, serving=True, terminating=True),
        ),
        expected=CLUSTER,
    ),
    "one address in two slices, terminating in one": Case(
        endpoints=(endpoint(HERE),),
        more_slices=({"endpoints": [endpoint(HERE, ready=False, serving=True, terminating=True)]},),
        expected=CLUSTER,
    ),
    "two slices": Case(
        endpoints=(endpoint(HERE),),
        more_slices=({"endpoints": [endpoint(THERE, "peer")]},),
        expected=CLUSTER + "RS 10.96.3.{n}:80/TCP 10.244.2.4:{t} 1",
    ),
    "a slice of host names beside one of addresses": Case(
        endpoints=(endpoint(HERE),),
        more_slices=({"addressType": "FQDN", "endpoints": [{"addresses": ["pod.example"]}]},),
        expected=CLUSTER,
    ),
    "a slice port without number or name": Case(
        slice_fields={"ports": [{"name": "http", "protocol": "TCP"}, {"port": 1, "protocol": "TCP"}]}, expected=EMPTY
    ),
    "the internal policy Local": Case(
        {"internalTrafficPolicy": "Local"}, endpoints=(endpoint(HERE), endpoint(THERE, "peer")), expected=CLUSTER
    ),
    "the internal policy Local without a local endpoint": Case(
        {"internalTrafficPolicy": "Local", "type": "NodePort"},
        ({"nodePort": "{p}"},),
        endpoints=(endpoint(THERE, "peer"),),
        expected=EMPTY.replace("NO-ENDPOINT", "NO-LOCAL") + NODE_PORT.replace("10.244.1.1", "10.244.2.4"),
    ),
    "zone hints": Case(endpoints=HINTED, expected=REMOTE + HAIRPIN),
    "zone hints that one endpoint lacks": Case(
        endpoints=(HINTED[0], endpoint(THERE, "peer")),
        expected=CLUSTER + "RS 10.96.3.{n}:80/TCP 10.244.2.4:{t} 1",
    ),
    "zone hints of which none is this zone": Case(
        endpoints=(HINTED[0],),
        expected=CLUSTER,
    ),
    "node hints": Case(
        endpoints=(
            endpoint(HERE) | {"hints": {"forNodes": [{"name": "node"}], "forZones": [{"name": "zone-b"}]}},
            endpoint(THERE, "peer") | {"hints": {"forNodes": [{"name": "peer"}], "forZones": [{"name": ZONE}]}},
        ),
        expected=CLUSTER,
    ),
    "hints do not matter to the policy Local": Case(
        {"internalTrafficPolicy": "Local"},
        endpoints=(HINTED[0], endpoint(ALSO_HERE) | {"hints": {"forZones": [{"name": ZONE}]}}),
        expected=CLUSTER
        + """
RS 10.96.3.{n}:80/TCP 10.244.1.2:{t} 1
SET KUBE-LOOP-BACK 10.244.1.2,tcp:{t},10.244.1.2
""",
    ),
}
NUMBERS = {name: number for number, name in enumerate(CASES, 10)}


def numbered(value: Any, number: int) -> Any:
    """Put a case's number into its addresses and ports."""
    ports = {"{p}": 31000 + number, "{t}": 9000 + number, "{h}": 32000 + number}
    if isinstance(value, dict):
        return {key: numbered(item, number) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [numbered(item, number) for item in value]
    if isinstance(value, str):
        return ports[value] if value in ports else value.replace("{n}", str(number))
    return value


def write_case(directory: Path, name: str) -> None:
    case, number = CASES[name], NUMBERS[name]
    service = manifests.service(f"case-{number}", f"10.96.3.{number}")
    service["metadata"]["labels"] = case.labels
    service["spec"] |= numbered(case.spec, number)
    service["spec"]["ports"] = [
        {"name": "http", "port": 80, "protocol": "TCP"} | numbered(port, number) for port in case.ports
    ]
    service["status"] = {"loadBalancer": {"ingress": numbered(case.ingress, number)}}
    ports = [
        {"name": port["name"], "port": 9000 + number, "protocol": port["protocol"]} for port in service["spec"]["ports"]
    ]
    slices = manifests.slices(f"case-{number}", list(case.endpoints))
    for piece in slices:
        piece.update({"ports": ports} | numbered(case.slice_fields, number))
    slices += [
        slices[0] | more | {"metadata": slices[0]["metadata"] | {"name": f"case-{number}-more-{index}"}}
        for index, more in enumerate(case.more_slices)
    ]
    manifests.write(directory, f"case-{number}", service, *slices)


def write_all(directory: Path) -> None:
    node = manifests.node()
    node["metadata"]["labels"] = {"topology.kubernetes.io/zone": ZONE}
    manifests.write(directory, "node", node)
    for name in CASES:
        write_case(directory, name)


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with topology() as net:
        yield net


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("manifests")
    write_all(directory)
    return directory


@pytest.fixture(scope="module")
def agent(net: Topology, directory: Path) -> Iterator[Agent]:
    with running_agent(net, directory) as agent:
        yield agent


@pytest.fixture(scope="module")
def witnessed(net: Topology, agent: Agent) -> list[str]:
    """Everything that the tools show, a line each."""
    assert agent.named("started")
    return witness(net)


def witness(net: Topology) -> list[str]:
    lines = []
    flags = {"-t": "TCP", "-u": "UDP", "--sctp-service": "SCTP"}
    for line in net.run("node", "ipvsadm", "-Sn").splitlines():
        words = line.split()
        key = f"mark {words[2]}" if words[1] == "-f" else f"{words[2]}/{flags[words[1]]}"
        if words[0] == "-A":
            persistent = f" persistent {words[words.index('-p') + 1]}" if "-p" in words else ""
            lines.append(f"VS {key} {words[words.index('-s') + 1]}{persistent}")
        else:
            lines.append(f"RS {key} {words[words.index('-r') + 1]} {words[words.index('-w') + 1]}")
    lines += [f"SET {line.removeprefix('add ')}" for line in saved_sets(net)]
    shown = net.run("node", "ip", "-o", "address", "show", "dev", "kube-ipvs0").splitlines()
    return lines + [f"ADDRESS {line.split()[3].split('/')[0]}" for line in shown]


def of_case(lines: list[str], number: int) -> set[str]:
    """Return what belongs to a case: lines with one of its addresses or ports; marks without their number."""
    own = re.compile(
        rf"(10\.96\.3|203\.0\.11[24])\.{number}\b|fd00:10:96::3:{number}\b|:{9000 + number}\b|\b{31000 + number}\b|\b{32000 + number}\b"
    )
    mine = {line for line in lines if own.search(line)}
    marks = {
        f"mark {int(line.rsplit(' ', 1)[1].split('/')[0], 16)}"
        for line in mine
        if line.startswith("SET IPVS-PROXY-INTERNAL")
    }
    mine |= {line for line in lines if any(mark in line.split(" rr")[0] and line.startswith("VS") for mark in marks)}
    # A test of its own looks at the bits of the marks.
    mine = {line for line in mine if "-MARK-0x" not in line}
    cleaned = set()
    for line in mine:
        cleaned.add(
            re.sub(r"^VS mark \d+", "FWM", re.sub(r"^RS mark \d+", "RS FWM", re.sub(r"skbmark .*", "skbmark", line)))
        )
    return cleaned


@pytest.mark.parametrize("name", CASES)
def test_kernel_holds_what_a_service_asks_for(witnessed: list[str], name: str) -> None:
    number = NUMBERS[name]
    text = CASES[name].expected
    for key, value in {"{n}": number, "{t}": 9000 + number, "{p}": 31000 + number, "{h}": 32000 + number}.items():
        text = text.replace(key, str(value))
    assert of_case(witnessed, number) == {line for line in text.splitlines() if line}


@pytest.mark.packet_filter(IPTABLES)
def test_the_sets_of_bits_have_the_addresses_and_ports_of_the_marks(witnessed: list[str]) -> None:
    members = [line.split() for line in witnessed if line.startswith("SET IPVS-PROXY-")]
    marks = {
        member: int(mark.split("/")[0], 16)
        for _, name, member, *rest in members
        if name.endswith("INTERNAL")
        for mark in rest[1:]
    }
    spelled = dict.fromkeys(marks, 0x2000)
    for _, name, member, *_ in members:
        if "-MARK-0x" in name:
            spelled[member] |= int(name.rsplit("-", 1)[1], 16)
    assert marks
    assert spelled == {member: mark & ~3 for member, mark in marks.items()}


@pytest.mark.packet_filter(IPTABLES)
def test_the_kernel_holds_what_was_recorded_to_the_last_byte(net: Topology, agent: Agent) -> None:
    assert agent.named("started")
    found, recorded = kernel_state(net).splitlines(), RECORDED.read_text().splitlines()
    if not Path("/proc/sys/net/bridge").exists():
        # Without br_netfilter three rules have a shorter text (see ``iptables.render``).
        recorded = [line.replace("-m physdev ! --physdev-is-in ", "") for line in recorded]
    assert set(found) - set(recorded) == set(), "it was not recorded"
    assert set(recorded) - set(found) == set(), "it was recorded and is missing"
    assert found == recorded, "the order has changed"


def test_a_restart_writes_nothing(net: Topology, directory: Path, agent: Agent) -> None:
    agent.stop()
    before = witness(net)
    with running_agent(net, directory) as again:
        started = again.named("started")[0]
        assert (started["operations"], started["kernel_writes"]) == (0, 0)
    assert witness(net) == before


def test_compatible_behaviour_has_one_list_for_all_clients(net: Topology, directory: Path) -> None:
    with running_agent(net, directory, "--compat", "kube-proxy"):
        # What the agent before this one had beside that is idle, and so goes within moments, each with its real servers.
        eventually(lambda: not [line for line in witness(net) if "IPVS-PROXY" in line or "mark" in line])
        lines = witness(net)
    number = NUMBERS["a load balancer with the policy Local"]
    assert f"RS 203.0.112.{number}:80/TCP 10.244.2.4:{9000 + number} 1" in lines
    number = NUMBERS["the internal policy Local without a local endpoint"]
    assert f"RS 10.96.3.{number}:80/TCP 10.244.2.4:{9000 + number} 1" in lines


def test_the_link_is_a_dummy_that_stays_down(net: Topology) -> None:
    printed = net.run("node", "ip", "-details", "link", "show", "dev", "kube-ipvs0")
    assert "dummy" in printed
    assert "state DOWN" in printed
    assert "NOARP" in printed


def record() -> None:
    """Write what the kernel holds to standard output."""
    with tempfile.TemporaryDirectory() as directory, topology() as net:
        write_all(Path(directory))
        with running_agent(net, Path(directory)):
            sys.stdout.write(kernel_state(net))


if __name__ == "__main__":
    record()
