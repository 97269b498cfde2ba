"""Addresses from API text to packed bytes.

The API has stored addresses of other spellings than today's validation accepts, and kube-proxy reads them leniently:
leading zeros of an IPv4 octet are decimal, not octal. The same text must lead to the same address here.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Address

from ipvs_proxy.plan.tables import Family

_IPV4 = re.compile(r"\.".join([r"([0-9]{1,16})"] * 4))


def parse_address(text: str) -> bytes | None:
    """Pack an IP address (4 or 16 bytes, network order), ``None`` if the text is none.

    An IPv4-mapped IPv6 address is the IPv4 address it maps, as in Go's ``net.ParseIP``. Zone identifiers are refused: a
    Service address is not bound to an interface.
    """
    octets = _IPV4.fullmatch(text)
    if octets is None:
        return _parse_ipv6(text) if ":" in text and "%" not in text else None
    try:
        return bytes(map(int, octets.groups()))
    except ValueError:  # an octet above 255
        return None


@lru_cache(maxsize=65_536)
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
