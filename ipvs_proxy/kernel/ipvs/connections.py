"""Which connections through IPVS can still carry data: ``/proc/net/ip_vs_conn``.

The counters of a real server do not tell. ``ip_vs_proto_tcp.c`` counts as inactive both a connection that is over and
waits for its timer (TIME_WAIT, two minutes) and one that one side has closed (FIN_WAIT, CLOSE_WAIT), where the other
side may go on sending. ``ip_vs_proto_sctp.c`` counts every state but ESTABLISHED as inactive. Only this table has the
states. It lists all connections of the network namespace, so reading it takes time in proportion to them.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

from ipvs_proxy.plan.tables import Protocol, RealServerKey, VirtualServerKey

#: The table of the reading thread's network namespace; it exists while IPVS is loaded.
TABLE: Final = Path("/proc/thread-self/net/ip_vs_conn")
#: States in which both sides have ended: TCP's, then SCTP's (``tcp_state_name_table``, ``sctp_state_name``).
_OVER: Final = frozenset((b"TIME_WAIT", b"CLOSE", b"SHUTDOWN_ACK_SENT", b"REJECTED", b"CLOSED"))
#: The client's port of an entry that is not a connection but the template for those of one client.
_TEMPLATE: Final = b"0000"

Target = tuple[VirtualServerKey, RealServerKey]
_Fields = tuple[bytes, ...]


def open_among(targets: Collection[Target], table: Path = TABLE) -> set[Target]:
    """Return those of some real servers, each of one virtual server, that have a connection that can still carry data.

    A connection through a firewall mark does not say which virtual server it belongs to: for such a virtual server any
    connection of the protocol to the real server counts.

    Raises:
        OSError: if the table cannot be read.

    """
    exact = {_fields_of(*target): target for target in targets if not target[0].mark}
    marked: dict[_Fields, list[Target]] = {}
    for marked_target in targets:
        if marked_target[0].mark:
            marked.setdefault(_real_server_fields(*marked_target), []).append(marked_target)
    found: set[Target] = set()
    with table.open("rb") as lines:
        for line in lines:
            fields = line.split(None, 8)
            if len(fields) < 8 or fields[7] in _OVER or fields[2] == _TEMPLATE:
                continue
            protocol, _, _, address, port, *real_server, _ = fields[:8]
            target = exact.get((protocol, address, port, *real_server))
            if target is not None:
                found.add(target)
            if marked:
                found.update(marked.get((protocol, *real_server), ()))
    return found


def _fields_of(virtual_server: VirtualServerKey, real_server: RealServerKey) -> _Fields:
    protocol, *rest = _real_server_fields(virtual_server, real_server)
    return protocol, _address(virtual_server.address), b"%04X" % virtual_server.port, *rest


def _real_server_fields(virtual_server: VirtualServerKey, real_server: RealServerKey) -> _Fields:
    protocol = Protocol(virtual_server.protocol).name.encode()
    return protocol, _address(real_server.address), b"%04X" % real_server.port


def _address(address: bytes) -> bytes:
    """Write an address as the table does: ``0A600001``, or ``fd00:0000:...`` in full."""
    return (address.hex().upper() if len(address) == 4 else address.hex(":", 2)).encode()
