"""Writes documents: ``python -m tools [NAME ...]``.

Without names it writes what follows from the code alone: configuration, metrics, chart, kustomize, scale. By name also
what must be run first: compatibility (from the last run of the whole ring), performance and scale (run benchmarks).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from tools import chart_readme, compatibility, configuration, kustomize, metrics, performance, scale
from tools.documents import ROOT, Texts

#: What follows from the code alone; tests compare it.
DERIVED: Final[Mapping[str, Callable[[], Texts]]] = {
    "configuration": configuration.written,
    "metrics": metrics.written,
    "chart": chart_readme.written,
    "kustomize": kustomize.written,
    "scale": scale.written,
}
#: What has to be measured, or run, first.
MEASURED: Final[Mapping[str, Callable[[], Texts]]] = {
    "compatibility": compatibility.written,
    "performance": performance.measured,
    "scale": scale.measured,
}


def main(names: Sequence[str]) -> None:
    """Write the documents of these names, or all that follow from the code; print which of them changed."""
    writers = {**DERIVED, **MEASURED} if names else DERIVED
    if not writers.keys() >= set(names):
        sys.exit((__doc__ or "").strip())
    for name in names or writers:
        for path, text in writers[name]().items():
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
                sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
