"""The rules that should be there beside those that are: what differs, and the text that puts it right.

Pure: rules in, text out, the input of ``iptables-restore``. Of a node's rules, which may be tens of thousands of lines
of others, only our chains and the rules that lead to them are kept.

Some versions of iptables print a rule in another form than we write it. Spaces and quotes never matter. Apart from
those, what is printed right after a write is remembered as the form of what was written, but only if it says the same
in everything that carries meaning: otherwise a rule that somebody else wrote at that moment would pass for ours.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from ipvs_proxy.kernel.filter.iptables.chains import ALONE, NAT, SERVICES, TABLES, Chain, Layout
from ipvs_proxy.kernel.filter.iptables.render import Rule, Ruleset
from ipvs_proxy.kernel.filter.iptables.saved import Saved, target_of

#: From a rule as we write it to what this node's iptables prints for it.
Forms = Mapping[Rule, str]

_AS_WRITTEN: Final[Forms] = MappingProxyType({})
_NOTHING: Final = Ruleset({}, ())
#: All jumps of ours to chains of ours alone have it.
_OWN_COMMENT: Final = '--comment "ipvs-proxy '
#: Options whose values every version prints, whatever the order and the defaults around them.
_MEANINGFUL: Final = frozenset(
    {"-A", "-s", "-d", "-i", "-o", "-p", "-j", "-g", "--match-set", "--map-set", "--src-type", "--dst-type"}
)


def our_rules(saved: Saved, layout: Layout = ALONE) -> Ruleset:
    """Return our chains and the rules that lead to them, from all rules of a family."""
    chains: dict[Chain, tuple[str, ...]] = {}
    jumps: list[Rule] = []
    late: list[Rule] = []
    for table, found in saved.items():
        ours = frozenset(chain.name for chain in (*layout.chains, *layout.former) if chain.table == table)
        for name, rules in found.chains.items():
            if name in ours:
                chains[Chain(table, name)] = tuple(rules)
                continue
            own = [Rule(table, rule) for rule in rules if target_of(rule) in ours]
            jumps += own
            if layout.goes_first and table == NAT and _come_late(rules, ours):
                late += own
    return Ruleset(chains, tuple(jumps), tuple(late))


def _come_late(rules: Sequence[str], ours: frozenset[str]) -> bool:
    """Return whether one of our jumps comes after that to kube-proxy's Services."""
    targets = [target_of(rule) for rule in rules]
    return SERVICES in targets and any(target in ours for target in targets[targets.index(SERVICES) :])


def differences(wanted: Ruleset, found: Ruleset, *, forms: Forms = _AS_WRITTEN, layout: Layout = ALONE) -> list[str]:
    """Say what is not as it should be, one line for each chain and jump; nothing if all is right."""
    findings: list[str] = []
    for chain, rules in wanted.chains.items():
        present = found.chains.get(chain)
        if present is None:
            findings.append(f"{chain.table}: chain {chain.name} is missing")
        elif present != rules:
            findings += _changes(chain, rules, present, forms)
    for table, text in missing_jumps(wanted, found, forms=forms):
        words = text.split(" ")
        late = any(rule.table == table and target_of(rule.text) == words[-1] for rule in found.late)
        what = f"comes after that to {SERVICES}" if late else "is missing"
        findings.append(f"{table}: jump from {words[1]} to {words[-1]} {what}")
    former = outdated(found, layout)
    findings += [f"{chain.table}: chain {chain.name} is of an earlier version" for chain in former.chains]
    findings += [
        f"{rule.table}: a jump of an earlier version is there ({rule.text})"
        for rule in former.jumps
        if rule not in found.late
    ]
    return findings


def outdated(found: Ruleset, layout: Layout = ALONE) -> Ruleset:
    """Return what is to go: filled chains of an earlier version, jumps to them, and those that come late."""
    former = frozenset(layout.former)
    chains = {chain: rules for chain, rules in found.chains.items() if chain in former and rules}
    jumps = [rule for rule in found.jumps if Chain(rule.table, target_of(rule.text)) in former]
    return Ruleset(chains, (*(rule for rule in jumps if _OWN_COMMENT in rule.text), *found.late))


