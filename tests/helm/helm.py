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
KUBECTL = ROOT / ".cache" / "kubectl"
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
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "edge", "operator": "DoesNotExist"}]}]
                }
            }
        },
        "tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule"}],
        "updateStrategy": {"rollingUpdate": {"maxUnavailable": 1}},
        "resources": {"limits": {"memory": "2Gi"}},
    },
    "names": {"nameOverride": "proxy-of-services", "fullnameOverride": "services"},
    "registries": {
        "global": {
            "imageRegistry": "mirror.example:5000/cache",
            "imagePullSecrets": ["by-name", {"name": "pull"}],
            "others": {"may": "be there"},
        },
        "image": {"registry": "registry.example"},
        "imagePullSecrets": [{"name": "pull"}, {"name": "own"}],
    },
    "update by hand": {"updateStrategy": {"type": "OnDelete"}},
    "no priority, no tolerations": {"priorityClassName": "", "tolerations": []},
    "pods": {
        "podAnnotations": {"example.com/note": "1"},
        "podLabels": {"example.com/team": "net"},
        "terminationGracePeriodSeconds": 10,
        "extraArgs": ["--v=4", "--drain-timeout=5m"],
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}],
        "extraVolumes": [{"name": "trust", "configMap": {"name": "trust"}}],
        "extraVolumeMounts": [{"name": "trust", "mountPath": "/etc/ssl/trust", "readOnly": True}],
    },
}


def _union(*parts: dict[str, Any]) -> dict[str, Any]:
    """The values of several uses at once; of two that say the same thing, the later one's."""
    union: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            both = isinstance(value, dict) and isinstance(union.get(name), dict)
            union[name] = _union(union[name], value) if both else value
    return union


#: Every value turned on; an existing ConfigMap cannot be, beside those that it replaces.
MATRIX["everything"] = _union(
    *(values for values in MATRIX.values() if "existingKubeProxyConfigMap" not in values),
    {"dashboard": {"labels": {"example.com/dashboard": "1"}}},
    {"priorityClassName": "system-cluster-critical", "tolerations": [{"key": "edge", "operator": "Exists"}]},
    {"apiServer": {"port": 8443}, "kubeProxyConfiguration": {"metricsBindAddress": "[::1]:20249"}},
)


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Helm."""
    assert HELM.exists(), f"{HELM} is missing, run: make .cache/helm"
    return subprocess.run([HELM, *arguments], capture_output=True, text=True, timeout=30, check=False)


def kustomized(directory: Path) -> list[dict[str, Any]]:
    """What the real kustomize, which kubectl has in it, makes of a directory."""
    assert KUBECTL.exists(), f"{KUBECTL} is missing, run: make .cache/kubectl"
    command = [KUBECTL, "kustomize", directory]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


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
    return daemon_set(name)["spec"]["template"]["spec"]


def daemon_set(name: str) -> dict[str, Any]:
    """The only one."""
    (found,) = objects(name, "DaemonSet")
    return found
