"""Source ranges as a set of intervals can hold them: of networks that lie in one another, only the outermost.

nf_tables keeps a set of networks as intervals and refuses, or mixes up, those that overlap (``nft_pipapo_insert``).
Two networks overlap only if one lies in the other, and then the inner one decides nothing. So the kernel has the
outermost ones, and this module remembers the others: when an outer one goes, those that it covered come in its place.
Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from ipvs_proxy.kernel.filter.nftables.codec import bounds
from ipvs_proxy.plan.tables import SetEntry

#: An address, protocol and port.
Guarded = tuple[bytes, int, int]


class SourceRanges:
    """The source ranges of each address, protocol and port of one family."""

    def __init__(self) -> None:
        self._by_guarded: dict[Guarded, set[SetEntry]] = {}

    def of(self, guarded: Guarded) -> set[SetEntry]:
        """Return the ranges of an address, protocol and port: a copy."""
        return set(self._by_guarded.get(guarded, ()))

    def note(self, guarded: Guarded, ranges: set[SetEntry]) -> None:
        """Take note of what the ranges are now."""
        if ranges:
            self._by_guarded[guarded] = ranges
        else:
            self._by_guarded.pop(guarded, None)

    def reconcile(self, found: Iterable[SetEntry]) -> set[SetEntry]:
        """Take what the kernel holds for what there is; return it with the ranges that it covers and were there."""
        now: dict[Guarded, set[SetEntry]] = {}
        for entry in found:
            now.setdefault((entry.address, entry.protocol, entry.port), set()).add(entry)
        for guarded, held in now.items():
            known = self._by_guarded.get(guarded, set())
            if not known <= held:
                held.update(_covered(known - held, held))
        self._by_guarded = now
        return {entry for ranges in now.values() for entry in ranges}


def outermost(ranges: Iterable[SetEntry]) -> set[SetEntry]:
    """Return the ranges of one address, protocol and port that do not lie in another."""
    found: set[SetEntry] = set()
    end = b""
    # By their first addresses, and of those that begin at one address the largest first.
    for entry in sorted(sorted(ranges, key=_last, reverse=True), key=_first):
        if not end or _last(entry) > end:
            found.add(entry)
            end = _last(entry)
    return found


def _covered(inner: Iterable[SetEntry], outer: Iterable[SetEntry]) -> set[SetEntry]:
    """Return the ranges that lie in one of ``outer``, of which none lies in another."""
    ordered = sorted(outer, key=_first)
    beginnings = [_first(entry) for entry in ordered]
    found = set()
    for entry in inner:
        position = bisect_right(beginnings, _first(entry))
        if position and _last(entry) <= _last(ordered[position - 1]):
            found.add(entry)
    return found


def _first(entry: SetEntry) -> bytes:
    return bounds(entry)[0]


def _last(entry: SetEntry) -> bytes:
    return bounds(entry)[1]