def missing_jumps(wanted: Ruleset, found: Ruleset, *, forms: Forms = _AS_WRITTEN) -> list[Rule]:
    """Return the jumps that are not there, in the order in which they are to be inserted."""
    in_place = [rule for rule in found.jumps if rule not in found.late]
    return [
        jump
        for jump in wanted.jumps
        if not any(rule.table == jump.table and _is_printed(rule.text, jump, forms) for rule in in_place)
    ]


def payload(wanted: Ruleset, jumps: Iterable[Rule], *, former: Ruleset = _NOTHING) -> str:
    """Return the input of ``iptables-restore --noflush`` that sets all our chains and inserts the given jumps.

    The rules in ``former`` are deleted; its chains stay, empty, because a rule of somebody else might lead there. A
    chain's header empties it in the same commit that fills it, so no packet meets a chain that is half done.
    """
    missing = list(jumps)
    lines: list[str] = []
    for table in TABLES:
        chains = [chain for chain in wanted.chains if chain.table == table]
        emptied = [chain for chain in former.chains if chain.table == table]
        lines.append(f"*{table}")
        lines += [f":{chain.name} - [0:0]" for chain in (*chains, *emptied)]
        lines += ["-D" + rule.text.removeprefix("-A") for rule in former.jumps if rule.table == table]
        lines += [rule for chain in chains for rule in wanted.chains[chain]]
        lines += ["-I" + jump.text.removeprefix("-A") for jump in missing if jump.table == table]
        lines.append("COMMIT")
    return "\n".join(lines) + "\n"


def printed_forms(wanted: Ruleset, *, before: Ruleset, after: Ruleset) -> dict[Rule, str]:
    """Return the rules of a write that are printed otherwise than written, with what is printed.

    ``before`` and ``after`` are what was read around the write.
    """
    forms: dict[Rule, str] = {}
    for chain, rules in wanted.chains.items():
        printed = after.chains.get(chain, ())
        if len(printed) == len(rules):
            forms |= {
                Rule(chain.table, text): found
                for text, found in zip(rules, printed, strict=True)
                if _is_other_form(found, text)
            }
    known = set(before.jumps)
    for jump in missing_jumps(wanted, after):
        for rule in after.jumps:
            if rule not in known and rule.table == jump.table and _is_other_form(rule.text, jump.text):
                forms[jump] = rule.text
    return forms


def _changes(chain: Chain, rules: Sequence[str], present: Sequence[str], forms: Forms) -> list[str]:
    wanted = [Rule(chain.table, text) for text in rules]
    if len(present) == len(wanted) and all(map(_is_printed, present, wanted, [forms] * len(wanted))):
        return []
    missing = [rule.text for rule in wanted if not any(_is_printed(found, rule, forms) for found in present)]
    foreign = [found for found in present if not any(_is_printed(found, rule, forms) for rule in wanted)]
    parts = [
        f"{len(texts)} {what} ({texts[0]})" for texts, what in ((missing, "missing"), (foreign, "foreign")) if texts
    ]
    detail = ", ".join(parts) or "repeated or in another order"
    return [f"{chain.table}: rules of chain {chain.name} were changed: {detail}"]


def _is_printed(found: str, wanted: Rule, forms: Forms) -> bool:
    text = wanted.text
    return found == text or forms.get(wanted) == found or (_words(found) == _words(text) != [])


def _is_other_form(found: str, text: str) -> bool:
    return found != text and _words(found) != _words(text) and _meaning(found) == _meaning(text)


def _meaning(rule: str) -> list[tuple[str, ...]]:
    """Return the parts of a rule that every version prints, in one order."""
    words = _words(rule)
    parts: list[tuple[str, ...]] = []
    for position, word in enumerate(words):
        if word in _MEANINGFUL:
            length = 3 if word.endswith("-set") else 2
            negation = words[position - 1 : position] if words[max(0, position - 1)] == "!" else []
            parts.append((*negation, *words[position : position + length]))
        elif word.endswith("mark") and word.startswith("--"):
            # "--or-mark 0x4000" and "--set-xmark 0x4000/0x4000" are one thing.
            parts.append(("mark", *(value.split("/")[0] for value in words[position + 1 : position + 2])))
    return sorted(parts)


def _words(rule: str) -> list[str]:
    """Return a rule without what spaces and quotes may vary; nothing if its quotes do not match."""
    try:
        # iptables escapes a single quote within double ones, which means nothing to a shell.
        return shlex.split(rule.replace("\\'", "'"))
    except ValueError:
        return []
