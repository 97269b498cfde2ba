"""The kernel's IPVS table: reads it, changes it, asks for its counters.

``read`` never takes a virtual server for missing that is there: it would be added again. One dump does not promise
that, because while somebody deletes virtual servers it can leave out others, and nothing shows it. So ``read`` ends
with a second list of the virtual servers and reads again until both agree.

The kernel dumps the real servers of one virtual server at a time, so reading takes one dump for the virtual servers and
one for each of them. Whoever knows the table asks for less (``comparison``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from errno import EEXIST, EINVAL, ENOENT, EPERM, EPROTONOSUPPORT, ESRCH
from typing import Final

from ipvs_proxy.kernel.ipvs import decode, encode
from ipvs_proxy.kernel.ipvs.constants import FAMILY_NAME
from ipvs_proxy.kernel.ipvs.records import (
    Connections,
    Counters,
    ForeignVirtualServer,
    IpvsTable,
    Observation,
    Timeouts,
)
from ipvs_proxy.netlink.errors import MissingPiece, Unusable
from ipvs_proxy.netlink.generic import decode_family, encode_get_family
from ipvs_proxy.netlink.socket import BATCH_MESSAGES, NETLINK_GENERIC, MessageCounts, NetlinkSocket
from ipvs_proxy.netlink.wire import Request
from ipvs_proxy.plan.tables import (
    IpvsOperation,
    Protocol,
    RealServer,
    RealServerKey,
    RealServerOperation,
    Settings,
    Verb,
    VirtualServer,
    VirtualServerKey,
    VirtualServerOperation,
)

#: How many times the table is read while somebody else adds and deletes virtual servers.
READ_ATTEMPTS: Final = 5

#: TEST-NET-2 of RFC 5737: no traffic goes there. kube-proxy probes with the same address and first port.
PROBE_ADDRESS: Final = bytes((198, 51, 100, 0))
_PROBE_PORTS: Final = range(20000, 20100)

#: Takes key and settings of a virtual server, and the number of its real servers if that was told; the key may be a
#: plain tuple.
TakeListed = Callable[[tuple[bytes, int, int, int], Settings, int | None], None]


class Ipvs:
    """IPVS of the network namespace of the thread that makes this object. One thread at a time may use it.

    Raises:
        MissingPiece: if the kernel has no IPVS, or does not let us use it.

    """

    def __init__(self, *, traffic: MessageCounts | None = None) -> None:
        self._socket = NetlinkSocket(NETLINK_GENERIC, traffic=traffic)
        self._family_id = self._find_family()

    @property
    def traffic(self) -> MessageCounts:
        """What was sent to the kernel so far."""
        return self._socket.traffic

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def read(self) -> IpvsTable:
        """Read the whole table.

        Raises:
            OSError: if the kernel refuses, or if virtual servers come and go during each attempt.
            MalformedMessage: if a reply is garbage.

        """
        listed = self._list()
        for _ in range(READ_ATTEMPTS):
            for key, server in listed.virtual_servers.items():
                server.real_servers.update(self.read_real_servers(key))
            again = self._list()
            if again.virtual_servers.keys() == listed.virtual_servers.keys():
                return IpvsTable(listed.virtual_servers, again.foreign)
            listed = again
        raise OSError(f"virtual servers came or went during each of {READ_ATTEMPTS} attempts to read them")

    def stream_list(self, take: TakeListed) -> None:
        """Hand over key and settings of all virtual servers that can be ours; it may miss some (see above).

        Raises:
            OSError: if the kernel refuses.
            MalformedMessage: if a reply is garbage.

        """

        def read(payload: bytes) -> None:
            listed = decode.decode_listed(payload)
            if listed is not None:
                take(*listed, None)
            elif isinstance(found := decode.decode_virtual_server(payload), VirtualServer):
                take(found.key, found.settings, None)

        # IPVS never says that its table changed during a dump, so the result says nothing.
        self._socket.stream(encode.encode_dump_virtual_servers(family_id=self._family_id), read)

    def read_virtual_servers(self) -> IpvsTable:
        """Read the virtual servers without real servers, in one dump: it may miss some (see above)."""
        return self._list()

    def read_one(self, key: VirtualServerKey) -> VirtualServer | None:
        """Read one virtual server with its real servers; ``None`` if it does not exist.

        Raises:
            OSError: if the kernel refuses.
            MalformedMessage: if a reply is garbage.

        """
        server = self._get(key)
        if server is not None:
            server.real_servers.update(self.read_real_servers(key))
        return server

    def read_real_servers(self, key: VirtualServerKey) -> dict[RealServerKey, RealServer]:
        """Read the real servers of a virtual server; none if it does not exist. Raises as ``read_one`` does."""
        address = key.address
        return dict(
            decode.decode_real_server(payload, virtual_address=address) for payload in self._dump_real_servers(key)
        )

    def connections(self, key: VirtualServerKey) -> dict[RealServerKey, Connections]:
        """Read the connections of each real server of a virtual server; none if it does not exist.

        Raises:
            OSError: if the kernel refuses.
            MalformedMessage: if a reply is garbage.

        """
        return dict(
            decode.decode_connections(payload, virtual_address=key.address) for payload in self._dump_real_servers(key)
        )

    def observe(self, key: VirtualServerKey, *, real_servers: bool = True) -> Observation | None:
        """Read one virtual server with its traffic, and that of its real servers; ``None`` if it does not exist.

        Raises:
            OSError: if the kernel refuses.
            MalformedMessage: if a reply is garbage.

        """
        reply = self._ask_for(key)
        server = None if reply is None else decode.decode_virtual_server(reply)
        if reply is None or not isinstance(server, VirtualServer):
            return None
        listed = self._dump_real_servers(key) if real_servers else []
        found = dict(decode.decode_activity(payload, virtual_address=key.address) for payload in listed)
        return Observation(server, decode.decode_balanced(reply), found)

    def read_counters(self) -> dict[VirtualServerKey, Counters]:
        """Read what each virtual server has balanced, in one dump: it may miss some (see above).

        Raises:
            OSError: if the kernel refuses.
            MalformedMessage: if a reply is garbage.

        """
        found: dict[VirtualServerKey, Counters] = {}

        def take(payload: bytes) -> None:
            counted = decode.decode_counters(payload)
            if counted is not None:
                key, counters = counted
                found[key] = counters

        # IPVS never says that its table changed during a dump, so the result says nothing.
        self._socket.stream(encode.encode_dump_virtual_servers(family_id=self._family_id), take)
        return found

    def apply(self, operations: Sequence[IpvsOperation]) -> list[int]:
        """Carry operations out in order; return 0, the errno of its failure, or UNKNOWN (-1) for each.

        EEXIST: it exists already. ESRCH: no such virtual server. ENOENT: no such real server, or no such scheduler.
        EINVAL: values that the kernel does not take, or that do not fit its types.
        """
        results: list[int] = []
        # A batch at a time: the messages of a large table would be 30 MiB at once.
        for start in range(0, len(operations), BATCH_MESSAGES):
            results += self._apply_batch(operations[start : start + BATCH_MESSAGES])
        return results

    def require_scheduler(self, name: str) -> None:
        """Make sure that the kernel has a scheduler; nothing is written if it is in use. Raises as the probe does."""
        in_use = self.read_virtual_servers().virtual_servers
        # A probe that broke off says nothing, and goes with the next one.
        is_probed = any(key.address == PROBE_ADDRESS for key in in_use)
        if is_probed or not any(server.scheduler == name for server in in_use.values()):
            self.probe_scheduler(name)

    def probe_scheduler(self, name: str) -> None:
        """Make sure that the kernel has a scheduler, with a virtual server that no traffic reaches.

        If an attempt before was cut short, its virtual server is still there; it is removed with this one.

        Raises:
            MissingPiece: if the kernel does not have it.
            Unusable: if there is no free port for the probe.
            OSError: if the kernel refuses for another reason.

        """
        unknown = MissingPiece(
            f"the kernel has no scheduler {name!r}", f"load the module ip_vs_{name} or choose another scheduler"
        )
        for port in _PROBE_PORTS:
            server = VirtualServer(VirtualServerKey(PROBE_ADDRESS, Protocol.TCP, port), name)
            (code,) = self.apply([VirtualServerOperation(Verb.ADD, server)])
            if code == EEXIST and self.read_one(server.key) != server:  # somebody's own: leave it alone
                continue
            if code in {ENOENT, EINVAL}:
                raise unknown
            if code not in {0, EEXIST}:
                raise OSError(code, f"probing the scheduler {name!r}: {_text_of(code)}")
            found = self._get(server.key)
            self.apply([VirtualServerOperation(Verb.DELETE, server)])
            # The kernel accepts "none", and then the virtual server schedules nothing.
            if found is None or found.scheduler != name or name == "none":
                raise unknown
            return
        raise Unusable(f"198.51.100.0 has virtual servers on all of the ports {_PROBE_PORTS[0]}-{_PROBE_PORTS[-1]}")

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Set how long connections without packets are kept; 0 leaves a timeout as it is.

        Raises:
            OSError: if the kernel refuses.

        """
        (code,) = self._socket.execute([encode.encode_set_timeouts(timeouts, family_id=self._family_id)])
        if code:
            raise OSError(code, f"setting the timeouts {timeouts}: {_text_of(code)}")

    def timeouts(self) -> Timeouts:
        """Read how long connections without packets are kept."""
        return decode.decode_timeouts(self._socket.ask(encode.encode_get_timeouts(family_id=self._family_id)))

    def version(self) -> str:
        """Read IPVS's version, such as ``1.2.1``."""
        return decode.decode_version(self._socket.ask(encode.encode_get_version(family_id=self._family_id)))

    def _apply_batch(self, operations: Sequence[IpvsOperation]) -> list[int]:
        encoded = self._encode(operations)
        requests = [request for request in encoded if request is not None]
        results = self._socket.execute(requests)
        if len(requests) == len(encoded):
            return results
        carried_out = iter(results)
        return [EINVAL if request is None else next(carried_out) for request in encoded]

    def _encode(self, operations: Sequence[IpvsOperation]) -> list[Request | None]:
        """Return each operation's message; ``None`` where the kernel's types cannot hold it."""
        family_id = self._family_id
        requests: list[Request | None] = []
        named: VirtualServerKey | None = None
        name = b""
        encode_real_server = encode.encode_real_server
        for operation in operations:
            try:
                if isinstance(operation, RealServerOperation):
                    if operation.virtual_server is not named:
                        name, named = encode.encode_key(operation.virtual_server), operation.virtual_server
                    requests.append(encode_real_server(operation, family_id=family_id, server=name))
                else:
                    requests.append(encode.encode_virtual_server(operation, family_id=family_id))
            except ValueError:
                requests.append(None)
        return requests

    def _list(self) -> IpvsTable:
        table = IpvsTable({}, [])
        for payload in self._socket.dump(encode.encode_dump_virtual_servers(family_id=self._family_id)):
            found = decode.decode_virtual_server(payload)
            if isinstance(found, ForeignVirtualServer):
                table.foreign.append(found)
            else:
                table.virtual_servers[found.key] = found
        return table

    def _get(self, key: VirtualServerKey) -> VirtualServer | None:
        reply = self._ask_for(key)
        found = None if reply is None else decode.decode_virtual_server(reply)
        return found if isinstance(found, VirtualServer) else None

    def _ask_for(self, key: VirtualServerKey) -> bytes | None:
        try:
            return self._socket.ask(encode.encode_get_virtual_server(key, family_id=self._family_id))
        except OSError as error:
            if error.errno == ESRCH:
                return None
            raise

    def _dump_real_servers(self, key: VirtualServerKey) -> list[bytes]:
        """Read the real servers of a virtual server; the kernel returns none if it does not exist."""
        return self._socket.dump(encode.encode_dump_real_servers(key, family_id=self._family_id))

    def _find_family(self) -> int:
        """Return the number of IPVS's generic-netlink family; asking for it makes the kernel load the module."""
        try:
            family_id = decode_family(self._socket.ask(encode_get_family(FAMILY_NAME)))
            # Anybody may ask for the family, only CAP_NET_ADMIN for IPVS itself.
            self._socket.ask(encode.encode_get_version(family_id=family_id))
        except OSError as error:
            self.close()
            if error.errno in {ENOENT, EPROTONOSUPPORT}:
                raise MissingPiece(
                    "the kernel has no IPVS", "load the module ip_vs, or use a kernel with CONFIG_IP_VS"
                ) from error
            if error.errno == EPERM:
                raise MissingPiece(
                    "IPVS may not be read or written", "run as root with the capability CAP_NET_ADMIN"
                ) from error
            raise
        return family_id


def _text_of(code: int) -> str:
    return os.strerror(code) if code > 0 else "no answer from the kernel"
