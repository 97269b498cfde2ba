"""The kustomize base is the chart with its defaults, as the real kustomize builds the one and the real Helm the other."""

from __future__ import annotations

from typing import Any

import yaml

from tests.helm.helm import CHART, ROOT, helm, kustomized
from tools.kustomize import BASE, HELMS_LABELS, NAME, NAMESPACE, written


def by_name(documents: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the objects by kind and name, without the labels that say that Helm installed them."""
    found = {}
    for document in documents:
        labels = document["metadata"]["labels"]
        document["metadata"]["labels"] = {name: labels[name] for name in labels if name not in HELMS_LABELS}
        found[document["kind"], document["metadata"]["name"]] = document
    return found


def test_the_base_is_the_chart() -> None:
    done = helm("template", NAME, str(CHART), "--namespace", NAMESPACE, "--skip-tests")
    chart = by_name([document for document in yaml.safe_load_all(done.stdout) if document])
    base = by_name(kustomized(BASE))
    assert len(chart) == 5
    assert base.keys() == chart.keys()
    for key, document in chart.items():
        assert base[key] == document, key


def test_the_base_has_no_file_that_its_writer_does_not_know() -> None:
    assert set(BASE.iterdir()) == set(written())
    assert [path.name for path in (ROOT / "deploy").iterdir()] == ["base"]
