"""The table that should be there beside the one that is."""

from __future__ import annotations

import pytest

from ipvs_proxy.kernel.filter.nftables.compare import differences, parse, payload, printed_forms, replacing
from ipvs_proxy.kernel.filter.nftables.render import Blocks, render, text_of
from ipvs_proxy.plan.masquerading import Masquerading
from ipvs_proxy.plan.tables import Family

WANTED: Blocks = {
    "set one": ("type ipv4_addr", 'comment "some"'),
    "map two": ("type ipv4_addr : mark",),
    "chain base": ("type filter hook input priority 0; policy accept;", "jump rules"),
    "chain rules": ("ip daddr @one drop", "meta mark 0x00000001 return"),
}
LISTED = """\
table inet somebody {
	chain rules {
		drop
	}
}
table inet ipvs-proxy {
	comment "ours"
	set one {
		type ipv4_addr
		comment "some"
	}

	map two {
		type ipv4_addr : mark
	}

	chain base {
		type filter hook input priority filter; policy accept;
		jump rules
	}

	chain rules {
		ip daddr @one drop
		meta mark 0x00000001 return
	}
}
table inet zzz {
	set one {
		type ipv6_addr
	}
}
"""


def test_our_table_is_read_and_no_other() -> None:
    assert parse(LISTED) == WANTED
    assert parse("") == parse("table inet ipvs-proxy-2 {\n\tchain rules {\n\t\tdrop\n\t}\n}\n") == {}


@pytest.mark.parametrize(
    ("printed", "number"),
    [
        ("filter", 0),
        ("filter - 10", -10),
        ("dstnat + 3", -97),
        ("raw - 10", -310),
        ("mangle", -150),
        ("srcnat", 100),
        ("security", 50),
        ("-99", -99),
    ],
)
def test_priorities_have_names_in_some_versions_of_nft(printed: str, number: int) -> None:
    listed = LISTED.replace("priority filter;", f"priority {printed};")
    assert parse(listed)["chain base"][0] == f"type filter hook input priority {number}; policy accept;"


def test_what_is_written_is_what_would_be_read() -> None:
    blocks = render({family: Masquerading() for family in Family}, {})
    assert parse(text_of(blocks)) == blocks


@pytest.mark.parametrize(
    ("change", "findings"),
    [
        ({}, []),
        ({"chain rules": None}, ["chain rules is missing"]),
        ({"set one": None}, ["set one is missing"]),
        ({"chain other": ("drop",)}, ["chain other is not ours"]),
        ({"set other": ("type ipv4_addr",)}, []),
        (
            {"chain rules": ("ip daddr @one drop", "accept", "accept")},
            ["chain rules was changed: 1 missing (meta mark 0x00000001 return), 2 foreign (accept)"],
        ),
        (
            {"chain rules": ("meta mark 0x00000001 return", "ip daddr @one drop")},
            ["chain rules was changed: repeated or in another order"],
        ),
        ({"map two": ("type ipv4_addr : mark", "size 3")}, ["map two was changed: 1 foreign (size 3)"]),
    ],
    ids=["nothing", "no chain", "no set", "a chain", "a set", "rules", "the order", "a size"],
)
def test_each_difference_is_named(change: dict[str, tuple[str, ...] | None], findings: list[str]) -> None:
    found = {name: lines for name, lines in ({**WANTED, **change}).items() if lines is not None}
    assert differences(WANTED, found) == findings


def test_a_table_that_is_missing_is_one_finding() -> None:
    assert differences(WANTED, {}) == ["the table inet ipvs-proxy is missing"]


def test_a_repair_writes_all_chains_anew_and_keeps_sets_that_are_right() -> None:
    found = {**WANTED, "map two": ("type ipv6_addr : mark",), "chain other": ("drop",)}
    lines = payload(WANTED, found).splitlines()
    assert lines[:7] == [
        *(f"flush chain inet ipvs-proxy {name}" for name in ("base", "rules", "other")),
        *(f"delete chain inet ipvs-proxy {name}" for name in ("base", "rules", "other")),
        "delete map inet ipvs-proxy two",
    ]
    assert parse("\n".join(lines[7:])) == {name: lines for name, lines in WANTED.items() if name != "set one"}


def test_a_missing_table_is_written_whole() -> None:
    assert payload(WANTED, {}) == text_of(WANTED)


def test_some_chains_get_their_rules_anew() -> None:
    some = {name: WANTED[name] for name in ("set one", "chain rules")}
    assert replacing(some).splitlines()[:3] == [
        "add table inet ipvs-proxy",
        "add chain inet ipvs-proxy rules",
        "flush chain inet ipvs-proxy rules",
    ]
    assert parse(replacing(some)) == some


def test_what_nft_prints_otherwise_is_taken_for_what_was_written() -> None:
    printed = {**WANTED, "chain rules": ("ip daddr @one drop", "meta mark 1 return")}
    forms = printed_forms(WANTED, printed)
    assert forms == {("chain rules", "meta mark 0x00000001 return"): "meta mark 1 return"}
    assert differences(WANTED, printed, forms=forms) == []
    assert differences(WANTED, printed) != []
    assert printed_forms(WANTED, WANTED) == {}
