"""Addresses from API text to packed bytes.

The API has stored addresses of other spellings than today's validation accepts, and kube-proxy reads them leniently:
leading zeros of an IPv4 octet are decimal, not octal. The same text must lead to the same address here.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address

from ipvs_proxy.plan.tables import Family


def parse_address(text: str) -> bytes | None:
    """Pack an IP address (4 or 16 bytes, network order), ``None`` if the text is none.

    An IPv4-mapped IPv6 address is the IPv4 address it maps, as in Go's ``net.ParseIP``. Zone identifiers are refused: a
    Service address is not bound to an interface.
    """
    octets = text.split(".")
    if len(octets) == 4 and ":" not in text:
        if not all(octet.isascii() and octet.isdigit() and len(octet) <= 16 for octet in octets):
            return None
        numbers = [int(octet) for octet in octets]
        return bytes(numbers) if max(numbers) < 256 else None
    return _parse_ipv6(text) if ":" in text and "%" not in text else None


@lru_cache(maxsize=4096)
def _parse_ipv6(text: str) -> bytes | None:
    try:
        address = IPv6Address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped
    return address.packed if mapped is None else mapped.packed


def is_of(address: bytes, family: Family) -> bool:
    """Tell whether a packed address belongs to a family."""
    return len(address) == (4 if family is Family.IPV4 else 16)
