"""IPVS compared with what is known of it: what an audit asks again and again of a table that nearly always is right.

The invariant: of what is as it is known to be, nothing is kept; all else is named. Whatever is named may differ only
because it was written, or missed by a list, in the same moment: it has to be read again by itself.

IPv4 is asked through IPVS's older interface (``sockopt``), which takes fewer and shorter calls, everything else over
netlink.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from ipvs_proxy.kernel.ipvs.records import ListDifference
from ipvs_proxy.kernel.ipvs.table import Ipvs, TakeListed
from ipvs_proxy.plan.tables import RealServer, RealServerKey, Settings, VirtualServer, VirtualServerKey

if TYPE_CHECKING:
    from ipvs_proxy.kernel.ipvs.sockopt import QuickLook

#: The length of an address.
_IPV4: Final = 4


class Comparison:
    """Compares through ``ipvs``, which nobody else uses meanwhile. One thread at a time may use it."""

    def __init__(self, ipvs: Ipvs) -> None:
        self._ipvs = ipvs
        self._look: QuickLook | None = None

    def close(self) -> None:
        """Close the sockets."""
        self._ipvs.close()
        if self._look is not None:
            self._look.close()

    def compare_list(self, known: Mapping[VirtualServerKey, VirtualServer], *, ipv6: bool) -> ListDifference:
        """Compare all virtual servers, but not the real servers of those that are ``known``.

        Without ``ipv6``, those of IPv6 may be left out, which takes a tenth of the time where there are many.

        Raises:
            OSError: if the kernel refuses.
            MalformedMessage: if a reply is garbage.

        """
        present: set[VirtualServerKey] = set()
        wrong: set[VirtualServerKey] = set()
        unknown: dict[VirtualServerKey, VirtualServer] = {}

        def take(key: tuple[bytes, int, int, int], settings: Settings, number: int | None) -> None:
            # A plain tuple equals the named one that is the key.
            server = known.get(key)  # type: ignore[call-overload]
            if server is None:
                found = VirtualServer(VirtualServerKey(*key), *settings)
                unknown[found.key] = found
            elif server.settings == settings and number in (None, len(server.real_servers)):
                present.add(server.key)
            else:
                wrong.add(server.key)

        # Also where netlink lists all: only this one has the number of real servers.
        has_ipv4 = self._list_ipv4(take)
        whole = ipv6 or not has_ipv4
        if whole:
            self._ipvs.stream_list(take)
        for key, server in unknown.items():
            server.real_servers.update(self._ipvs.read_real_servers(key))
        missing = (key for key in known if key not in present or key in wrong)
        return ListDifference([key for key in missing if whole or len(key.address) == _IPV4], unknown, whole)

    def differing(self, servers: Iterable[VirtualServer]) -> list[VirtualServerKey]:
        """Return which of some virtual servers have other real servers than these; one that is gone has none.

        Raises as ``compare_list`` does.
        """
        look = self._quick_look()
        confirms = _cannot_tell if look is None else look.confirms
        return [
            server.key
            for server in servers
            if not confirms(server.key, server.real_servers)
            and self._ipvs.read_real_servers(server.key) != server.real_servers
        ]

    def _list_ipv4(self, take: TakeListed) -> bool:
        """Hand over what is listed of all virtual servers of IPv4; return whether that was possible."""
        look = self._quick_look()
        if look is None:
            return False
        try:
            for key, settings, number in look.list():
                take(key, settings, number)
        except OSError:
            return False
        return True

    def _quick_look(self) -> QuickLook | None:
        """Return what looks at IPv4; ``None`` if there is none."""
        # Only audits need it, and importing ctypes takes some milliseconds of a start.
        from ipvs_proxy.kernel.ipvs.sockopt import QuickLook  # noqa: PLC0415

        if self._look is None:
            with suppress(OSError):
                self._look = QuickLook(self._ipvs.traffic)
        return self._look


def _cannot_tell(_key: VirtualServerKey, _real_servers: Mapping[RealServerKey, RealServer]) -> bool:
    return False
