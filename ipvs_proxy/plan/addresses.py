"""Addresses from API text to packed bytes.

The API has stored addresses of other spellings than today's validation accepts, and kube-proxy reads them leniently:
leading zeros of an IPv4 octet are decimal, not octal. The same text must lead to the same address here.
"""

from __future__ import annotations

import re
from socket import AF_INET, AF_INET6, inet_pton

from ipvs_proxy.plan.tables import Family

_IPV4 = re.compile(r"\.".join([r"([0-9]{1,16})"] * 4))
_MAPPED = bytes(10) + b"\xff\xff"
#: The first byte of every address that is special in its family or maps one of the other; some ordinary addresses
#: begin like that, too.
_PERHAPS_SPECIAL = frozenset((0, 127, *range(224, 240), 0xFE, 0xFF))


def parse_address(text: str) -> bytes | None:
    """Return an IP address packed (4 or 16 bytes, network order), or ``None`` if the text is not an address.

    An IPv4-mapped IPv6 address is the IPv4 address it maps, as in Go's ``net.ParseIP``. Zone identifiers are refused: a
    Service address is not bound to an interface.
    """
    try:
        # Ten times as fast as the pattern below, which only gets what the C library refuses.
        if ":" not in text:
            return inet_pton(AF_INET, text)
        address = inet_pton(AF_INET6, text)
    except (OSError, ValueError):
        return _parse_leniently(text)
    return address[12:] if address.startswith(_MAPPED) else address


def _parse_leniently(text: str) -> bytes | None:
    octets = _IPV4.fullmatch(text)
    try:
        return None if octets is None else bytes(map(int, octets.groups()))
    except ValueError:  # an octet above 255
        return None


def ordinary_address(text: str, family: Family) -> bytes | None:
    """Return an ordinary address of one family packed, or ``None`` if it needs a closer look by the functions below.

    A table has 100,000 endpoints, and this one call takes a quarter of the time of those functions.
    """
    try:
        address = inet_pton(family, text)
    except (OSError, ValueError):
        return None
    return None if address[0] in _PERHAPS_SPECIAL else address


def is_of(address: bytes, family: Family) -> bool:
    """Return whether a packed address belongs to a family."""
    return len(address) == (4 if family is Family.IPV4 else 16)


def is_special(address: bytes) -> bool:
    """Return whether a packed address belongs to no host on a network: unspecified, loopback, multicast or broadcast.

    IPv6 link-local addresses count too, as they mean nothing without an interface. The API's validation refuses these
    (``ValidateNonSpecialIP`` of Kubernetes), but objects of other origin have them.
    """
    if len(address) == 4:
        return address[0] == 127 or 224 <= address[0] < 240 or address in {bytes(4), b"\xff" * 4}
    if not any(address[:15]):
        return address[15] < 2
    return address[0] == 0xFF or (address[0] == 0xFE and address[1] & 0xC0 == 0x80)


def parse_network(text: str) -> tuple[bytes, int] | None:
    """Read a CIDR as kube-proxy does: the packed network address with host bits masked off, and the prefix length.

    White space around it is ignored, and the address is read as ``parse_address`` does. ``None`` if it is not a CIDR.
    """
    base, slash, suffix = text.strip().partition("/")
    address = parse_address(base)
    if address is None or not slash or not suffix.isascii() or not suffix.isdigit():
        return None
    bits = len(address) * 8
    length = int(suffix) - (96 if bits == 32 and ":" in base else 0)
    if not 0 <= length <= bits:
        return None
    number = int.from_bytes(address, "big") >> (bits - length) << (bits - length)
    return number.to_bytes(len(address), "big"), length
