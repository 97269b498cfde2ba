"""Every file in docs/install is read by the one that it is for: values by the chart and then the agent, configurations
by the agent, overlays by kustomize. What is another project's is YAML that says what the recipe says."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import kubernetes_validate
import pytest
import yaml

from ipvs_proxy.settings.file import read_settings
from ipvs_proxy.settings.model import Settings
from tests.helm.helm import CHART, ROOT, helm, kustomized

RECIPES = ROOT / "docs" / "install"
NAMES = sorted(path.stem for path in RECIPES.glob("*.md") if path.stem != "README")
WITH_VALUES = [name for name in NAMES if name != "kustomize"]

#: What the agent does with a recipe's values; all else is as without any.
EFFECT: dict[str, dict[str, str]] = {
    "kubeadm": {"cluster_cidrs": "10.244.0.0/16"},
    "kubespray": {"cluster_cidrs": "10.233.64.0/18"},
    "rke2": {"cluster_cidrs": "10.42.0.0/16"},
    "k3s": {"cluster_cidrs": "10.42.0.0/16"},
    "k0s": {"cluster_cidrs": "10.244.0.0/16"},
    "talos": {"cluster_cidrs": "10.244.0.0/16"},
    "calico": {"cluster_cidrs": "192.168.0.0/16"},
    "flannel": {"cluster_cidrs": "10.244.0.0/16"},
    "cilium": {"cluster_cidrs": "10.244.0.0/16"},
    "metallb": {"strict_arp": "True"},
    "kube-vip": {"strict_arp": "True"},
    "nodelocaldns": {"cluster_cidrs": "10.244.0.0/16"},
    "aws-vpc-cni": {"detect_local_mode": "InterfaceNamePrefix", "interface_name_prefix": "eni"},
}
#: Where the agents reach the API server.
API_SERVER = {
    "kubeadm": "api.example.com:6443",
    "kubespray": "127.0.0.1:6443",
    "rke2": "localhost:6443",
    "k3s": "127.0.0.1:6444",
    "k0s": "127.0.0.1:7443",
    "talos": "localhost:7445",
    "kube-vip": "192.0.2.10:6443",
    "aws-vpc-cni": "0123456789ABCDEF.gr7.eu-central-1.eks.amazonaws.com:443",
}
#: What an installer's file must say so that the values beside it are right: its documents' fields, by their paths.
INSTALLERS: dict[tuple[str, str], dict[str, Any]] = {
    ("kubeadm", "kubeadm.yaml"): {
        "0.skipPhases.0": "addon/kube-proxy",
        "1.controlPlaneEndpoint": API_SERVER["kubeadm"],
        "1.networking.podSubnet": "10.244.0.0/16",
    },
    ("kubespray", "inventory/mycluster/group_vars/k8s_cluster/k8s-cluster.yml"): {
        "0.kube_proxy_remove": True,
        "0.kube_pods_subnet": "10.233.64.0/18",
        "0.loadbalancer_apiserver_localhost": True,
    },
    ("rke2", "/etc/rancher/rke2/config.yaml"): {"0.disable-kube-proxy": True, "0.cluster-cidr": "10.42.0.0/16"},
    ("k3s", "/etc/rancher/k3s/config.yaml"): {"0.disable-kube-proxy": True, "0.cluster-cidr": "10.42.0.0/16"},
    ("k0s", "k0s.yaml"): {
        "0.spec.network.podCIDR": "10.244.0.0/16",
        "0.spec.network.kubeProxy.disabled": True,
        "0.spec.network.nodeLocalLoadBalancing.enabled": True,
    },
    ("talos", "kube-proxy.yaml"): {"0.cluster.proxy.disabled": True},
    ("talos", "kube-proxy-1.14.yaml"): {"0.kind": "KubeProxyConfig", "0.enabled": False},
    ("flannel", "kube-flannel-cfg.yaml"): {"0.kind": "ConfigMap"},
    ("cilium", "cilium-values.yaml"): {"0.kubeProxyReplacement": False, "0.cni.chainingMode": "generic-veth"},
    ("metallb", "metallb.yaml"): {"0.kind": "IPAddressPool", "1.kind": "L2Advertisement"},
    ("kube-vip", "kube-vip-environment.yaml"): {"0.3.value": "192.0.2.10", "0.4.value": "false"},
    ("nodelocaldns", "kubelet.yaml"): {"0.kind": "KubeletConfiguration", "0.clusterDNS.0": "169.254.20.10"},
}
#: What the agent, kustomize or Kubernetes reads, in tests of their own.
READ = {("kustomize", name) for name in ("kustomization.yaml", "config.yaml", "api-server.yaml")}


@cache
def files(recipe: str) -> dict[str, str]:
    """The files in a recipe, by the names that their fences have."""
    text = (RECIPES / f"{recipe}.md").read_text()
    assert re.findall(r"^```yaml *$", text, re.MULTILINE) == [], f"{recipe}: a file without a name is fed to nobody"
    found = re.findall(r"^```yaml (\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(dict(found)) == len(found), f"{recipe}: two files have one name"
    return dict(found)


@cache
def rendered(*recipes: str) -> list[dict[str, Any]]:
    """What the chart makes of the values of some recipes."""
    with TemporaryDirectory() as directory:
        arguments = []
        for recipe in recipes:
            path = Path(directory, f"{recipe}.yaml")
            path.write_text(files(recipe)["values.yaml"])
            arguments += ["--values", str(path)]
        done = helm("template", "ipvs-proxy", str(CHART), "--namespace", "kube-system", *arguments)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def settings(directory: Path, configuration: str) -> Settings:
    """What the agent makes of a file; it must understand all of it."""
    path = directory / "config.yaml"
    path.write_text(configuration)
    found = read_settings({"hostname_override": "node-a"}, path)
    assert [note for note in found.notes if note.event != "config_fields_without_effect"] == []
    return found


def configuration_of(documents: list[dict[str, Any]]) -> str:
    (config_map,) = [document for document in documents if document["kind"] == "ConfigMap"]
    return config_map["data"]["config.yaml"]


def written(found: Settings, name: str) -> str:
    value = getattr(found, name)
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def at(value: Any, path: str) -> Any:
    for part in path.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


@pytest.mark.parametrize("recipe", WITH_VALUES)
def test_the_agent_does_what_the_values_say(recipe: str, tmp_path: Path) -> None:
    found, plain = settings(tmp_path, configuration_of(rendered(recipe))), Settings("node-a")
    effect = EFFECT[recipe]
    for name in ("cluster_cidrs", "strict_arp", "detect_local_mode", "interface_name_prefix", "scheduler"):
        assert written(found, name) == effect.get(name, written(plain, name)), name


@pytest.mark.parametrize("recipe", WITH_VALUES)
def test_the_agents_reach_the_api_server_where_the_recipe_says(recipe: str) -> None:
    (found,) = [document for document in rendered(recipe) if document["kind"] == "DaemonSet"]
    (agent,) = found["spec"]["template"]["spec"]["containers"]
    variables = {variable["name"]: variable.get("value") for variable in agent["env"]}
    host, port = variables.get("KUBERNETES_SERVICE_HOST"), variables.get("KUBERNETES_SERVICE_PORT")
    assert API_SERVER.get(recipe) == (f"{host}:{port}" if host else None)


@pytest.mark.parametrize(("recipe", "name"), INSTALLERS, ids=lambda part: part)
def test_an_installers_file_says_what_the_values_rely_on(recipe: str, name: str) -> None:
    documents = list(yaml.safe_load_all(files(recipe)[name]))
    for path, value in INSTALLERS[recipe, name].items():
        assert at(documents, path) == value, path
    # A file of the same name for the chart is about the same pods.
    for cidr in re.findall(r"\b\d+\.\d+\.\d+\.0/1[68]\b", files(recipe)[name]):
        assert EFFECT[recipe]["cluster_cidrs"] == cidr


def test_every_file_is_fed_to_somebody() -> None:
    there = {(recipe, name) for recipe in NAMES for name in files(recipe)}
    assert there == {(recipe, "values.yaml") for recipe in WITH_VALUES} | INSTALLERS.keys() | READ


def test_values_of_two_recipes_go_together(tmp_path: Path) -> None:
    for cluster in ("kubespray", "k3s", "rke2", "k0s", "talos", "kubeadm"):
        found = settings(tmp_path, configuration_of(rendered(cluster, "metallb")))
        assert found.strict_arp
        assert written(found, "cluster_cidrs") == EFFECT[cluster]["cluster_cidrs"]


def test_the_overlay_is_the_base_with_what_it_says(tmp_path: Path) -> None:
    overlay = tmp_path / "deploy" / "production"
    overlay.mkdir(parents=True)
    (tmp_path / "deploy" / "base").mkdir()
    for path in (ROOT / "deploy" / "base").iterdir():
        (tmp_path / "deploy" / "base" / path.name).write_text(path.read_text())
    for name, text in files("kustomize").items():
        (overlay / name).write_text(text)
    documents = kustomized(overlay)
    for document in documents:
        kubernetes_validate.validate(document, "1.37", strict=True)
    (found,) = [document for document in documents if document["kind"] == "DaemonSet"]
    specification = found["spec"]["template"]["spec"]
    for container in (*specification["initContainers"], *specification["containers"]):
        variables = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert variables["KUBERNETES_SERVICE_HOST"] == "10.0.0.10"
        assert "NODE_NAME" in variables
        assert container["image"].startswith("registry.example/net/ipvs-proxy:")
    made = settings(tmp_path, configuration_of(documents))
    assert (made.scheduler, made.drain_timeout, written(made, "cluster_cidrs")) == ("lc", 600, "10.244.0.0/16")


def test_the_command_of_the_overview_installs(tmp_path: Path) -> None:
    (line,) = re.findall(r"^helm install .*$", (RECIPES / "README.md").read_text(), re.MULTILINE)
    (tmp_path / "values.yaml").write_text(files("k3s")["values.yaml"])
    named = {"helm/ipvs-proxy": str(CHART), "values.yaml": str(tmp_path / "values.yaml")}
    _, _, *arguments = [named.get(word, word) for word in shlex.split(line)]
    done = helm("template", *(word.replace("REGISTRY", "registry.example") for word in arguments))
    assert done.returncode == 0, done.stderr
    assert 'image: "registry.example/ipvs-proxy:' in done.stdout


def test_every_recipe_is_in_the_overview_and_says_where_its_facts_are_from() -> None:
    linked = set(re.findall(r"\]\(([\w-]+)\.md\)", (RECIPES / "README.md").read_text()))
    assert linked == set(NAMES)
    for name in WITH_VALUES:
        assert re.search(r"^Sources: ", (RECIPES / f"{name}.md").read_text(), re.MULTILINE), name


def test_links_lead_to_files() -> None:
    for path in RECIPES.glob("*.md"):
        text = path.read_text()
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
        for name in re.findall(r"\(`(tests/\S+\.py)`\)", text):
            assert (ROOT / name).exists(), f"{path.name}: {name}"
