"""What the chart renders is what Kubernetes knows, in the oldest version that is asked for and in the newest there is a schema of."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from tests.helm.helm import MATRIX, rendered
from tools.chart_readme import values

#: Kinds of the Prometheus operator.
CUSTOM = {"PodMonitor", "PrometheusRule"}
OLDEST = "1.29"
SCHEMAS = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
VERSIONS = sorted(
    {found[1] for path in SCHEMAS.iterdir() if (found := re.match(r"v(1\.\d+)\.\d+-local-strict$", path.name))},
    key=lambda version: int(version.partition(".")[2]),
)
#: A newer one than any that can be installed cannot be checked: docs/compatibility.md says what was compared.
NEWEST = VERSIONS[-1]


def test_newest_is_no_older_than_what_the_project_asks_for() -> None:
    assert int(NEWEST.partition(".")[2]) >= 37
    assert OLDEST in VERSIONS


@pytest.mark.parametrize("name", MATRIX)
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_objects_are_what_kubernetes_knows(name: str, version: str) -> None:
    known = [document for document in rendered(name) if document["kind"] not in CUSTOM]
    assert len(known) >= 5
    for document in known:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_a_field_that_kubernetes_does_not_know_is_found(version: str) -> None:
    (pod,) = [document for document in rendered("default") if document["kind"] == "Pod"]
    with pytest.raises(kubernetes_validate.ValidationError, match="'priorityclass' was unexpected"):
        kubernetes_validate.validate(pod | {"spec": pod["spec"] | {"priorityclass": "x"}}, version, strict=True)


def test_one_use_turns_every_value_on() -> None:
    for name, default, _ in values():
        if name != "existingKubeProxyConfigMap":
            given: Any = MATRIX["everything"]
            for part in name.split("."):
                assert part in given, f"nothing turns {name} on"
                given = given[part]
            assert given != json.loads(default), name
