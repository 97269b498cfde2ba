"""Our table as it should be beside our table as it is: what differs, and the text that puts it right.

Pure. A table is compared part by part and line by line, as nft prints it. Some versions print a line in another form
than we write it: what is printed of a table that is known to be as it was written (``generation``) is remembered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from ipvs_proxy.kernel.filter.nftables.names import TABLE_NAME
from ipvs_proxy.kernel.filter.nftables.render import Blocks, text_of

#: From a part and a line of it as we write it to how this node's nft prints it.
Forms = Mapping[tuple[str, str], str]

AS_WRITTEN: Final[Forms] = MappingProxyType({})
_CHAIN: Final = "chain "
#: nft has names for some priorities, in some hooks, and which ones depends on its version.
_PRIORITY: Final = re.compile(r"(?<=priority )(raw|mangle|dstnat|filter|security|srcnat)(?: ([+-] \d+))?(?=;)")
_PRIORITIES: Final = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}
_OPENING: Final = re.compile(r"(set|map|chain|flowtable|counter|quota|limit|secmark|synproxy|ct \w+) (\S+) \{")


def parse(listing: str) -> Blocks:
    """Return the parts of our table from what ``nft list ruleset`` prints, which has the tables of others, too."""
    blocks: dict[str, list[str]] = {}
    current: list[str] | None = None
    is_ours = False
    for line in map(str.strip, listing.splitlines()):
        if current is None and line.startswith("table "):
            is_ours = line == f"table {TABLE_NAME} {{"
        elif not is_ours:
            continue
        elif current is None:
            opening = _OPENING.fullmatch(line)
            if opening:
                current = blocks.setdefault(f"{opening[1]} {opening[2]}", [])
        elif line == "}":
            current = None
        elif line:
            current.append(_PRIORITY.sub(_number, line))
    return {name: tuple(lines) for name, lines in blocks.items()}


def differences(wanted: Blocks, found: Blocks, *, forms: Forms = AS_WRITTEN) -> list[str]:
    """Say what is not as it should be, one line for each part; nothing if all is right.

    Sets that are not ours do no harm and are not looked at.
    """
    if not found:
        return [f"the table {TABLE_NAME} is missing"]
    findings = []
    for name, lines in wanted.items():
        printed = tuple(forms.get((name, line), line) for line in lines)
        present = found.get(name)
        if present is None:
            findings.append(f"{name} is missing")
        elif present != printed:
            findings.append(f"{name} was changed: {_change(printed, present)}")
    findings += [f"{name} is not ours" for name in found if name.startswith(_CHAIN) and name not in wanted]
    return findings


def payload(wanted: Blocks, found: Blocks, *, forms: Forms = AS_WRITTEN) -> str:
    """Return the input of ``nft -f`` that makes the table what it should be, in one transaction.

    All chains are written anew, whoever filled them before. A set that is as it should be keeps its members.
    """
    chains = [name.removeprefix(_CHAIN) for name in found if name.startswith(_CHAIN)]
    kept = [name for name in wanted if not name.startswith(_CHAIN) and _is_printed(name, wanted, found, forms)]
    names = {name.partition(" ")[2] for name in wanted if not name.startswith(_CHAIN) and name not in kept}
    wrong = [name for name in found if name.startswith(("set ", "map ")) and name.partition(" ")[2] in names]
    return "".join(
        [
            *(f"flush chain {TABLE_NAME} {name}\n" for name in chains),
            *(f"delete chain {TABLE_NAME} {name}\n" for name in chains),
            *(f"delete {name.partition(' ')[0]} {TABLE_NAME} {name.partition(' ')[2]}\n" for name in wrong),
            text_of({name: lines for name, lines in wanted.items() if name not in kept}),
        ]
    )


def replacing(blocks: Blocks) -> str:
    """Return the input of ``nft -f`` that makes these sets, and gives these chains these rules and no others."""
    chains = [name for name in blocks if name.startswith(_CHAIN)]
    return (
        f"add table {TABLE_NAME}\n"
        + "".join(f"add {_CHAIN}{TABLE_NAME} {name.removeprefix(_CHAIN)}\n" for name in chains)
        + "".join(f"flush {_CHAIN}{TABLE_NAME} {name.removeprefix(_CHAIN)}\n" for name in chains)
        + text_of(blocks)
    )


def printed_forms(wanted: Blocks, printed: Blocks) -> Forms:
    """Return the lines that nft prints otherwise than we write them, from a table that is as it was written."""
    return {
        (name, line): form
        for name, lines in wanted.items()
        if len(printed.get(name, ())) == len(lines)
        for line, form in zip(lines, printed[name], strict=True)
        if form != line
    }


def _number(found: re.Match[str]) -> str:
    return str(_PRIORITIES[found[1]] + int((found[2] or "0").replace(" ", "")))


def _is_printed(name: str, wanted: Blocks, found: Blocks, forms: Forms) -> bool:
    return found.get(name) == tuple(forms.get((name, line), line) for line in wanted[name])


def _change(wanted: Iterable[str], present: Iterable[str]) -> str:
    missing = [line for line in wanted if line not in set(present)]
    foreign = [line for line in present if line not in set(wanted)]
    parts = [
        f"{len(lines)} {what} ({lines[0]})" for lines, what in ((missing, "missing"), (foreign, "foreign")) if lines
    ]
    return ", ".join(parts) or "repeated or in another order"
