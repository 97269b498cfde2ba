"""The dummy links that carry the virtual servers' addresses, and the addresses on them.

There is one link, ``kube-ipvs0``, and only for more IPv4 addresses than it has room for there are further ones, which
are made when they are needed and deleted when they are empty (see ``placement``). All of them are ours by their names:
a dummy ``kube-ipvs7`` is taken over, whoever made it; a link of another kind that has such a name is somebody else's,
and its number is left out.

The links stay down: their addresses get local routes all the same, and setting a link down that was up would remove
every IPv6 address from it. Every call looks the first link up by its name first, which is one short question to the
kernel, so a link that somebody deleted and made again is not mistaken for the old one. Where the others are is known
from the last read; what is sent to one that is gone fails with ENODEV, which makes the caller read again.

A link is made with a message of our own, not through pyroute2: on a fresh node the first Services wait for it, and
would wait 0.1 s longer for the import.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import EADDRNOTAVAIL, EEXIST, EINVAL, ENODEV, EOPNOTSUPP, EPERM
from typing import Final

from ipvs_proxy.kernel.links.codec import (
    DUMMY,
    Link,
    decode_address,
    decode_link,
    encode_address,
    encode_delete_link,
    encode_dump_addresses,
    encode_dump_dummies,
    encode_get_link,
    encode_new_dummy,
)
from ipvs_proxy.kernel.links.placement import FIRST, Placement
from ipvs_proxy.netlink.errors import MissingPiece, Unusable
from ipvs_proxy.netlink.socket import NETLINK_ROUTE, MessageCounts, NetlinkSocket
from ipvs_proxy.netlink.wire import Request
from ipvs_proxy.plan.node_addresses import (
    ADDRESSES_OF_A_LINK,
    SERVICE_LINK,
    is_confined,
    service_link,
    service_link_number,
)
from ipvs_proxy.plan.tables import AddressOperation, Family, Verb

#: The name that kube-proxy uses, so that its link is taken over in place.
LINK: Final = SERVICE_LINK


class Addresses:
    """Our links, in the network namespace of the thread that makes this object. One thread at a time may use it.

    ``room`` is how many IPv4 addresses a link carries.
    """

    def __init__(self, *, room: int = ADDRESSES_OF_A_LINK, traffic: MessageCounts | None = None) -> None:
        self._room = room
        self._socket = NetlinkSocket(NETLINK_ROUTE, traffic=traffic, strict=True)
        #: As they were last read, with what was written since: our links by number, and what is on them.
        self._links: dict[int, Link] = {}
        self._placement = Placement(room)

    @property
    def traffic(self) -> MessageCounts:
        """What was sent to the kernel so far."""
        return self._socket.traffic

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def ensure_link(self) -> bool:
        """Create the first link if it is missing, and delete others that are empty; return whether it was missing.

        Raises:
            MissingPiece: if the kernel has no dummy links, or does not let us make one.
            Unusable: if a link of that name is not a dummy.
            OSError: if the kernel refuses for another reason.

        """
        self._delete_empty()
        if self.has_link():
            return False
        (code,) = self._socket.execute([encode_new_dummy(LINK)])
        if code == EOPNOTSUPP:
            raise MissingPiece(f"the kernel cannot make the dummy link {LINK}", "load the module dummy")
        if code == EPERM:
            raise MissingPiece(f"the link {LINK} may not be made", "run as root with the capability CAP_NET_ADMIN")
        if code == EEXIST:  # somebody else was faster
            return self.ensure_link()
        if code:
            raise OSError(code, f"the kernel refuses to make the dummy link {LINK}")
        return True

    def has_link(self) -> bool:
        """Return whether the first link exists.

        Raises:
            Unusable: if a link of that name is not a dummy: it is somebody else's.
            OSError: if the kernel refuses.

        """
        found = find_link(self._socket, LINK)
        if found is not None and found.kind != DUMMY:
            raise Unusable(
                f"the link {LINK} is {f'a {found.kind} link' if found.kind else 'no virtual link'}, not a dummy",
                f"rename or delete it (ip link delete {LINK})",
            )
        return found is not None

    def names(self) -> list[str]:
        """Return the names of our links that exist, the first one first.

        Raises:
            Unusable: if a link of the first one's name is not a dummy: it is somebody else's.
            OSError: if the kernel refuses.
            MalformedMessage: if a reply is garbage.

        """
        self.has_link()
        return [link.name for link in find_links(self._socket).values()]

    def delete_links(self) -> None:
        """Delete our links with all their addresses; that they are missing already is no error.

        Raises:
            Unusable: if a link of the first one's name is not a dummy: it is somebody else's.
            OSError: if the kernel refuses.
            MalformedMessage: if a reply is garbage.

        """
        self.has_link()
        for link in find_links(self._socket).values():
            self._delete(link)

    def read(self) -> set[bytes]:
        """Read the addresses of our links, whatever their prefix length; none if there is no link.

        Loopback and IPv6 link-local addresses are left out: they are never a virtual server's.

        Raises:
            OSError: if the kernel refuses.
            MalformedMessage: if a reply is garbage.

        """
        links = find_links(self._socket)
        placement = Placement(self._room)
        numbers = {}
        for number, link in links.items():
            placement.open(number)
            numbers[link.ifindex] = number
        # Of one link only its own are read; of several, in one go with those of all others.
        only = next(iter(numbers)) if len(numbers) == 1 else 0
        addresses: set[bytes] = set()
        for family in Family if links else ():
            try:
                payloads = self._socket.dump(encode_dump_addresses(family, ifindex=only))
            except OSError as error:
                if error.errno == ENODEV:  # gone since we looked
                    return set()
                raise
            for payload in payloads:
                ifindex, address, _ = decode_address(payload)
                # A kernel without strict checks returns the addresses of all links.
                if ifindex in numbers and not is_confined(address):
                    addresses.add(address)
                    placement.add(address, numbers[ifindex])
        self._links, self._placement = links, placement
        return addresses

    def apply(self, operations: Sequence[AddressOperation]) -> list[int]:
        """Carry operations out in order; return for each 0, the errno of its failure, or UNKNOWN (-1).

        An address is deleted from the links that have it, and added to the first that has room. EEXIST: the link has
        the address already. EADDRNOTAVAIL: it does not have the address to delete. ENODEV: there is no link. EINVAL:
        not an address.
        """
        try:
            first = find_link(self._socket, LINK)
            if first is None or first.kind != DUMMY:
                return [ENODEV] * len(operations)
            if self._links.get(FIRST) != first:  # another one than was read, or nothing was read yet
                self.read()
                self._links[FIRST] = first
            while self._placement.lacks_room(operations) and self._add_link():
                pass
        except OSError as error:
            return [error.errno or EINVAL] * len(operations)
        return self._send(operations)

    def _send(self, operations: Sequence[AddressOperation]) -> list[int]:
        results = [EINVAL] * len(operations)
        sent: list[tuple[int, int]] = []
        requests: list[Request] = []
        for index, operation in enumerate(operations):
            verb, address = operation
            adds = verb is Verb.ADD
            numbers = () if adds else self._placement.links_of(address)
            for number in numbers or (self._placement.choose(address),):
                try:
                    requests.append(encode_address(operation, ifindex=self._links[number].ifindex))
                except ValueError:
                    continue
                sent.append((index, number))
                results[index] = 0
                if adds:
                    self._placement.add(address, number)
        for (index, number), code in zip(sent, self._socket.execute(requests), strict=True):
            verb, address = operations[index]
            results[index] = results[index] or code
            if code not in {0, EEXIST} if verb is Verb.ADD else code in {0, EADDRNOTAVAIL}:
                self._placement.remove(address, number)
        return results

    def _add_link(self) -> bool:
        """Make the next link; return false if the kernel refuses: then the first one carries what has no room.

        Raises:
            OSError: if the kernel does not say what a link is.

        """
        number = FIRST
        while True:
            number += 1
            if number in self._links:
                continue
            (code,) = self._socket.execute([encode_new_dummy(service_link(number))])
            if code not in {0, EEXIST}:
                return False
            found = find_link(self._socket, service_link(number))
            if found is not None and found.kind == DUMMY:
                self._links[number] = found
                self._placement.open(number)
                return True

    def _delete_empty(self) -> None:
        for number in self._placement.empty:
            link = self._links.pop(number)
            self._placement.close(number)
            # Only while the name is still its own: somebody may have renamed it, and it is theirs then.
            if find_link(self._socket, link.name) == link:
                self._delete(link)

    def _delete(self, link: Link) -> None:
        (code,) = self._socket.execute([encode_delete_link(link.ifindex)])
        if code and code != ENODEV:
            raise OSError(code, f"the kernel refuses to delete the link {link.name}")


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


def find_links(socket: NetlinkSocket) -> dict[int, Link]:
    """Look for all of our links; return them by number, in its order.

    Raises:
        OSError: if the kernel refuses, or its links keep changing.
        MalformedMessage: if a reply is garbage.

    """
    found: dict[int, Link] = {}
    for link in map(decode_link, socket.dump(encode_dump_dummies())):
        number = service_link_number(link.name)
        if number is not None and link.kind == DUMMY:
            found[number] = link
    return dict(sorted(found.items()))
