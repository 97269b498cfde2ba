"""The kustomize base in ``deploy/base``, for those without Helm: the chart with its defaults, as Helm renders it.

Only what says that Helm did it is left out. The configuration is a file of its own, so that an overlay can replace it.
"""

from __future__ import annotations

import re
import subprocess
from typing import Any, Final

import yaml

from tools.documents import ROOT, Texts

BASE: Final = ROOT / "deploy" / "base"
HELM: Final = ROOT / ".cache" / "helm"
NAME, NAMESPACE = "ipvs-proxy", "kube-system"
#: Labels that are true of what Helm installs only.
HELMS_LABELS: Final = ("helm.sh/chart", "app.kubernetes.io/managed-by")
_HEADER: Final = "# Written by make docs, from the chart in helm/ipvs-proxy.\n"
#: The files of the base, by the chart's template that each comes from.
_FILES: Final = {"daemonset.yaml", "rbac.yaml"}


def written() -> Texts:
    """Return the files of the base. Raises FileNotFoundError without Helm, CalledProcessError if it fails."""
    texts = dict.fromkeys(sorted(_FILES), "")
    config_map: dict[str, Any] = {}
    for source, text in _rendered():
        if source in texts:
            texts[source] += f"---\n{text}"
        elif source == "configmap.yaml":
            config_map = yaml.safe_load(text)
        else:
            raise ValueError(f"the base has no file for the chart's {source}")
    texts["kustomization.yaml"] = _kustomization(config_map)
    files = {BASE / name: _HEADER + text.removeprefix("---\n") for name, text in texts.items()}
    # What is in the ConfigMap, to the byte.
    return {**files, BASE / "config.yaml": config_map["data"]["config.yaml"]}


def _rendered() -> list[tuple[str, str]]:
    """Return each document that Helm renders, without its labels: the template's name, and the text."""
    command = [str(HELM), "template", NAME, str(ROOT / "helm" / "ipvs-proxy"), "--namespace", NAMESPACE, "--skip-tests"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    kept = re.sub(rf"^ +({'|'.join(map(re.escape, HELMS_LABELS))}): .*\n", "", printed, flags=re.MULTILINE)
    documents = re.split(r"^---\n# Source: ipvs-proxy/templates/(.*)\n", kept, flags=re.MULTILINE)[1:]
    return list(zip(documents[::2], documents[1::2], strict=True))


def _kustomization(config_map: dict[str, Any]) -> str:
    """Return the list of what the base has."""
    generator = {
        "name": NAME,
        "files": ["config.yaml"],
        # The agent follows the file: with a hash in the name, each change would restart it on all nodes.
        "options": {"disableNameSuffixHash": True, "labels": config_map["metadata"]["labels"]},
    }
    document = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": NAMESPACE,
        "resources": sorted(_FILES),
        "configMapGenerator": [generator],
    }
    return yaml.safe_dump(document, sort_keys=False)
