"""Names, types and help of all metrics that the agent can expose."""

from __future__ import annotations

import subprocess

from tests.helm.helm import PROMTOOL
from tools.metrics import exposed, families

#: kube-proxy's name of a gauge, which ends as a counter's should.
KUBE_PROXYS_OWN = "kubeproxy_sync_proxy_rules_no_local_endpoints_total"


def test_promtool_finds_nothing_wrong_with_names_types_and_help() -> None:
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=exposed(), capture_output=True, text=True, check=False)
    complaints = (done.stdout + done.stderr).splitlines()
    assert [
        line for line in complaints if KUBE_PROXYS_OWN not in line and line.startswith(("ipvs_proxy", "kubeproxy"))
    ] == []
    assert "error" not in done.stderr.lower()


def test_every_metric_has_a_sentence_of_its_own() -> None:
    ours = [family for family in families() if family.name.startswith("ipvs_proxy_")]
    assert len({family.documentation for family in ours}) == len(ours)
    assert all(family.documentation and not family.documentation.endswith(".") for family in ours)
