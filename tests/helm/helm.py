"""The real Helm, as ``make .cache/helm`` fetches it, and what it renders. Without it the tests fail: nothing is skipped."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "ipvs-proxy"
HELM = ROOT / ".cache" / "helm"
PROMTOOL = ROOT / ".cache" / "promtool"

#: The ways in which the chart is used: the name of each and its values.
MATRIX: dict[str, dict[str, Any]] = {
    "default": {},
    "scheduler rr": {"scheduler": "rr"},
    "scheduler lc": {"scheduler": "lc"},
    "scheduler sh": {"scheduler": "sh"},
    "API server": {"apiServer": {"host": "10.0.0.10", "port": 8443}},
    "API server over IPv6": {"apiServer": {"host": "fd00::10"}},
    "image": {
        "image": {"repository": "registry.example/net/ipvs-proxy", "tag": "v1", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "pull"}],
    },
    "image digest": {"image": {"digest": f"sha256:{'0a' * 32}"}},
    "monitors": {
        "podMonitor": {"enabled": True, "interval": "30s", "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboard": {"enabled": True},
    },
    "kube-proxy's fields": {
        "clusterCIDR": "10.244.0.0/16,fd00:10:244::/56",
        "detectLocalMode": "NodeCIDR",
        "kubeProxyConfiguration": {
            "healthzBindAddress": "[::]:20256",
            "metricsBindAddress": "0.0.0.0:20249",
            "nodePortAddresses": ["primary"],
            "ipvs": {"strictARP": False, "syncPeriod": "15s", "excludeCIDRs": ["192.0.2.0/24"]},
            "conntrack": {"maxPerCore": 0, "min": 1048576},
        },
    },
    "our fields": {
        "ipvsProxyConfiguration": {
            "drainTimeout": "5m30s",
            "compatibility": "kube-proxy",
            "serviceMetrics": "off",
            "exposeState": True,
        }
    },
    "kubeadm's ConfigMap": {"existingKubeProxyConfigMap": "kube-proxy"},
    "beside kube-proxy": {"serviceProxyName": "ipvs", "podMonitor": {"enabled": True}},
    "beside kube-proxy, with its ConfigMap": {"serviceProxyName": "ipvs", "existingKubeProxyConfigMap": "kube-proxy"},
    "nftables": {"packetFilter": "nftables"},
    "iptables": {"packetFilter": "iptables"},
    "nodes": {
        "nodeSelector": {"example.com/proxy": "ipvs-proxy"},
        "maxUnavailable": 1,
        "resources": {"limits": {"memory": "2Gi"}},
    },
}


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Helm."""
    assert HELM.exists(), f"{HELM} is missing, run: make .cache/helm"
    return subprocess.run([HELM, *arguments], capture_output=True, text=True, timeout=30, check=False)


def template(values: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Render the chart as the release ``proxy`` in ``kube-system``."""
    sets = [argument for name, value in values.items() for argument in ("--set-json", f"{name}={json.dumps(value)}")]
    return helm("template", "proxy", str(CHART), "--namespace", "kube-system", *sets, *arguments)


@cache
def rendered(name: str) -> list[dict[str, Any]]:
    """The objects for one line of the matrix."""
    done = template(MATRIX[name])
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def objects(name: str, kind: str) -> list[dict[str, Any]]:
    """Those of a kind."""
    return [document for document in rendered(name) if document["kind"] == kind]


def pod(name: str) -> dict[str, Any]:
    """The pod's specification in the DaemonSet."""
    (daemon_set,) = objects(name, "DaemonSet")
    return daemon_set["spec"]["template"]["spec"]
