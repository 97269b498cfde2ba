"""A quick look at IPv4 virtual servers: IPVS's older interface, ``getsockopt`` with structures of linux/ip_vs.h.

At real servers it only ever confirms: "yes" means that the virtual server has exactly those that are expected, and
anything else (IPv6, tunnels, a refusal, one bit that differs) is "no", after which netlink reads what there is.

An audit asks this of every virtual server. Over netlink it takes three system calls and a message for each real server;
here it is one call that fills an array. With 10,000 virtual servers of 10 real servers, an audit takes half as long
(docs/performance.md).

The list of the virtual servers is one call too. Netlink sends it in pieces of 32 KiB, and for each the kernel walks
through its table from the start: with 50,000 virtual servers that takes 0.5 s, and this 20 ms.
"""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Iterator, Mapping
from functools import lru_cache
from struct import Struct
from typing import Final

from ipvs_proxy.kernel.ipvs.constants import FORWARDING_MASK
from ipvs_proxy.netlink.socket import MessageCounts
from ipvs_proxy.plan.marks import is_ours, mark_key
from ipvs_proxy.plan.tables import (
    ACTIVE,
    HASHED,
    PERSISTENT,
    Family,
    Protocol,
    RealServer,
    RealServerKey,
    Settings,
    VirtualServerKey,
)

_GET_INFORMATION: Final = 64 + 1024 + 64 + 1  # IP_VS_SO_GET_INFO
_GET_SERVICES: Final = 64 + 1024 + 64 + 2  # IP_VS_SO_GET_SERVICES
_GET_DESTINATIONS: Final = 64 + 1024 + 64 + 4  # IP_VS_SO_GET_DESTS

#: struct ip_vs_getinfo: version, size of the connection table, number of virtual servers of IPv4.
_INFORMATION: Final = Struct("@III")
#: struct ip_vs_get_services: number of virtual servers that there is room for.
_LIST: Final = Struct("@I 0Q")
#: struct ip_vs_service_entry: protocol, address, port, firewall mark, and its settings: scheduler, flags, timeout,
#: netmask; the number of real servers; then, not of interest here, struct ip_vs_stats_user.
_VIRTUAL_SERVER: Final = Struct("@H 2x 4s 2s 2x I 28s I 12x 0Q 16x 20x 0Q")
_VIRTUAL_SERVER_SETTINGS: Final = Struct("@16s I I 4s")
#: Virtual servers that may be added between the question how many there are and the list.
_MORE: Final = 64

#: struct ip_vs_get_dests: protocol, address, port, firewall mark, number of real servers that there is room for.
_QUESTION: Final = Struct("@H 2x 4s 2s I I 0Q")
#: struct ip_vs_dest_entry: address, port (in network order), and its settings: flags, weight, thresholds; then, not of
#: interest here, connections and struct ip_vs_stats_user.
_SETTINGS: Final = Struct("@IiII")
_REAL_SERVER: Final = Struct("@4s 2s 2x 16s 12x 0Q 12x 0Q 16x 20x 0Q")
_ADDRESS_LENGTH: Final = 4
#: The prefix length of a whole address.
_WHOLE: Final = 32
_PROTOCOLS: Final = frozenset(Protocol)
#: Bytes that hold the real servers of most virtual servers; the buffer grows for larger ones.
_FIRST_PLACE: Final = 4096
_EMPTY: Final = bytes(_REAL_SERVER.size)
#: How many different settings and ports are remembered; a table has a handful.
_REMEMBERED: Final = 1024


