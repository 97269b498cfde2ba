"""A small cluster of network namespaces on one host, for tests and the demo.

::

    client ----+                          +---- pod1 10.244.1.1  fd00:10:244:1::1
               |                          |
    peer  ---- node (the agent runs here) +---- pod2 10.244.1.2  fd00:10:244:1::2
      |        192.0.2.1                  |
      |                                   +---- pod3 10.244.1.3  fd00:10:244:1::3
     pod4 10.244.2.4  fd00:10:244:2::4

``node`` routes between all of them; pods hang on veth pairs of their own, as with a routed pod network. ``peer`` is
another node with a pod. ``client`` is outside the cluster. Every default route leads to the node, and so do Service
addresses.

Starting a process is slow in an emulated machine. So one ``ip`` process sets up each namespace, and clients and servers
are threads of the caller that open their sockets in the namespace.

With a tunnel, packets between ``pod4`` and the node's pods travel inside packets between ``node`` and ``peer``, as with
network plugins that build an overlay.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pyroute2.netlink.generic.wireguard import WireGuard

from lab.namespaces import enter_network

FAMILIES = ("IPv4", "IPv6")
PODS = ("pod1", "pod2", "pod3")
CLUSTER_CIDR = "10.244.0.0/16,fd00:10:244::/48"
#: The networks of the node's pods.
POD_CIDRS = {"IPv4": "10.244.1.0/24", "IPv6": "fd00:10:244:1::/64"}

#: The addresses of each place, by family.
ADDRESSES = {
    "node": {"IPv4": "192.0.2.1", "IPv6": "fd00:2::1"},
    "client": {"IPv4": "198.51.100.9", "IPv6": "fd00:51::9"},
    "peer": {"IPv4": "203.0.113.2", "IPv6": "fd00:113::2"},
    "pod1": {"IPv4": "10.244.1.1", "IPv6": "fd00:10:244:1::1"},
    "pod2": {"IPv4": "10.244.1.2", "IPv6": "fd00:10:244:1::2"},
    "pod3": {"IPv4": "10.244.1.3", "IPv6": "fd00:10:244:1::3"},
    "pod4": {"IPv4": "10.244.2.4", "IPv6": "fd00:10:244:2::4"},
}
#: What each place is connected to; ``node`` is the hub.
_UPLINKS = {"client": "node", "peer": "node", "pod1": "node", "pod2": "node", "pod3": "node", "pod4": "peer"}

#: The ``ip link`` arguments of each kind of tunnel, by the family that it carries: one link may carry both.
TUNNELS = {
    "vxlan": {"both": "vxlan id 42 remote {IPv4[1]} local {IPv4[0]} dstport 4789"},
    "vxlan over IPv6": {"both": "vxlan id 42 remote {IPv6[1]} local {IPv6[0]} dstport 8472"},
    "geneve": {"both": "geneve id 42 remote {IPv4[1]} dstport 6081"},
    "ipip": {
        "IPv4": "ipip remote {IPv4[1]} local {IPv4[0]}",
        "IPv6": "sit remote {IPv4[1]} local {IPv4[0]}",
    },
    "ip6tnl": {"both": "ip6tnl mode any remote {IPv6[1]} local {IPv6[0]}"},
    "gre": {"both": "gre remote {IPv4[1]} local {IPv4[0]}"},
    "wireguard": {"both": "wireguard"},
}
#: Link-local addresses of the two ends of a tunnel.
_LINK_LOCAL = {"node": "fe80::77:1", "peer": "fe80::77:2"}
_WIREGUARD_PORT = 51820
#: Private and public key of each end. The private keys are 32 bytes of 1 and of 2, since nothing here is secret.
_WIREGUARD_KEYS = {
    "node": ("AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", "pOCSkrZRwni5dyxWn1+puxPZBrRqtoyd+dwrRAn4ogk="),
    "peer": ("AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=", "zo060cy2M+x7cMF4FKXHbs0CloUFDTRHRboFhw5YfVk="),
}

_PROTOCOLS = {
    "TCP": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "UDP": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "SCTP": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}


@dataclass(frozen=True, slots=True)
class Topology:
    """The namespaces of a running topology: their names, by place."""

    namespaces: dict[str, str]

    @contextmanager
    def inside(self, place: str) -> Iterator[None]:
        """Have this thread open its sockets, and start its processes, in a namespace."""
        with Path("/proc/thread-self/ns/net").open() as home:
            with Path("/run/netns", self.namespaces[place]).open() as namespace:
                enter_network(namespace.fileno())
            try:
                yield
            finally:
                enter_network(home.fileno())

    def run(self, place: str, *command: str, text: str | None = None) -> str:
        """Run a command in a namespace and return its output.

        Raises AssertionError with what the command wrote to standard error if it failed.
        """
        with self.inside(place):
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def connect(
        self, place: str, address: str, port: int, protocol: str = "TCP", timeout: float = 5.0
    ) -> socket.socket:
        """Open a connection (or a connected UDP socket) from a namespace."""
        kind, number = _PROTOCOLS[protocol]
        with self.inside(place):
            client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind, number)
        client.settimeout(timeout)
        try:
            client.connect((address, port))
        except OSError:
            client.close()
            raise
        return client

    def ask(self, place: str, address: str, port: int, protocol: str = "TCP", timeout: float = 5.0) -> tuple[str, str]:
        """Make one request; return the name of the place that answered and the source address that it saw."""
        with self.connect(place, address, port, protocol, timeout) as client:
            return exchange(client)


def exchange(client: socket.socket) -> tuple[str, str]:
    """Make a request on an open connection; return who answered and the source address that it saw."""
    client.sendall(b"who?")
    name, seen = client.recv(256).decode().split()
    return name, seen


@contextmanager
def topology(tunnel: str = "") -> Iterator[Topology]:
    """Make the namespaces, links, addresses and routes; remove everything at the end.

    ``tunnel`` is a key of ``TUNNELS``: that kind of tunnel carries what goes between ``pod4`` and the node's pods.
    """
    mark = os.urandom(3).hex()
    names = {place: f"ring-{mark}-{place}" for place in ADDRESSES}
    _ip([f"netns add {name}" for name in names.values()])
    try:
        _ip(_links(names))
        for place, name in names.items():
            _ip(_settings(place), namespace=name)
        net = Topology(names)
        for place in ("node", "peer"):
            with net.inside(place):
                for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
                    Path("/proc/sys/net", setting).write_text("1")
        if tunnel:
            for place, other in (("node", "peer"), ("peer", "node")):
                _ip(_tunnel(tunnel, place, other), namespace=names[place])
            if tunnel == "wireguard":
                _connect_wireguard(net)
        yield net
    finally:
        _ip([f"netns delete {name}" for name in names.values()], check=False)


@contextmanager
def server(net: Topology, place: str, address: str, port: int, protocol: str = "TCP") -> Iterator[None]:
    """Serve one address and port: the answer to each request is the place's name and the client's address."""
    with net.inside(place):
        listening = _listen(address, port, protocol)
    target = _answer_datagrams if protocol == "UDP" else _answer_streams
    threading.Thread(target=target, args=(listening, place), daemon=True).start()
    try:
        yield
    finally:
        _close(listening)


@contextmanager
def servers(net: Topology, places: tuple[str, ...], ports: dict[str, int]) -> Iterator[None]:
    """Serve a port for each protocol in several places, on their addresses of both families."""
    with ExitStack() as stack:
        for place in places:
            for protocol, port in ports.items():
                for address in ADDRESSES[place].values():
                    stack.enter_context(server(net, place, address, port, protocol))
        yield


def _listen(address: str, port: int, protocol: str) -> socket.socket:
    kind, number = _PROTOCOLS[protocol]
    server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind, number)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, port))
    if protocol != "UDP":
        server.listen(64)
    return server


def _close(server: socket.socket) -> None:
    with suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)
    server.close()


def _answer_datagrams(server: socket.socket, name: str) -> None:
    with suppress(OSError):
        while True:
            _, peer = server.recvfrom(256)
            if peer is None:  # shut down
                return
            server.sendto(f"{name} {peer[0]}".encode(), peer)


def _answer_streams(server: socket.socket, name: str) -> None:
    with suppress(OSError):
        while True:
            client, peer = server.accept()
            threading.Thread(target=_answer_stream, args=(client, f"{name} {peer[0]}"), daemon=True).start()


def _answer_stream(client: socket.socket, answer: str) -> None:
    with suppress(OSError), client:
        while client.recv(256):
            client.sendall(answer.encode())


def _links(names: dict[str, str]) -> list[str]:
    return [
        f"link add name uplink netns {names[place]} type veth peer name to-{place} netns {names[hub]}"
        for place, hub in _UPLINKS.items()
    ]


def _settings(place: str) -> list[str]:
    """Return the ``ip`` commands for one namespace.

    Every link of a hub has the hub's one address, which is the gateway of what hangs there: so it is also the address
    that a masqueraded packet gets, whichever way it leaves.
    """
    own = ADDRESSES[place]
    commands = ["link set lo up"]
    if place in _UPLINKS:
        gateway = ADDRESSES[_UPLINKS[place]]
        commands += [
            *_with_addresses("uplink", own),
            f"route add default via {gateway['IPv4']} dev uplink onlink",
            f"route add default via {gateway['IPv6']} dev uplink onlink",
        ]
    for other in (other for other, hub in _UPLINKS.items() if hub == place):
        link = f"to-{other}"
        commands += _with_addresses(link, own)
        for family in FAMILIES:
            near = ADDRESSES[other][family]
            commands.append(f"route add {near} dev {link}")
            commands += [
                f"route add {ADDRESSES[far][family]} via {near} dev {link} onlink"
                for far, far_hub in _UPLINKS.items()
                if far_hub == other
            ]
    return commands


def _tunnel(kind: str, place: str, other: str) -> list[str]:
    """Return the ``ip`` commands for one end of a tunnel, and the routes of the other's pods through it."""
    own, ends = ADDRESSES[place], {family: (ADDRESSES[place][family], ADDRESSES[other][family]) for family in FAMILIES}
    # With Ethernet inside, the other end is the gateway. Linux 6.1 refuses an IPv6 gateway that another link leads to.
    has_gateways = kind.startswith(("vxlan", "geneve"))
    gateways = {"IPv4": f"via {ADDRESSES[other]['IPv4']} onlink", "IPv6": f"via {_LINK_LOCAL[other]}"}
    commands = []
    for carried, arguments in TUNNELS[kind].items():
        link = f"tunnel-{carried.lower()}"
        commands += [f"link add {link} type {arguments.format(**ends)}", *_with_addresses(link, own)]
        if has_gateways:
            commands.append(f"address add {_LINK_LOCAL[place]}/64 dev {link} nodad")
        for pod, family in ((pod, family) for pod, hub in _UPLINKS.items() for family in FAMILIES):
            if pod.startswith("pod") and _UPLINKS[pod] == other and carried in {"both", family}:
                gateway = gateways[family] if has_gateways else ""
                commands.append(f"route replace {ADDRESSES[pod][family]} dev {link} {gateway}")
    return commands


def _connect_wireguard(net: Topology) -> None:
    """Give each end of a WireGuard tunnel its key, and the other's key and address."""
    for place, other in (("node", "peer"), ("peer", "node")):
        with net.inside(place), closing(WireGuard()) as wireguard:
            wireguard.set(
                "tunnel-both",
                private_key=_WIREGUARD_KEYS[place][0],
                listen_port=_WIREGUARD_PORT,
                peer={
                    "public_key": _WIREGUARD_KEYS[other][1],
                    "endpoint_addr": ADDRESSES[other]["IPv4"],
                    "endpoint_port": _WIREGUARD_PORT,
                    "allowed_ips": ["0.0.0.0/0", "::/0"],
                },
            )


def _with_addresses(link: str, own: dict[str, str]) -> list[str]:
    return [
        f"address add {own['IPv4']}/32 dev {link}",
        f"address add {own['IPv6']}/128 dev {link} nodad",
        f"link set {link} up",
    ]


def _ip(commands: list[str], *, namespace: str = "", check: bool = True) -> None:
    where = ["-n", namespace] if namespace else []
    done = subprocess.run(
        ["ip", *where, "-batch", "-"], input="\n".join(commands), capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, f"{done.stderr}\n{commands}"
