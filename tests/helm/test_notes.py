"""What an installation prints: the next commands, and what is missing or in the way."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from tests.helm.helm import CHART, MATRIX, daemon_set, helm

#: What an API server says that it has, as far as the chart's objects go: group and version, and each kind's resource.
RESOURCES = {
    "v1": {"ServiceAccount": "serviceaccounts", "ConfigMap": "configmaps", "Pod": "pods", "Namespace": "namespaces"},
    "apps/v1": {"DaemonSet": "daemonsets"},
    "rbac.authorization.k8s.io/v1": {"ClusterRole": "clusterroles", "ClusterRoleBinding": "clusterrolebindings"},
}
ACROSS = {"Namespace", "ClusterRole", "ClusterRoleBinding"}


def notes(values: dict[str, Any], *arguments: str, namespace: str = "kube-system") -> str:
    """What an installation as the release ``proxy`` prints at its end."""
    sets = [argument for name, value in values.items() for argument in ("--set-json", f"{name}={json.dumps(value)}")]
    how = arguments or ("--dry-run=client",)
    done = helm("install", "proxy", str(CHART), "--namespace", namespace, *sets, *how)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("NOTES:")[2]


def discovery(path: str) -> dict[str, Any] | None:
    """What an API server answers to who asks what it has."""
    if path == "/version":
        return {"major": "1", "minor": "37", "gitVersion": "v1.37.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = [version.partition("/")[0] for version in RESOURCES if "/" in version]
        listed = [{"groupVersion": f"{group}/v1", "version": "v1"} for group in groups]
        named = zip(groups, listed, strict=True)
        return {
            "kind": "APIGroupList",
            "groups": [{"name": group, "versions": [one], "preferredVersion": one} for group, one in named],
        }
    version = path.removeprefix("/api/").removeprefix("/apis/")
    if version not in RESOURCES:
        return None
    kinds = RESOURCES[version].items()
    verbs = ["get", "list", "create", "patch"]
    resources = [
        {"name": name, "kind": kind, "namespaced": kind not in ACROSS, "verbs": verbs, "singularName": ""}
        for kind, name in kinds
    ]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}


@contextmanager
def cluster(namespace: str, labels: dict[str, str]) -> Iterator[list[str]]:
    """A cluster with one namespace and nothing in it; yields the flags that lead Helm to it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            found = discovery(path)
            if path == f"/api/v1/namespaces/{namespace}":
                found = {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": namespace, "labels": labels}}
            elif path.endswith("/secrets"):
                found = {"kind": "SecretList", "apiVersion": "v1", "items": []}
            self.answer(200 if found else 404, found or {"kind": "Status", "reason": "NotFound", "code": 404})

        def do_POST(self) -> None:
            self.answer(201, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        do_PATCH = do_POST  # noqa: N815

        def answer(self, status: int, document: dict[str, Any]) -> None:
            body = json.dumps({"apiVersion": "v1"} | document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        where = f"http://127.0.0.1:{server.server_address[1]}"
        yield ["--dry-run=server", "--kube-apiserver", where, "--disable-openapi-validation"]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_next_three_commands_come_first() -> None:
    lines = [shlex.split(line) for line in notes({}).splitlines() if line.startswith("  ")]
    rollout, test, status = lines
    assert rollout == ["kubectl", "-n", "kube-system", "rollout", "status", "daemonset/proxy"]
    assert test == ["helm", "-n", "kube-system", "test", "proxy", "--logs"]
    assert status == ["kubectl", "-n", "kube-system", "exec", "daemonset/proxy", "--", "ipvs-proxy", "status"]


def test_the_commands_follow_the_names_and_the_metrics_address() -> None:
    found = notes(MATRIX["everything"], namespace="kube-system")
    assert daemon_set("everything")["metadata"]["name"] == "services"
    assert "rollout status daemonset/services" in found
    assert "test proxy --logs" in found
    assert "exec daemonset/services -- ipvs-proxy status --agent=[::1]:20249" in found


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("default", "apiServer.host is not set"),
        ("default", "clusterCIDR is not set"),
        ("kubeadm's ConfigMap", "ConfigMap kube-proxy in this namespace"),
    ],
)
def test_notes_say_what_is_missing(name: str, says: str) -> None:
    assert says in notes(MATRIX[name])


def test_notes_are_silent_about_what_is_there() -> None:
    found = notes({"apiServer": {"host": "10.0.0.10"}, "clusterCIDR": "10.0.0.0/8"})
    assert "is not set" not in found
    assert "Pod Security" not in found


@pytest.mark.parametrize("level", ["baseline", "restricted"])
def test_a_namespace_that_forbids_the_pods_is_named(level: str) -> None:
    with cluster("proxies", {"pod-security.kubernetes.io/enforce": level}) as flags:
        found = " ".join(notes({}, *flags, namespace="proxies").split())
    assert f'THE NAMESPACE proxies HAS THE POD SECURITY LEVEL "{level}"' in found
    assert "the DaemonSet is accepted and no pod comes" in found
    assert "kubectl label namespace proxies pod-security.kubernetes.io/enforce=privileged --overwrite" in found


@pytest.mark.parametrize(
    ("namespace", "labels", "says"),
    [
        ("proxies", {"pod-security.kubernetes.io/enforce": "privileged"}, False),
        ("proxies", {}, True),
        ("kube-system", {}, False),
    ],
)
def test_a_namespace_that_says_nothing_may_still_forbid_them(
    namespace: str, labels: dict[str, str], says: bool
) -> None:
    with cluster(namespace, labels) as flags:
        found = notes({}, *flags, namespace=namespace)
    assert ("if no pod comes" in found) is says
    assert not re.search(r"POD SECURITY", found)
