"""The repository's documents, and the marked places in them that writers fill."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
DOCS: Final = ROOT / "docs"
#: What a writer returns: the whole text of each file.
Texts = Mapping[Path, str]


def filled(document: str, parts: Iterable[tuple[str, str]]) -> str:
    """Return a document with each part (its name and its text) between its markers.

    The markers are the lines ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->``. Raises ValueError unless the document
    has exactly one such place for every part.
    """
    for name, text in parts:
        pattern = rf"(<!-- begin: {name} -->\n).*?(<!-- end: {name} -->)"
        pieces = re.split(pattern, document, flags=re.DOTALL)
        if len(pieces) != 4:
            raise ValueError(f"the document has {len(pieces) // 3} places for {name!r}, not one")
        before, begin, end, after = pieces
        content = text.rstrip("\n")
        document = f"{before}{begin}{content}\n{end}{after}"
    return document
