"""The commands of docs/migration.md that go to the cluster; the kernel ring runs those that go to a node."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from ipvs_proxy import __version__
from ipvs_proxy.kube.resources import SERVICE_PROXY_NAME
from tests.helm.helm import CHART, ROOT, helm

DOCUMENT = (ROOT / "docs/migration.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
#: The shell function that the others use, and what it runs.
FUNCTION = next(block for block in BLOCKS if "on_node() {" in block)
LINES = [line for block in BLOCKS if block is not FUNCTION for line in block.splitlines()]
PARTS = [shlex.split(re.sub(r"^until (.*); do sleep 2; done$", r"\1", line)) for line in LINES]
HELM = [words for words in PARTS if words[0] == "helm"]
ON_NODE = [words for words in PARTS if words[0] == "on_node"]
KUBECTL = [words for words in PARTS if words[0] == "kubectl"]
OF_FUNCTION = [
    shlex.split(call.replace("$(", "").rstrip(")"))
    for call in re.findall(r"kubectl -n kube-system [^|<>\n]+", FUNCTION)
]

#: What kubectl has, and with each what the documents use of it: options with a value, and options without.
OPTIONS = {
    "get": ({"-o", "-l", "--field-selector"}, set()),
    "create": ({"-o", "-f"}, set()),
    "describe": (set(), set()),
    "logs": (set(), set()),
    "patch": ({"--type", "--patch"}, set()),
    "rollout": (set(), set()),
    "label": (set(), {"--overwrite", "--all"}),
    "wait": ({"-l", "--field-selector", "--for", "--timeout"}, set()),
    "delete": ({"--wait"}, set()),
    "drain": (set(), {"--ignore-daemonsets", "--delete-emptydir-data"}),
    "uncordon": (set(), set()),
}

#: A kubectl that keeps what it is told, and answers as one whose pod has ended with a status.
STAND_IN = """\
#!/bin/sh
printf '%s\\n' "$*" >> "$TOLD/calls"
case "$3" in
create) cat > "$TOLD/pod.yaml"; [ -z "$REFUSED" ] || { echo "error: forbidden" >&2; exit 1; }; echo pod/ipvs-proxy-once-x7 ;;
wait) [ -z "$STUCK" ] || { echo "error: timed out waiting for the condition" >&2; exit 1; }; echo pod/x condition met ;;
logs) [ -z "$STUCK" ] || exit 1; echo "Ready: nothing stands in the way." ;;
get) printf '%s' "$STATUS" ;;
describe) echo "Back-off pulling image" ;;
esac
"""


def on_node(directory: Path, *arguments: str, shell: str = "sh", **world: str) -> subprocess.CompletedProcess[str]:
    """Run the document's function with a stand-in for kubectl that notes its calls in the directory."""
    program = directory / "kubectl"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    return subprocess.run(
        [shell, "-c", f'{FUNCTION}\non_node "$@"', shell, *arguments],
        env={"PATH": f"{directory}:/usr/bin:/bin", "TOLD": str(directory), **world},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def calls(directory: Path) -> list[str]:
    return [line.split()[2] for line in (directory / "calls").read_text().splitlines()]


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("status", [0, 2])
def test_command_on_a_node_prints_its_verdict_has_its_status_and_leaves_no_pod(
    tmp_path: Path, shell: str, status: int
) -> None:
    done = on_node(tmp_path, "node-1.example", *ON_NODE[0][2:], shell=shell, STATUS=str(status))
    assert (done.stdout, done.stderr, done.returncode) == ("Ready: nothing stands in the way.\n", "", status)
    assert calls(tmp_path) == ["create", "wait", "logs", "get", "delete"]
    pod = yaml.safe_load((tmp_path / "pod.yaml").read_text())
    kubernetes_validate.validate(pod, "1.37", strict=True)
    (container,) = pod["spec"]["containers"]
    assert (pod["spec"]["nodeName"], container["args"]) == ("node-1.example", ON_NODE[0][2:])
    assert (container["image"], pod["spec"]["restartPolicy"]) == (f"REGISTRY/ipvs-proxy:{__version__}", "Never")
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in pod["spec"]["volumes"]}
    assert ON_NODE[0][-1] == f"{mounted['config']}/config.conf"


def test_pod_that_never_starts_is_described_and_removed(tmp_path: Path) -> None:
    done = on_node(tmp_path, "node-1", "cleanup", STUCK="yes", STATUS="")
    assert (done.stdout, done.returncode) == ("", 1)
    assert "Back-off pulling image" in done.stderr
    assert calls(tmp_path)[-1] == "delete"


def test_pod_that_is_refused_is_an_error(tmp_path: Path) -> None:
    done = on_node(tmp_path, "node-1", "cleanup", REFUSED="yes")
    assert (done.returncode, calls(tmp_path)) == (1, ["create"])


def test_nothing_waits_for_an_input_that_may_not_end_or_pulls_what_is_newest() -> None:
    for words in (*KUBECTL, *OF_FUNCTION):
        assert not {"-i", "-it", "--stdin", "debug", "run", "exec", "attach"} & set(words)
    assert all(":" in image for image in re.findall(r"IMAGE=(\S+)", FUNCTION))


def daemon_set(command: list[str]) -> dict:
    """Render the chart with the values of a command."""
    done = helm("template", *[str(CHART) if word == "helm/ipvs-proxy" else word for word in command[2:]])
    assert done.returncode == 0, done.stderr
    return next(found for found in yaml.safe_load_all(done.stdout) if found and found["kind"] == "DaemonSet")


def test_every_line_is_a_command() -> None:
    assert len(HELM) + len(KUBECTL) + len(ON_NODE) == len(PARTS) > 15
    assert len(OF_FUNCTION) == 6


def test_the_chart_goes_to_the_labelled_nodes_and_then_to_all() -> None:
    first, last, _ = (daemon_set(command) for command in HELM)
    linux = {"kubernetes.io/os": "linux"}
    assert first["spec"]["template"]["spec"]["nodeSelector"] == linux | {"proxy": "ipvs-proxy"}
    assert last["spec"]["template"]["spec"]["nodeSelector"] == linux
    for found in (first, last):
        assert {"name": "config", "configMap": {"name": "kube-proxy"}} in found["spec"]["template"]["spec"]["volumes"]
        # What the document waits for and selects by.
        assert (found["metadata"]["name"], found["metadata"]["namespace"]) == ("ipvs-proxy", "kube-system")
        assert found["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"] == "ipvs-proxy"


def test_beside_kube_proxy_the_chart_goes_to_all_nodes_with_the_label_that_services_get() -> None:
    template = daemon_set(HELM[-1])["spec"]["template"]["spec"]
    assert template["nodeSelector"] == {"kubernetes.io/os": "linux"}
    (agent,) = template["containers"]
    (name,) = [word.removeprefix("--service-proxy-name=") for word in agent["args"] if "proxy-name" in word]
    labels = [words[-1] for words in KUBECTL if words[1:4] == ["label", "service", "web"]]
    assert labels == [f"{SERVICE_PROXY_NAME}={name}", f"{SERVICE_PROXY_NAME}-"]
    assert ["--service-proxy-name", name] in [words[-2:] for words in ON_NODE]


@pytest.mark.parametrize("command", [*KUBECTL, *OF_FUNCTION], ids=" ".join)
def test_kubectl_gets_only_what_it_knows(command: list[str]) -> None:
    words = command[1:]
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