class QuickLook:
    """Confirms the real servers of IPv4 virtual servers, in the network namespace of the thread that makes it.

    One thread at a time may use it. ``traffic`` counts its questions.

    Raises:
        OSError: if there is no IPv4.

    """

    def __init__(self, traffic: MessageCounts) -> None:
        self._traffic = traffic
        # Any socket of IPv4 leads to the kernel's netfilter, which hands the question to IPVS.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._ask = ctypes.CDLL(None, use_errno=True).getsockopt
        self._ask.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
        self._length = ctypes.c_uint()
        self._length_place = ctypes.addressof(self._length)
        self._make_place(_FIRST_PLACE)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def confirms(self, key: VirtualServerKey, real_servers: Mapping[RealServerKey, RealServer]) -> bool:
        """Return whether a virtual server has exactly these real servers.

        False if it has others, if it does not exist, or if the kernel cannot be asked in this way (IPv6). One of IPv6
        beside them is not seen: the kernel leaves it out (``__ip_vs_get_dest_entries``).
        """
        if len(key.address) != _ADDRESS_LENGTH:
            return False
        # There is room for one more, so that one too many is seen. The kernel does not say how many there are: what it
        # does not write stays zero, which is no real server's address.
        places = len(real_servers) + 1
        size = _QUESTION.size + places * _REAL_SERVER.size
        if len(self._buffer) < size:
            self._make_place(2 * size)
        buffer = self._buffer
        buffer[:size] = bytes(size)
        _QUESTION.pack_into(buffer, 0, key.protocol, key.address, key.port.to_bytes(2, "big"), key.mark, places)
        self._length.value = size
        self._traffic.reads += 1
        self._traffic.system_calls += 1
        if self._ask(self._socket.fileno(), socket.IPPROTO_IP, _GET_DESTINATIONS, self._place, self._length_place):
            return False
        last = size - _REAL_SERVER.size
        # A plain tuple equals the named one that is the key, and is made in a third of the time.
        found = {
            (address, _port(port)): _settings(settings)
            for address, port, settings in _REAL_SERVER.iter_unpack(memoryview(buffer)[_QUESTION.size : last])
        }
        return found == real_servers and buffer[last:size] == _EMPTY

    def list(self) -> Iterator[tuple[tuple[bytes, int, int, int], Settings, int]]:
        """Return key, settings and number of real servers of each IPv4 virtual server that can be ours.

        The number counts those of IPv6, too, which ``confirms`` does not get to see.

        Raises:
            OSError: if the kernel refuses.

        """
        answer = self._socket.getsockopt(socket.IPPROTO_IP, _GET_INFORMATION, _INFORMATION.size)
        number = _INFORMATION.unpack(answer)[2] + _MORE
        size = _LIST.size + number * _VIRTUAL_SERVER.size
        buffer = bytearray(size)
        _LIST.pack_into(buffer, 0, number)
        self._length.value = size
        self._traffic.reads += 2
        self._traffic.system_calls += 2
        place = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        if self._ask(self._socket.fileno(), socket.IPPROTO_IP, _GET_SERVICES, place, self._length_place):
            raise OSError(ctypes.get_errno(), "IPVS does not list its virtual servers")
        entries = _VIRTUAL_SERVER.iter_unpack(memoryview(buffer)[_LIST.size :])
        for protocol, address, port, mark, settings, members in entries:
            if mark:
                if is_ours(mark):
                    yield mark_key(mark, Family.IPV4), _virtual_server_settings(settings), members
            elif protocol in _PROTOCOLS:
                yield (address, protocol, _port(port), 0), _virtual_server_settings(settings), members

    def _make_place(self, size: int) -> None:
        self._buffer = bytearray(size)
        self._place = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))


@lru_cache(_REMEMBERED)
def _port(field: bytes) -> int:
    return int.from_bytes(field, "big")


@lru_cache(_REMEMBERED)
def _virtual_server_settings(field: bytes) -> Settings:
    scheduler, flags, timeout, netmask = _VIRTUAL_SERVER_SETTINGS.unpack(field)
    length = int.from_bytes(netmask).bit_count()
    name = scheduler.rstrip(b"\0").decode(errors="replace")
    if not flags & PERSISTENT:
        return name, flags & ~HASHED, 0, None
    return name, flags & ~HASHED, timeout, None if length == _WHOLE else length


@lru_cache(_REMEMBERED)
def _settings(field: bytes) -> RealServer:
    """Return the settings, the usual ones as the shared value: what is the same object needs no comparison."""
    flags, weight, upper, lower = _SETTINGS.unpack(field)
    settings = RealServer(weight, flags & FORWARDING_MASK, upper, lower)
    return ACTIVE if settings == ACTIVE else settings
