"""The dummy link that carries the virtual servers' addresses, and the addresses on it.

Where they are very many, those of IPv4 beyond a number have a local route to the link instead (see ``placement``), with
a mark of our own. The kernel removes it with the link, as it does with addresses.

The link stays down: its addresses get local routes all the same, and setting a link down that was up would remove every
IPv6 address from it. Every call looks the link up by its name first, which is one short question to the kernel, so a
link that somebody deleted and made again is not mistaken for the old one.

The link is made with a message of our own, not through pyroute2: on a fresh node the first Services wait for it, and
would wait 0.1 s longer for the import.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import EADDRNOTAVAIL, EEXIST, EINVAL, ENODEV, ENOENT, EOPNOTSUPP, EPERM, ESRCH
from typing import Final

from ipvs_proxy.kernel.links.codec import (
    NAME_LENGTH,
    Link,
    decode_address,
    decode_link,
    decode_routes,
    encode_address,
    encode_delete_link,
    encode_dump_addresses,
    encode_dump_routes,
    encode_get_link,
    encode_new_dummy,
    encode_route,
)
from ipvs_proxy.kernel.links.placement import MOST_ADDRESSES, Place, Placement
from ipvs_proxy.netlink.errors import UNKNOWN, MissingPiece, Unusable
from ipvs_proxy.netlink.socket import NETLINK_ROUTE, MessageCounts, NetlinkSocket
from ipvs_proxy.netlink.wire import Request
from ipvs_proxy.plan.node_addresses import SERVICE_LINK, is_confined
from ipvs_proxy.plan.tables import AddressOperation, Family, Verb

#: The name that kube-proxy uses, so that its link is taken over in place.
LINK: Final = SERVICE_LINK


class Addresses:
    """One dummy link, in the network namespace of the thread that makes this object. One thread at a time may use it.

    ``most`` is the number of IPv4 addresses from which on local routes are made instead.

    Raises:
        ValueError: if no link can have the name.

    """

    def __init__(self, link: str = LINK, *, most: int = MOST_ADDRESSES, traffic: MessageCounts | None = None) -> None:
        if not 0 < len(link.encode()) <= NAME_LENGTH:
            raise ValueError(f"{link!r} is no link's name: it needs 1 to {NAME_LENGTH} bytes")
        self.link = link
        self._most = most
        self._socket = NetlinkSocket(NETLINK_ROUTE, traffic=traffic, strict=True)
        #: What was read last, with what was written since, and the link that it was read of.
        self._placement = Placement(most)
        self._ifindex = 0

    @property
    def traffic(self) -> MessageCounts:
        """What was sent to the kernel so far."""
        return self._socket.traffic

    @property
    def has_routes(self) -> bool:
        """Whether some of what was read or written are routes."""
        return bool(self._placement.routes)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def ensure_link(self) -> bool:
        """Create the link if it is missing; return whether it was.

        Raises:
            MissingPiece: if the kernel has no dummy links, or does not let us make one.
            Unusable: if a link of that name is not a dummy.
            OSError: if the kernel refuses for another reason.

        """
        found = self._find()
        if found is not None:
            self._require_dummy(found)
            return False
        (code,) = self._socket.execute([encode_new_dummy(self.link)])
        if code == EOPNOTSUPP:
            raise MissingPiece(f"the kernel cannot make the dummy link {self.link}", "load the module dummy")
        if code == EPERM:
            raise MissingPiece(f"the link {self.link} may not be made", "run as root with the capability CAP_NET_ADMIN")
        if code == EEXIST:  # somebody else was faster
            return self.ensure_link()
        if code:
            raise OSError(code, f"the kernel refuses to make the dummy link {self.link}")
        return True

    def has_link(self) -> bool:
        """Return whether the link exists.

        Raises:
            Unusable: if a link of that name is not a dummy: it is somebody else's.
            OSError: if the kernel refuses.

        """
        found = self._find()
        if found is not None:
            self._require_dummy(found)
        return found is not None

    def delete_link(self) -> None:
        """Delete the link with all its addresses; that it is missing already is no error.

        Raises:
            Unusable: if a link of that name is not a dummy: it is somebody else's.
            OSError: if the kernel refuses.

        """
        found = self._find()
        if found is None:
            return
        self._require_dummy(found)
        (code,) = self._socket.execute([encode_delete_link(found.ifindex)])
        if code and code != ENODEV:
            raise OSError(code, f"the kernel refuses to delete the link {self.link}")

    def read(self) -> set[bytes]:
        """Read the addresses of the link, whatever their prefix length, and those that have a route; none without link.

        Loopback and IPv6 link-local addresses are left out: they are never a virtual server's.

        Raises:
            OSError: if the kernel refuses.
            MalformedMessage: if a reply is garbage.

        """
        found = self._find()
        if found is None:
            return set()
        addresses, routes = set[bytes](), set[bytes]()
        try:
            for family in Family:
                for payload in self._socket.dump(encode_dump_addresses(family, ifindex=found.ifindex)):
                    ifindex, address, _ = decode_address(payload)
                    # A kernel without strict checks returns the addresses of all links.
                    if ifindex == found.ifindex and not is_confined(address):
                        addresses.add(address)
            # Nobody but an agent makes such routes, when the link is full: otherwise, where this one knows of none,
            # there are none.
            if found.ifindex != self._ifindex or self._placement.routes or len(addresses) >= self._most:
                routes = self._read_routes(found.ifindex)
        except OSError as error:
            if error.errno == ENODEV:  # gone since we looked
                return set()
            raise
        self._placement = Placement(self._most, addresses, routes)
        self._ifindex = found.ifindex
        return addresses | routes

    def apply(self, operations: Sequence[AddressOperation]) -> list[int]:
        """Carry operations out in order; return for each 0, the errno of its failure, or UNKNOWN (-1).

        EEXIST: the link has the address already. EADDRNOTAVAIL: it does not have the address to delete. ENODEV: there
        is no link. EINVAL: not an address.
        """
        try:
            found = self._find()
            if found is not None and found.ifindex != self._ifindex:  # what it has decides on where a new one goes
                self.read()
        except OSError as error:
            return [error.errno or EINVAL] * len(operations)
        if found is None:
            return [ENODEV] * len(operations)
        had_addresses = bool(self._placement.addresses)
        results = [EINVAL] * len(operations)
        sent: list[tuple[int, Place]] = []
        requests: list[Request] = []
        for index, operation in enumerate(operations):
            for place in self._placement.places(operation):
                encode = encode_address if place is Place.ADDRESS else encode_route
                try:
                    requests.append(encode(operation, ifindex=found.ifindex))
                except ValueError:
                    continue
                sent.append((index, place))
                results[index] = 0
                self._placement.note(operation.address, place, present=operation.verb is Verb.ADD)
        for (index, place), code in zip(sent, self._socket.execute(requests), strict=True):
            is_fault = code not in {0, EEXIST, ESRCH, EADDRNOTAVAIL}
            if is_fault or not results[index]:
                results[index] = EADDRNOTAVAIL if code == ESRCH else code
            if is_fault:
                # What may be there is taken to be there, so that it is deleted.
                present = code == UNKNOWN or operations[index].verb is Verb.DELETE
                self._placement.note(operations[index].address, place, present=present)
        if had_addresses and not self._placement.addresses:
            self._restore_routes(found.ifindex)
        return results

    def _restore_routes(self, ifindex: int) -> None:
        """Add all routes again: with the last IPv4 address of a link, the kernel removes them (``fib_disable_ip``).

        What is refused is found missing by the next read.
        """
        operations = [AddressOperation(Verb.ADD, address) for address in self._placement.routes]
        self._socket.execute([encode_route(operation, ifindex=ifindex) for operation in operations])

    def _read_routes(self, ifindex: int) -> set[bytes]:
        """Read the addresses that have a route of ours to the link."""
        try:
            payloads = self._socket.dump(encode_dump_routes(ifindex))
        except OSError as error:
            if error.errno == ENOENT:  # no link has had an IPv4 address yet, so there is no table
                return set()
            raise
        return decode_routes(payloads, ifindex=ifindex)

    def _find(self) -> Link | None:
        return find_link(self._socket, self.link)

    def _require_dummy(self, found: Link) -> None:
        if found.kind != "dummy":
            raise Unusable(
                f"the link {self.link} is {f'a {found.kind} link' if found.kind else 'no virtual link'}, not a dummy",
                f"rename or delete it (ip link delete {self.link})",
            )


def find_link(socket: NetlinkSocket, name: str) -> Link | None:
    """Look a link up by its name; ``None`` if there is none.

    Raises:
        OSError: if the kernel refuses.

    """
    try:
        return decode_link(socket.ask(encode_get_link(name)))
    except OSError as error:
        if error.errno == ENODEV:
            return None
        raise
