"""The chart through the real Helm: what it renders is valid, as safe as it can be, and what the agent reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipvs_proxy import __version__
from ipvs_proxy.settings.file import read_file
from ipvs_proxy.settings.merge import effective
from ipvs_proxy.settings.model import Settings
from tests.helm.helm import CHART, MATRIX, daemon_set, helm, objects, pod, rendered, template

USES = pytest.mark.parametrize("name", MATRIX)


def configuration(name: str, tmp_path: Path) -> tuple[Settings, dict[str, Any]]:
    """What the agent makes of the first document, and the second document."""
    config_map = objects(name, "ConfigMap")[0]
    ours, own = config_map["data"]["config.yaml"].split("\n---\n")
    file = tmp_path / "config.yaml"
    file.write_text(ours)
    fields, notes = read_file(file)
    assert [event for event, _ in notes if event != "config_fields_without_effect"] == []
    return effective({"hostname_override": "node-a"}, fields), yaml.safe_load(own)


def test_version_is_that_of_the_agent() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["apiVersion"], chart["version"], chart["appVersion"]) == ("v2", __version__, __version__)


@USES
def test_lint_has_nothing_to_say(name: str, tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(MATRIX[name]))
    done = helm("lint", "--strict", str(CHART), "--values", str(values))
    assert done.returncode == 0, done.stdout + done.stderr


@USES
def test_objects_have_one_name_and_refer_to_each_other(name: str) -> None:
    own = MATRIX[name].get("fullnameOverride", "proxy")
    for document in rendered(name):
        assert document["metadata"]["name"] in {own, f"{own}-dashboard", f"{own}-test"}
        if not document["kind"].startswith("ClusterRole"):
            assert document["metadata"]["namespace"] == "kube-system"
    found = daemon_set(name)["spec"]
    assert found["selector"]["matchLabels"].items() <= found["template"]["metadata"]["labels"].items()
    assert pod(name)["serviceAccountName"] == own
    (binding,) = objects(name, "ClusterRoleBinding")
    assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": own}
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": own, "namespace": "kube-system"}]


@USES
def test_agent_may_do_no_more_than_it_needs(name: str) -> None:
    (agent,) = pod(name)["containers"]
    assert agent["securityContext"] == {
        "runAsUser": 0,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", *["NET_RAW"] * (name != "nftables")]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    own = {mount["name"] for mount in MATRIX[name].get("extraVolumeMounts", [])}
    assert {mount["name"] for mount in agent["volumeMounts"]} - own == {"config", "xtables-lock", "tmp"}
    assert not {"hostPID", "hostIPC", "shareProcessNamespace"} & pod(name).keys()


@USES
def test_only_the_init_container_is_privileged_and_it_only_prepares_the_node(name: str) -> None:
    (init,) = pod(name)["initContainers"]
    (agent,) = pod(name)["containers"]
    assert init["securityContext"] == {"privileged": True, "runAsUser": 0, "readOnlyRootFilesystem": True}
    assert init["args"] == [*agent["args"], "--init-only"]
    assert {"name": "modules", "mountPath": "/lib/modules", "readOnly": True} in init["volumeMounts"]
    assert (init["image"], init["env"]) == (agent["image"], agent["env"])


@USES
def test_host_paths_are_the_modules_and_the_lock_of_iptables(name: str) -> None:
    assert [volume["hostPath"] for volume in pod(name)["volumes"] if "hostPath" in volume] == [
        {"path": "/lib/modules"},
        {"path": "/run/xtables.lock", "type": "FileOrCreate"},
    ]


@USES
def test_pod_runs_on_every_linux_node_before_there_are_services(name: str) -> None:
    specification = pod(name)
    assert specification["hostNetwork"] is True
    assert specification["dnsPolicy"] == "Default"
    if "priorityClassName" not in MATRIX[name]:
        assert specification["priorityClassName"] == "system-node-critical"
    if "tolerations" not in MATRIX[name]:
        assert specification["tolerations"] == [{"operator": "Exists"}]
    assert specification["nodeSelector"]["kubernetes.io/os"] == "linux"


def test_update_takes_a_tenth_of_the_nodes_at_once() -> None:
    assert daemon_set("default")["spec"]["updateStrategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": "10%"},
    }


def test_resources_have_requests_and_no_limit() -> None:
    (agent,) = pod("default")["containers"]
    assert agent["resources"] == {"requests": {"cpu": "50m", "memory": "128Mi"}}


@pytest.mark.parametrize(
    ("name", "healthz", "metrics"),
    [
        ("default", 10256, 10249),
        ("kube-proxy's fields", 20256, 20249),
        ("beside kube-proxy", 10356, 10349),
        ("beside kube-proxy, with its ConfigMap", 10356, 10349),
    ],
)
def test_probes_and_ports_follow_the_configuration(name: str, healthz: int, metrics: int) -> None:
    (agent,) = pod(name)["containers"]
    assert {port["name"]: port["containerPort"] for port in agent["ports"]} == {"healthz": healthz, "metrics": metrics}
    asked = {probe: agent[f"{probe}Probe"]["httpGet"] for probe in ("startup", "liveness", "readiness")}
    assert asked == {
        "startup": {"path": "/livez", "port": "healthz"},
        "liveness": {"path": "/livez", "port": "healthz"},
        "readiness": {"path": "/healthz", "port": "healthz"},
    }


@pytest.mark.parametrize("name", ["beside kube-proxy", "beside kube-proxy, with its ConfigMap"])
def test_label_of_the_services_is_a_flag_of_both_containers(name: str) -> None:
    spec = pod(name)
    for container in (*spec["initContainers"], *spec["containers"]):
        assert "--service-proxy-name=ipvs" in container["args"]
    done = template({"serviceProxyName": "-ipvs"})
    assert "serviceProxyName" in done.stderr


@pytest.mark.parametrize("name", ["nftables", "iptables", "default"])
def test_packet_filter_is_a_flag_of_both_containers_unless_the_configuration_may_say_it(name: str) -> None:
    spec = pod(name)
    for container in (*spec["initContainers"], *spec["containers"]):
        given = [argument for argument in container["args"] if argument.startswith("--packet-filter")]
        assert given == ([] if name == "default" else [f"--packet-filter={name}"])
    assert "packetFilter" in template({"packetFilter": "ebtables"}).stderr


def test_first_probe_comes_when_the_server_listens() -> None:
    (agent,) = pod("default")["containers"]
    # One that comes earlier is a warning event on every pod; the start has five minutes from then on all the same.
    assert agent["startupProbe"]["initialDelaySeconds"] == 5
    assert agent["startupProbe"]["periodSeconds"] * agent["startupProbe"]["failureThreshold"] == 300


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "fd00::1"])
def test_address_without_a_port_leaves_the_port_alone(address: str) -> None:
    done = template(
        {"kubeProxyConfiguration": {"healthzBindAddress": address}}, "--show-only", "templates/daemonset.yaml"
    )
    (agent,) = yaml.safe_load(done.stdout)["spec"]["template"]["spec"]["containers"]
    assert agent["ports"][0]["containerPort"] == 10256


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("default", f"ipvs-proxy:{__version__}"),
        ("image", "registry.example/net/ipvs-proxy:v1"),
        ("image digest", f"ipvs-proxy@sha256:{'0a' * 32}"),
    ],
)
def test_image_is_the_one_of_the_values(name: str, image: str) -> None:
    assert pod(name)["containers"][0]["image"] == image


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("default", {}),
        ("API server", {"KUBERNETES_SERVICE_HOST": "10.0.0.10", "KUBERNETES_SERVICE_PORT": "8443"}),
        ("API server over IPv6", {"KUBERNETES_SERVICE_HOST": "fd00::10", "KUBERNETES_SERVICE_PORT": "6443"}),
    ],
)
def test_address_of_the_api_server_is_in_the_environment(name: str, address: dict[str, str]) -> None:
    for container in (*pod(name)["initContainers"], *pod(name)["containers"]):
        node_name, *others = container["env"]
        assert node_name == {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
        assert {variable["name"]: variable["value"] for variable in others} == address
        assert "--hostname-override=$(NODE_NAME)" in container["args"]


@pytest.mark.parametrize(
    "name", [name for name, values in MATRIX.items() if "existingKubeProxyConfigMap" not in values]
)
def test_agent_reads_what_the_chart_writes(name: str, tmp_path: Path) -> None:
    values = MATRIX[name]
    settings, own = configuration(name, tmp_path)
    assert settings.scheduler == values.get("scheduler", "rr")
    assert own == {
        "apiVersion": "ipvs-proxy.io/v1alpha1",
        "kind": "IpvsProxyConfiguration",
        **values.get("ipvsProxyConfiguration", {}),
    }
    assert pod(name)["containers"][0]["args"][0] == "--config=/etc/ipvs-proxy/config.yaml"


def test_fields_of_the_user_win_and_those_beside_them_stay(tmp_path: Path) -> None:
    settings, _ = configuration("kube-proxy's fields", tmp_path)
    assert settings.scheduler == "rr"
    assert settings.healthz_bind_address == "[::]:20256"
    assert settings.sync_period == 15.0
    assert settings.detect_local_mode == "NodeCIDR"
    assert len(settings.cluster_cidrs) == 2
    document = yaml.safe_load(objects("kube-proxy's fields", "ConfigMap")[0]["data"]["config.yaml"].split("---")[0])
    assert document["mode"] == "ipvs"
    assert document["conntrack"] == {"maxPerCore": 0, "min": 1048576}
    assert document["ipvs"]["strictARP"] is False


def test_config_map_of_kubeadm_is_mounted_where_its_files_say_they_are() -> None:
    name = "kubeadm's ConfigMap"
    assert objects(name, "ConfigMap") == []
    (volume,) = [volume for volume in pod(name)["volumes"] if volume["name"] == "config"]
    assert volume["configMap"] == {"name": "kube-proxy"}
    for container in (*pod(name)["initContainers"], *pod(name)["containers"]):
        assert container["args"][0] == "--config=/var/lib/kube-proxy/config.conf"
        # No subPath, which would hide later changes.
        assert {"name": "config", "mountPath": "/var/lib/kube-proxy", "readOnly": True} in container["volumeMounts"]
    # The kubeconfig refers to the token of the service account.
    assert pod(name).get("automountServiceAccountToken", True)


@pytest.mark.parametrize(
    "values",
    [
        {"scheduler": "lc"},
        {"clusterCIDR": "10.0.0.0/8"},
        {"detectLocalMode": "NodeCIDR"},
        {"kubeProxyConfiguration": {"ipvs": {"strictARP": True}}},
        {"ipvsProxyConfiguration": {"drainTimeout": "5m"}},
    ],
    ids=lambda values: next(iter(values)),
)
def test_setting_that_an_existing_config_map_would_hide_is_refused(values: dict[str, Any]) -> None:
    done = template({"existingKubeProxyConfigMap": "kube-proxy", **values})
    assert done.returncode != 0
    assert "existingKubeProxyConfigMap is used as it is" in done.stderr


def test_change_of_the_configuration_restarts_nothing() -> None:
    one, other = (objects(name, "DaemonSet") for name in ("scheduler lc", "scheduler sh"))
    assert one == other


def test_monitors_find_the_agents() -> None:
    (monitor,) = objects("monitors", "PodMonitor")
    assert monitor["spec"]["selector"] == daemon_set("monitors")["spec"]["selector"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in pod("monitors")["containers"][0]["ports"]}
    assert endpoint["interval"] == "30s"
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    config_map, dashboard = objects("monitors", "ConfigMap")
    assert yaml.safe_load(config_map["data"]["config.yaml"].split("---")[0])["metricsBindAddress"] == "0.0.0.0:10249"
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(dashboard["data"]["ipvs-proxy.json"]) == json.loads((CHART / "files/dashboard.json").read_text())
    (rule,) = objects("monitors", "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((CHART / "files/alerts.yaml").read_text())


def test_without_monitors_metrics_stay_on_the_loopback() -> None:
    assert not [document for document in rendered("default") if document["kind"] in {"PodMonitor", "PrometheusRule"}]
    assert "metricsBindAddress" not in objects("default", "ConfigMap")[0]["data"]["config.yaml"]


@pytest.mark.parametrize(
    ("values", "path", "message"),
    [
        ({"shceduler": "lc"}, "", "'shceduler' not allowed"),
        ({"image": {"name": "x"}}, "/image", "'name' not allowed"),
        ({"image": {"digest": "0a0a"}}, "/image/digest", "does not match pattern"),
        ({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy", "must be one of 'Always'"),
        ({"apiServer": {"port": "6443"}}, "/apiServer/port", "got string, want integer"),
        ({"apiServer": {"port": 0}}, "/apiServer/port", "got 0, want 1"),
        ({"apiServer": {"host": "https://10.0.0.10"}}, "/apiServer/host", "does not match pattern"),
        ({"scheduler": 1}, "/scheduler", "got number, want string"),
        ({"clusterCIDR": "10.0.0.0/8, fd00::/8"}, "/clusterCIDR", "does not match pattern"),
        ({"detectLocalMode": "Guess"}, "/detectLocalMode", "must be one of ''"),
        ({"kubeProxyConfiguration": []}, "/kubeProxyConfiguration", "got array, want object"),
        ({"kubeProxyConfiguration": {"kind": "x"}}, "/kubeProxyConfiguration/kind", "false schema"),
        ({"ipvsProxyConfiguration": {"drain": "1h"}}, "/ipvsProxyConfiguration", "'drain' not allowed"),
        ({"ipvsProxyConfiguration": {"drainTimeout": 60}}, "/ipvsProxyConfiguration/drainTimeout", "want string"),
        (
            {"ipvsProxyConfiguration": {"serviceMetrics": False}},
            "/ipvsProxyConfiguration/serviceMetrics",
            "one of 'all'",
        ),
        ({"ipvsProxyConfiguration": {"exposeState": "yes"}}, "/ipvsProxyConfiguration/exposeState", "want boolean"),
        (
            {"updateStrategy": {"rollingUpdate": {"maxUnavailable": "some"}}},
            "/updateStrategy/rollingUpdate/maxUnavailable",
            "does not match pattern",
        ),
        ({"updateStrategy": {"rollingUpdate": {"maxSurge": 1}}}, "/updateStrategy/rollingUpdate", "'maxSurge' not"),
        ({"updateStrategy": {"type": "Recreate"}}, "/updateStrategy/type", "must be one of 'RollingUpdate'"),
        ({"image": {"registry": "https://registry.example"}}, "/image/registry", "does not match pattern"),
        ({"global": {"imageRegistry": "registry.example/"}}, "/global/imageRegistry", "does not match pattern"),
        ({"fullnameOverride": "Services"}, "/fullnameOverride", "does not match pattern"),
        ({"podLabels": {"app.kubernetes.io/name": "x"}}, "", "propertyName 'app.kubernetes.io/name"),
        ({"extraArgs": ["v=4"]}, "/extraArgs/0", "does not match pattern"),
        ({"extraVolumeMounts": [{"name": "a"}]}, "/extraVolumeMounts/0", "missing property 'mountPath'"),
        ({"terminationGracePeriodSeconds": 0}, "/terminationGracePeriodSeconds", "got 0, want 1"),
        ({"podMonitor": {"enabled": "yes"}}, "/podMonitor/enabled", "got string, want boolean"),
        ({"nodeSelector": {"a": 1}}, "/nodeSelector/a", "got number, want string"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_value_that_is_none_is_refused_with_its_place(values: dict[str, Any], path: str, message: str) -> None:
    done = template(values)
    assert done.returncode != 0
    assert f"at '{path}'" in done.stderr
    assert message in done.stderr


def test_default_cannot_be_taken_away() -> None:
    done = template({"scheduler": None})
    assert done.returncode != 0
    assert "missing property 'scheduler'" in done.stderr
