"""Services that ask for schedulers, weights and limits; clients with many connections, and who has got them."""

from __future__ import annotations

import re
import selectors
import socket
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final, NamedTuple, cast

from lab import manifests
from lab.manifests import TARGET_PORTS, endpoint
from lab.topology import ADDRESSES, FAMILIES, Topology

#: The zone of each pod.
ZONES: Final = {"pod1": "zone-a", "pod2": "zone-b", "pod3": "zone-c"}
#: Networks all of whose addresses the client has, beside its own.
CLIENTS: Final = {"IPv4": "198.51.101", "IPv6": "fd00:51:1:"}
#: The first source port of many connections. A port that is used again may meet the connection that it had before.
FIRST_PORT: Final = 10_000
#: Connections that a server holds that nobody accepts.
_BACKLOG: Final = 16_384
_OPERATIONS: Final = re.compile(r'^ipvs_proxy_operations_total\{result="success",table="(\w+)",verb="(\w+)"\} (\d+)')


class Entry(NamedTuple):
    """A connection through IPVS: its client, the place that has got it, and its state."""

    address: str
    port: int
    place: str
    state: str


def vips_of(number: int) -> dict[str, str]:
    """Return the cluster IPs of a Service by its number."""
    return {"IPv4": f"10.96.4.{number}", "IPv6": f"fd00:10:96::4:{number}"}


def service(
    name: str, number: int, annotations: Mapping[str, str] | None = None, protocols: tuple[str, ...] = ("TCP",)
) -> dict[str, Any]:
    """Return a dual-stack Service; its annotations are named without our prefix."""
    found = manifests.service(name, *vips_of(number).values(), protocols=protocols)
    found["metadata"]["annotations"] = {f"ipvs-proxy.io/{key}": text for key, text in (annotations or {}).items()}
    return found


def slices(
    name: str,
    *pods: str,
    protocols: tuple[str, ...] = ("TCP",),
    annotations: Mapping[str, Mapping[str, str]] | None = None,
) -> list[dict[str, Any]]:
    """Return EndpointSlices with one pod each; ``annotations`` are those of a pod's slices, with their whole names."""
    found = []
    for pod in pods:
        of_pod = [endpoint(address) | {"zone": ZONES[pod]} for address in ADDRESSES[pod].values()]
        for piece in manifests.slices(name, of_pod, protocols):
            piece["metadata"]["name"] += f"-{pod}"
            piece["metadata"]["annotations"] = dict((annotations or {}).get(pod, {}))
            found.append(piece)
    return found


def give_client_addresses(net: Topology) -> None:
    """Give the client whole networks of addresses."""
    networks = {"IPv4": f"{CLIENTS['IPv4']}.0/24", "IPv6": f"{CLIENTS['IPv6']}:/64"}
    net.run("client", "sysctl", "-qw", "net.ipv6.ip_nonlocal_bind=1")
    for family in FAMILIES:
        net.run("client", "ip", "route", "add", "local", networks[family], "dev", "lo")
        net.run(
            "node", "ip", "route", "add", networks[family],
            "via", ADDRESSES["client"][family], "dev", "to-client", "onlink",
        )  # fmt: skip


def client_address(family: str, number: int) -> str:
    """Return one of the client's many addresses."""
    return f"{CLIENTS[family]}.{number}" if family == "IPv4" else f"{CLIENTS[family]}:{number}"


@contextmanager
def listening(
    net: Topology, *pods: str, port: int = TARGET_PORTS["TCP"]
) -> Iterator[dict[tuple[str, str], socket.socket]]:
    """Listen in pods, by pod and family. Connections are open without anybody who accepts them."""
    with ExitStack() as stack:
        found = {}
        for pod in pods:
            net.run(pod, "sysctl", "-qw", f"net.core.somaxconn={_BACKLOG}")
            for family, address in ADDRESSES[pod].items():
                with net.inside(pod):
                    found[pod, family] = stack.enter_context(
                        socket.create_server(
                            (address, port),
                            family=socket.AF_INET6 if family == "IPv6" else socket.AF_INET,
                            backlog=_BACKLOG,
                        )
                    )
        yield found


@contextmanager
def answering(net: Topology, *pods: str) -> Iterator[None]:
    """Answer each request in pods with the pod's name, all in one thread: starting one for each takes longer."""
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for (pod, _), one in stack.enter_context(listening(net, *pods)).items():
            selector.register(one, selectors.EVENT_READ, pod)
        stop, stopped = socket.socketpair()
        selector.register(stopped, selectors.EVENT_READ, "")
        thread = threading.Thread(target=_answer, args=(selector,))
        thread.start()
        try:
            yield
        finally:
            stop.close()
            thread.join()
            for key in list(selector.get_map().values()):
                cast("socket.socket", key.fileobj).close()


def _answer(selector: selectors.BaseSelector) -> None:
    while True:
        for key, _ in selector.select():
            one, pod = cast("socket.socket", key.fileobj), key.data
            if not pod:
                return
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                selector.register(one.accept()[0], selectors.EVENT_READ, pod)
                continue
            with suppress(OSError):
                if one.recv(256):
                    one.sendall(f"{pod} -".encode())
                    continue
            selector.unregister(one)
            one.close()


@contextmanager
def connections(
    net: Topology, vip: str, sources: Iterable[tuple[str, int]], place: str = "client"
) -> Iterator[list[socket.socket]]:
    """Open a connection from each source, one after another; close them at the end."""
    with ExitStack() as stack:
        found = []
        with net.inside(place):
            for source in sources:
                client = stack.enter_context(socket.socket(socket.AF_INET6 if ":" in vip else socket.AF_INET))
                client.settimeout(10)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.bind(source)
                client.connect((vip, manifests.PORTS["TCP"]))
                found.append(client)
        yield found


def entries(net: Topology, vip: str) -> list[Entry]:
    """Return the connections to an address as ``ipvsadm -Lnc`` lists them."""
    places = {address: place for place, of_place in ADDRESSES.items() for address in of_place.values()}
    found = []
    for line in net.run("node", "ipvsadm", "-Lnc").splitlines()[2:]:
        _, _, state, source, virtual, destination = line.split()
        if _split(virtual)[0] == vip:
            found.append(Entry(*_split(source), places[_split(destination)[0]], state))
    return found


def shares(net: Topology, vip: str) -> Counter[str]:
    """Return how many connections to an address each place has."""
    return Counter(entry.place for entry in entries(net, vip))


def saved(net: Topology, vip: str) -> str:
    """Return what ``ipvsadm -Sn`` says of the virtual servers at an address, without the address and port."""
    shown = f"[{vip}]" if ":" in vip else vip
    lines = [line for line in net.run("node", "ipvsadm", "-Sn").splitlines() if f" {shown}:" in line]
    return "\n".join(re.sub(rf" -[tu] {re.escape(shown)}:\d+", "", line).strip() for line in lines)


def operations(net: Topology) -> Counter[tuple[str, str]]:
    """Return how many messages have changed each table, by what they do."""
    with net.inside("node"), urllib.request.urlopen("http://127.0.0.1:10249/metrics") as response:
        found = [_OPERATIONS.match(line) for line in response.read().decode().splitlines()]
    return Counter({(match[1], match[2]): int(match[3]) for match in found if match})


def done_since(net: Topology, before: Counter[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """Return how many messages have changed each table since then."""
    return operations(net) - before


def _split(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    return address.strip("[]"), int(port)
