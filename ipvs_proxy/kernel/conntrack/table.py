"""The kernel's table of tracked flows: finding those that somebody wants gone, and deleting them.

A table may hold a million flows, so only what a caller wants to keep is kept while it is read. Flows come and go all
the time: what a dump gives was true when it passed, and deleting a flow that is gone already is a success. A flow is
deleted with its identity, so one that took its place meanwhile stays.
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

#: A dump is taken so many times while the kernel says that its table changed meanwhile; then the last one has to do.
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
        """Return the socket back."""
        self._socket.close()

    def read(self, family: Family, protocol: int, *, keep: Callable[[Flow], bool]) -> list[Flow]:
        """Return the flows of a family and an IP protocol that ``keep`` wants; it is asked before ``zone`` and ``id``.

        A flow that cannot be understood is left out.

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
        """Delete flows; return for each 0, also if it was gone already, the errno of its failure, or UNKNOWN.

        Raises:
            ValueError: if something is no flow; nothing is deleted then.

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
    if error.errno in {EINVAL, EOPNOTSUPP}:  # nfnetlink's answer about a subsystem that nobody has registered
        return MissingPiece("the kernel has no conntrack netlink", "load the module nf_conntrack_netlink")
    if error.errno == EPERM:
        return MissingPiece("tracked flows may not be read or deleted", "run as root with the capability CAP_NET_ADMIN")
    return error
