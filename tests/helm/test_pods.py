"""What operators may say of the agents' pods, and the pod of ``helm test``."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from ipvs_proxy import __version__
from ipvs_proxy.cli import main
from tests.helm.helm import CHART, MATRIX, daemon_set, objects, pod, template


def checking_pod(name: str) -> dict[str, Any]:
    """The pod of ``helm test``."""
    (found,) = objects(name, "Pod")
    return found


def test_pods_have_what_the_values_say() -> None:
    values = MATRIX["pods"]
    metadata = daemon_set("pods")["spec"]["template"]["metadata"]
    assert metadata["annotations"] == values["podAnnotations"]
    assert metadata["labels"]["example.com/team"] == "net"
    assert pod("pods")["terminationGracePeriodSeconds"] == 10
    assert values["extraVolumes"][0] in pod("pods")["volumes"]
    for container in (*pod("pods")["initContainers"], *pod("pods")["containers"]):
        assert values["extraEnv"][0] in container["env"]
        assert values["extraVolumeMounts"][0] in container["volumeMounts"]
        assert [*container["args"], "--init-only"][2:5] == [*values["extraArgs"], "--init-only"]


def test_flags_of_the_values_are_flags_of_the_agent() -> None:
    known = {name for option in main.commands["run"].params for name in option.opts}
    for argument in MATRIX["pods"]["extraArgs"]:
        assert argument.partition("=")[0] in known


def test_pods_run_where_the_values_say() -> None:
    values, found = MATRIX["nodes"], pod("nodes")
    assert found["nodeSelector"] == {"kubernetes.io/os": "linux", "example.com/proxy": "ipvs-proxy"}
    assert (found["affinity"], found["tolerations"]) == (values["affinity"], values["tolerations"])
    assert not {"priorityClassName", "tolerations"} & pod("no priority, no tolerations").keys()


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("nodes", {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}),
        ("update by hand", {"type": "OnDelete"}),
    ],
)
def test_update_goes_as_the_values_say(name: str, strategy: dict[str, Any]) -> None:
    assert daemon_set(name)["spec"]["updateStrategy"] == strategy


@pytest.mark.parametrize(
    ("image", "registry", "expected"),
    [
        ({}, "", f"ipvs-proxy:{__version__}"),
        ({"registry": "registry.example:5000"}, "", f"registry.example:5000/ipvs-proxy:{__version__}"),
        ({"registry": "registry.example"}, "mirror.example/cache", f"mirror.example/cache/ipvs-proxy:{__version__}"),
        ({"registry": "[fd00::1]:5000", "repository": "net/proxy", "tag": "1"}, "", "[fd00::1]:5000/net/proxy:1"),
    ],
)
def test_registry_goes_before_the_name(image: dict[str, str], registry: str, expected: str) -> None:
    done = template({"image": image, "global": {"imageRegistry": registry}})
    found = [document for document in yaml.safe_load_all(done.stdout) if document]
    (agents,) = [document["spec"]["template"]["spec"] for document in found if document["kind"] == "DaemonSet"]
    (test,) = [document["spec"] for document in found if document["kind"] == "Pod"]
    containers = (*agents["initContainers"], *agents["containers"], *test["containers"])
    assert {container["image"] for container in containers} == {expected}


def test_secrets_of_all_charts_and_of_this_one_are_used_once() -> None:
    secrets = [{"name": "by-name"}, {"name": "pull"}, {"name": "own"}]
    assert pod("registries")["imagePullSecrets"] == checking_pod("registries")["spec"]["imagePullSecrets"] == secrets
    assert "imagePullSecrets" not in pod("default")


@pytest.mark.parametrize("name", MATRIX)
def test_the_pod_of_helm_test_goes_where_an_agent_is_and_is_none_of_them(name: str) -> None:
    agents, test = pod(name), checking_pod(name)
    for field in ("nodeSelector", "affinity", "tolerations"):
        assert test["spec"].get(field) == agents.get(field)
    # A DaemonSet takes over every pod that its selector finds and no other controller owns.
    selector = daemon_set(name)["spec"]["selector"]["matchLabels"]
    assert not selector.items() <= test["metadata"]["labels"].items()
    assert test["metadata"]["annotations"]["helm.sh/hook"] == "test"


@pytest.mark.parametrize("name", MATRIX)
def test_the_pod_of_helm_test_may_do_nothing_but_ask_on_the_loopback(name: str) -> None:
    specification = checking_pod(name)["spec"]
    assert (specification["hostNetwork"], specification["automountServiceAccountToken"]) == (True, False)
    assert "volumes" not in specification
    for container in specification["containers"]:
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["runAsNonRoot"]
        assert container["args"][0] in main.commands


@pytest.mark.parametrize(
    ("configuration", "agent"),
    [
        ({}, "127.0.0.1:10249"),
        ({"metricsBindAddress": "0.0.0.0:20249"}, "127.0.0.1:20249"),
        ({"metricsBindAddress": "[::]:20249"}, "[::1]:20249"),
        ({"bindAddress": "fd00:0:0:0:0:0:0:1"}, "[::1]:10249"),
        ({"bindAddress": "fd00::1", "metricsBindAddress": "127.0.0.1"}, "127.0.0.1:10249"),
    ],
)
def test_the_pod_of_helm_test_asks_where_the_agent_answers(configuration: dict[str, str], agent: str) -> None:
    done = template({"kubeProxyConfiguration": configuration}, "--show-only", "templates/tests/agent.yaml")
    for container in yaml.safe_load(done.stdout)["spec"]["containers"]:
        assert container["args"][-1] == f"--agent={agent}"


def test_annotations_say_what_artifact_hub_asks_for() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    notes = {name.partition("/")[2]: text for name, text in chart["annotations"].items()}
    assert notes["category"] == "networking"
    assert notes["license"] == "Apache-2.0"
    (agents,) = pod("default")["containers"]
    assert yaml.safe_load(notes["images"]) == [{"name": "ipvs-proxy", "image": agents["image"]}]
    for link in yaml.safe_load(notes["links"]):
        assert link.keys() == {"name", "url"}
        assert link["url"].startswith("https://")
