"""Which world of rules is used: the decision as a table, and what is read for it."""

from __future__ import annotations

import pytest

from ipvs_proxy.kernel.filter.iptables.programs import LEGACY, NF_TABLES
from ipvs_proxy.kernel.filter.iptables.saved import parse
from ipvs_proxy.kernel.filter.iptables.variant import Signs, choose_backend, signs_of

HINT = Signs(hint=True)


@pytest.mark.parametrize(
    ("default", "here", "there", "chosen", "reason"),
    [
        (NF_TABLES, Signs(), Signs(), NF_TABLES, "it is the node's default"),
        (NF_TABLES, HINT, Signs(rules=1000), NF_TABLES, "the kubelet's hint is there"),
        (NF_TABLES, HINT, HINT, NF_TABLES, "the kubelet's hint is there"),
        (
            NF_TABLES,
            Signs(rules=1000),
            HINT,
            LEGACY,
            "the kubelet keeps its rules in legacy, not in the default nf_tables",
        ),
        (
            NF_TABLES,
            Signs(rules=3),
            Signs(rules=4),
            LEGACY,
            "the kubelet left no hint, and there are more rules in legacy (4) than in the default nf_tables (3)",
        ),
        (NF_TABLES, Signs(rules=4), Signs(rules=4), NF_TABLES, "it is the node's default"),
        (LEGACY, Signs(), Signs(), LEGACY, "it is the node's default"),
        (LEGACY, Signs(), HINT, NF_TABLES, "the kubelet keeps its rules in nf_tables, not in the default legacy"),
        (LEGACY, Signs(rules=2), Signs(rules=1), LEGACY, "it is the node's default"),
    ],
)
def test_hint_then_number_of_rules_then_default(default, here, there, chosen, reason):
    other = LEGACY if default == NF_TABLES else NF_TABLES
    assert choose_backend(default, here, other, there) == (chosen, reason)


@pytest.mark.parametrize(
    ("saved", "seen"),
    [
        ("", Signs()),
        ("*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n", Signs(hint=True)),
        ("*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n", Signs(hint=True)),
        ("*mangle\n:KUBE-IPTABLES-HINT-OLD - [0:0]\nCOMMIT\n", Signs()),
        (
            "*nat\n:KUBE-SERVICES - [0:0]\n-A KUBE-SERVICES -j RETURN\n-A X -m comment --comment '-A '\nCOMMIT\n",
            Signs(rules=2),
        ),
    ],
)
def test_what_an_output_shows(saved, seen):
    assert signs_of(parse(saved)) == seen


def test_families_add_up():
    assert Signs(hint=True, rules=1) + Signs(rules=2) == Signs(hint=True, rules=3)
