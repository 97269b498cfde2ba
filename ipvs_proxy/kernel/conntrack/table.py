"""The kernel's table of tracked flows: finds those that are to go, and deletes them.

Only the very flow that was read is deleted: its identity goes with the message, so one that has taken its place since
stays. Flows come and go all the time, so a dump says what was there when it passed, and deleting a flow that is gone
already is a success. A table may hold a million flows: while it is read, only those that the caller asks for are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import EINVAL, ENOENT, EOPNOTSUPP, EPERM, EPROTONOSUPPORT
from types import TracebackType
from typing import Final, Self

from ipvs_proxy.kernel.conntrack import codec
from ipvs_proxy.netlink.errors import MissingPiece
from ipvs_proxy.netlink.socket import NETLINK_NETFILTER, NetlinkSocket
from ipvs_proxy.netlink.wire import MalformedMessage, Request
from ipvs_proxy.plan.flows import Flow
from ipvs_proxy.plan.tables import Family

#: How many times a dump is taken while the kernel says that its table changed meanwhile; then the last one has to do.
ATTEMPTS: Final = 5


class Conntrack:
    """Flows of the network namespace of the thread that makes this object. One thread at a time may use it.

    Raises:
        MissingPiece: if the kernel has no nfnetlink.

    """

    def __init__(self) -> None:
        try:
            self._socket = NetlinkSocket(NETLINK_NETFILTER)
        except OSError as error:
            if error.errno == EPROTONOSUPPORT:
                raise MissingPiece("the kernel has no nfnetlink", "load the module nfnetlink") from error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def read(self, family: Family, protocol: int, *, keep: Callable[[Flow], bool]) -> list[Flow]:
        """Return the flows of a family and an IP protocol for which ``keep`` is true; it sees them without zone and id.

        A flow that cannot be read is left out.

        Raises:
            MissingPiece: if the kernel has no conntrack netlink, or does not let us use it.
            OSError: if the kernel refuses otherwise.
            MalformedMessage: if the dump as a whole is garbage.

        """

        def wanted(flow: Flow) -> bool:
            return flow.protocol == protocol and keep(flow)

        try:
            return self._read(codec.encode_dump(family, protocol), wanted)
        except OSError as error:
            if error.errno not in {EINVAL, EOPNOTSUPP}:
                raise _explained(error) from error
        try:
            return self._read(codec.encode_dump(family, protocol, filtered=False), wanted)
        except OSError as error:
            raise _explained(error) from error

    def delete(self, flows: Sequence[Flow]) -> list[int]:
        """Delete flows; return 0 (also if it was gone already), the errno of its failure, or UNKNOWN for each.

        Raises:
            ValueError: if one cannot be named in full; nothing is deleted then.

        """
        results = self._socket.execute([codec.encode_delete(flow) for flow in flows])
        return [0 if result == ENOENT else result for result in results]

    def _read(self, request: Request, wanted: Callable[[Flow], bool]) -> list[Flow]:
        kept: list[Flow] = []

        def take(payload: bytes) -> None:
            try:
                flow = codec.decode_flow(payload, wanted)
            except MalformedMessage:
                return
            if flow is not None:
                kept.append(flow)

        for _ in range(ATTEMPTS):
            kept.clear()
            if self._socket.stream(request, take):
                break
        return kept


def _explained(error: OSError) -> OSError:
    if error.errno in {EINVAL, EOPNOTSUPP}:  # nfnetlink's answer for a subsystem that is not registered
        return MissingPiece("the kernel has no conntrack netlink", "load the module nf_conntrack_netlink")
    if error.errno == EPERM:
        return MissingPiece("tracked flows may not be read or deleted", "run as root with the capability CAP_NET_ADMIN")
    return error
