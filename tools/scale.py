"""The tables in ``docs/scale.md``, from the simulation of ``bench.api_load``.

All but two of them are the same on every machine; ``measured`` also renews those that depend on this one.
"""

from __future__ import annotations

from bench.api_load import exact_tables, measured_tables
from bench.api_objects import Shape
from bench.api_survey import survey
from tools.documents import DOCS, Texts, filled

DOCUMENT = DOCS / "scale.md"


def written() -> Texts:
    """Return the document with the tables that are the same on every machine."""
    return {DOCUMENT: filled(DOCUMENT.read_text(), exact_tables(survey(Shape())))}


def measured() -> Texts:
    """Return the document with all tables; measuring takes half a minute."""
    cluster = survey(Shape(), encodings=True)
    return {DOCUMENT: filled(DOCUMENT.read_text(), [*exact_tables(cluster), *measured_tables(cluster)])}
