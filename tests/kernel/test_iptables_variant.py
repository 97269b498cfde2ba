"""Which world of rules is used: the decision as a table, and what is read for it."""

from __future__ import annotations

import pytest

from ipvs_proxy.kernel.filter.iptables.programs import LEGACY, NF_TABLES
from ipvs_proxy.kernel.filter.iptables.saved import parse
from ipvs_proxy.kernel.filter.iptables.variant import World, choose_backend, look

HINT = World(hint=True)


@pytest.mark.parametrize(
    ("default", "here", "there", "chosen", "reason"),
    [
        (NF_TABLES, World(), World(), NF_TABLES, "it is the node's default"),
        (NF_TABLES, HINT, World(rules=1000), NF_TABLES, "the kubelet's hint is there"),
        (NF_TABLES, HINT, HINT, NF_TABLES, "the kubelet's hint is there"),
        (
            NF_TABLES,
            World(rules=1000),
            HINT,
            LEGACY,
            "the kubelet keeps its rules in legacy, not in the default nf_tables",
        ),
        (
            NF_TABLES,
            World(rules=3),
            World(rules=4),
            LEGACY,
            "the kubelet left no hint, and there are more rules in legacy (4) than in the default nf_tables (3)",
        ),
        (NF_TABLES, World(rules=4), World(rules=4), NF_TABLES, "it is the node's default"),
        (LEGACY, World(), World(), LEGACY, "it is the node's default"),
        (LEGACY, World(), HINT, NF_TABLES, "the kubelet keeps its rules in nf_tables, not in the default legacy"),
        (LEGACY, World(rules=2), World(rules=1), LEGACY, "it is the node's default"),
    ],
)
def test_hint_then_number_of_rules_then_default(default, here, there, chosen, reason):
    other = LEGACY if default == NF_TABLES else NF_TABLES
    assert choose_backend(default, here, other, there) == (chosen, reason)


@pytest.mark.parametrize(
    ("saved", "seen"),
    [
        ("", World()),
        ("*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n", World(hint=True)),
        ("*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n", World(hint=True)),
        ("*mangle\n:KUBE-IPTABLES-HINT-OLD - [0:0]\nCOMMIT\n", World()),
        (
            "*nat\n:KUBE-SERVICES - [0:0]\n-A KUBE-SERVICES -j RETURN\n-A X -m comment --comment '-A '\nCOMMIT\n",
            World(rules=2),
        ),
    ],
)
def test_what_an_output_shows(saved, seen):
    assert look(parse(saved)) == seen


def test_families_add_up():
    assert World(hint=True, rules=1) + World(rules=2) == World(hint=True, rules=3)
