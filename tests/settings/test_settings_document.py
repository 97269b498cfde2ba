"""The effective settings as documents: for a file, for ``/configz``."""

from __future__ import annotations

from ipvs_proxy.settings.document import configz
from ipvs_proxy.settings.merge import effective
from ipvs_proxy.settings.row import OWN
from ipvs_proxy.settings.table import SETTINGS


def test_configz_has_every_field_by_api_group_as_kube_proxy_shows_it() -> None:
    answer = configz(effective({"scheduler": "lc", "hostname_override": "Node-A"}))
    shown = answer["kubeproxy.config.k8s.io"]
    assert (shown["apiVersion"], shown["kind"]) == ("kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration")
    assert shown["ipvs"]["scheduler"] == "lc"
    assert shown["conntrack"]["tcpEstablishedTimeout"] == "24h0m0s"
    assert (shown["mode"], shown["detectLocalMode"], shown["hostnameOverride"]) == ("ipvs", "ClusterCIDR", "Node-A")
    assert answer["ipvs-proxy.io"]["drainTimeout"] == "1h0m0s"
    leaves = {
        f"{document['kind']}.{key}" if not isinstance(value, dict) or not value else f"{document['kind']}.{key}.{name}"
        for document in answer.values()
        for key, value in document.items()
        for name in (value if isinstance(value, dict) and value else [""])
    }
    assert {setting.path for setting in SETTINGS if setting.field} <= leaves
    assert len([setting for setting in SETTINGS if setting.document is OWN]) == len(answer["ipvs-proxy.io"]) - 2
