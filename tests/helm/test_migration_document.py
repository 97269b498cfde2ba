"""The commands of docs/migration.md that are for a cluster: right for kubectl, Helm and the chart."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import yaml

from tests.helm.helm import CHART, HELM, ROOT, helm

DOCUMENT = ROOT / "docs/migration.md"


def commands() -> list[list[str]]:
    blocks = re.findall(r"```cluster\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_helms_command_renders_an_agent_for_labelled_nodes_with_kube_proxys_configuration() -> None:
    (install,) = [words for words in commands() if words[0] == "helm"]
    assert install[1:4] == ["install", "ipvs-proxy", "dist/ipvs-proxy-0.1.0.tgz"]
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["version"] == "0.1.0"
    done = helm("template", "ipvs-proxy", str(CHART), *install[4:])
    assert done.returncode == 0, done.stderr
    (daemon_set,) = [item for item in yaml.safe_load_all(done.stdout) if item and item["kind"] == "DaemonSet"]
    pod = daemon_set["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux", "ipvs-proxy": "true"}
    assert {"name": "config", "configMap": {"name": "kube-proxy"}} in pod["volumes"]
    (logs,) = [words for words in commands() if "logs" in words]
    key, _, value = logs[logs.index("--selector") + 1].partition("=")
    assert daemon_set["spec"]["template"]["metadata"]["labels"][key] == value


def test_kube_proxy_leaves_the_nodes_that_ours_comes_to() -> None:
    (patch,) = [words for words in commands() if "patch" in words]
    affinity = json.loads(patch[patch.index("--patch") + 1])["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {"matchExpressions": [{"key": "ipvs-proxy", "operator": "DoesNotExist"}]}
    labels = [words[-1] for words in commands() if words[1] == "label"]
    assert labels == ["ipvs-proxy=true", "ipvs-proxy-"]


def test_programs_are_known() -> None:
    assert {Path(words[0]).name for words in commands()} == {"helm", "kubectl"}
    assert HELM.exists()
