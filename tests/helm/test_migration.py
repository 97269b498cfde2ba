"""The commands of docs/migration.md that go to the cluster; the kernel ring runs those that go to a node."""

from __future__ import annotations

import json
import re
import shlex

import kubernetes_validate
import pytest
import yaml

from tests.helm.helm import CHART, ROOT, helm

DOCUMENT = (ROOT / "docs/migration.md").read_text()
LINES = [
    line for block in re.findall(r"^```\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]
PARTS = [shlex.split(part) for line in LINES for part in re.split(r" \| ", line)]
HELM = [words for words in PARTS if words[0] == "helm"]
KUBECTL = [words for words in PARTS if words[0] == "kubectl"]

#: What kubectl has, and with each what the documents use of it: options with a value, and options without.
OPTIONS = {
    "get": ({"-o", "-l", "--field-selector"}, set()),
    "debug": ({"--profile", "--image"}, {"-i", "-q"}),
    "patch": ({"--type", "--patch"}, set()),
    "rollout": (set(), set()),
    "label": (set(), {"--overwrite", "--all"}),
    "wait": ({"-l", "--field-selector", "--for", "--timeout"}, set()),
    "delete": (set(), set()),
    "drain": (set(), {"--ignore-daemonsets", "--delete-emptydir-data"}),
    "uncordon": (set(), set()),
}


def daemon_set(command: list[str]) -> dict:
    """Render the chart with the values of a command."""
    done = helm("template", *[str(CHART) if word == "helm/ipvs-proxy" else word for word in command[2:]])
    assert done.returncode == 0, done.stderr
    return next(found for found in yaml.safe_load_all(done.stdout) if found and found["kind"] == "DaemonSet")


def test_every_line_is_a_command() -> None:
    assert len(HELM) + len(KUBECTL) == len(PARTS) > 20


def test_the_chart_goes_to_the_labelled_nodes_and_then_to_all() -> None:
    first, last = (daemon_set(command) for command in HELM)
    linux = {"kubernetes.io/os": "linux"}
    assert first["spec"]["template"]["spec"]["nodeSelector"] == linux | {"proxy": "ipvs-proxy"}
    assert last["spec"]["template"]["spec"]["nodeSelector"] == linux
    for found in (first, last):
        assert {"name": "config", "configMap": {"name": "kube-proxy"}} in found["spec"]["template"]["spec"]["volumes"]
        # What the document waits for and selects by.
        assert (found["metadata"]["name"], found["metadata"]["namespace"]) == ("ipvs-proxy", "kube-system")
        assert found["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"] == "ipvs-proxy"


@pytest.mark.parametrize("command", KUBECTL, ids=" ".join)
def test_kubectl_gets_only_what_it_knows(command: list[str]) -> None:
    words = command[: command.index("--")] if "--" in command else command
    words = words[1:]
    if words[0] == "-n":
        assert words[1] == "kube-system"
        words = words[2:]
    with_value, without = OPTIONS[words[0]]
    rest = iter(words[1:])
    for word in rest:
        if word.startswith("-"):
            name, equals, _ = word.partition("=")
            assert name in (with_value if equals else with_value | without)
            if not equals and name in with_value:
                next(rest)


def test_the_patch_keeps_kube_proxy_off_labelled_nodes() -> None:
    (command,) = [command for command in KUBECTL if "patch" in command]
    patch = json.loads(command[command.index("--patch") + 1])
    template = patch["spec"]["template"]
    (term,) = template["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert term == {"matchExpressions": [{"key": "proxy", "operator": "DoesNotExist"}]}
    labels = {"k8s-app": "kube-proxy"}
    template |= {"metadata": {"labels": labels}}
    template["spec"]["containers"] = [{"name": "kube-proxy", "image": "kube-proxy"}]
    patched = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "kube-proxy", "namespace": "kube-system"},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }
    kubernetes_validate.validate(patched, "1.37", strict=True)
