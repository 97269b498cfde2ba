"""Which chains of others decide before ours."""

from __future__ import annotations

import pytest

from ipvs_proxy.kernel.filter.nftables.codec import Chain, decode_chain
from ipvs_proxy.kernel.filter.nftables.tables import chains_before_ours

DROPPING = Chain(1, "filter", "in", "filter", 1, 0, drops=True)


@pytest.mark.parametrize(
    ("chain", "said"),
    [
        (DROPPING, "table inet filter: chain in (filter hook input priority 0, policy drop)"),
        (DROPPING._replace(family=10, hook=2), "table ip6 filter: chain in (filter hook forward priority 0, policy drop)"),
        (Chain(2, "nat", "pre", "nat", 0, -111, drops=False), "table ip nat: chain pre (nat hook prerouting priority -111)"),
        (Chain(2, "nat", "post", "nat", 4, 89, drops=False), "table ip nat: chain post (nat hook postrouting priority 89)"),
        (Chain(2, "nat", "pre", "nat", 0, -110, drops=False), None),
        (Chain(2, "nat", "in", "nat", 1, 100, drops=False), None),
        (DROPPING._replace(drops=False, priority=-300), None),
        (DROPPING._replace(table="ipvs-proxy"), None),
        (DROPPING._replace(table="ipvs-proxy", family=2), "table ip ipvs-proxy: chain in (filter hook input priority 0, policy drop)"),
        (DROPPING._replace(family=7), None),
        (DROPPING._replace(hook=None), None),
    ],
)  # fmt: skip
def test_chains_that_decide_before_ours_are_named(chain: Chain, said: str | None) -> None:
    assert chains_before_ours([chain]) == ([] if said is None else [said])


def test_a_chain_is_read() -> None:
    # As the kernel lists "table ip nat { chain pre { type nat hook prerouting priority -111; policy drop; }; }".
    payload = bytes.fromhex(
        "02000000" "08000100" "6e617400" "08000300" "70726500"
        "14000480" "08000100" "00000000" "08000200" "ffffff91"
        "08000500" "00000000" "08000700" "6e617400"
    )  # fmt: skip
    assert decode_chain(payload) == Chain(2, "nat", "pre", "nat", 0, -111, drops=True)
    assert decode_chain(payload[:20]) == Chain(2, "nat", "pre", "", None, 0, drops=False)
