"""What a name of the Services' label changes: the agent runs beside a kube-proxy, which has ports and limits of its own."""

from __future__ import annotations

import pytest

from ipvs_proxy.settings.document import configz
from ipvs_proxy.settings.merge import effective
from ipvs_proxy.settings.model import Settings, SettingsError

LIMITS = (
    "conntrack_max_per_core",
    "conntrack_min",
    "conntrack_tcp_established",
    "conntrack_tcp_close_wait",
    "conntrack_tcp_be_liberal",
    "conntrack_udp",
    "conntrack_udp_stream",
)


def beside(**flags: object) -> Settings:
    return effective({"hostname_override": "node", "service_proxy_name": "ipvs", **flags})


def test_ports_are_not_those_of_kube_proxy_unless_they_are_configured() -> None:
    found = beside()
    assert (found.healthz_bind_address, found.metrics_bind_address) == ("0.0.0.0:10356", "127.0.0.1:10349")
    assert found.notes == ()
    assert beside(bind_address="fd00::1").healthz_bind_address == "[::]:10356"
    assert beside(healthz_port="0").healthz_bind_address == ""
    assert beside(metrics_port="9999").metrics_bind_address == "127.0.0.1:9999"


def test_ports_that_kube_proxy_has_are_told() -> None:
    (note,) = beside(healthz_bind_address="0.0.0.0:10256", metrics_bind_address="127.0.0.1:7").notes
    assert note.event == "ports_may_be_those_of_kube_proxy"
    assert note.fields["addresses"] == ["0.0.0.0:10256"]
    (note,) = effective(
        {"service_proxy_name": "ipvs", "hostname_override": "node"},
        {"KubeProxyConfiguration.metricsBindAddress": "0.0.0.0:10249"},
    ).notes
    assert note.fields["addresses"] == ["0.0.0.0:10249"]


def test_limits_of_conntrack_are_left_alone_but_for_those_that_are_set() -> None:
    alone, found = effective({"hostname_override": "node"}), beside(conntrack_udp="3s")
    assert alone.conntrack_max_per_core
    assert alone.conntrack_tcp_established
    assert {name: getattr(found, name) for name in LIMITS if getattr(found, name)} == {"conntrack_udp": 3.0}
    shown = configz(found)["kubeproxy.config.k8s.io"]
    assert shown["conntrack"] == {
        "maxPerCore": 0,
        "min": 0,
        "tcpBeLiberal": False,
        "tcpCloseWaitTimeout": "0s",
        "tcpEstablishedTimeout": "0s",
        "udpStreamTimeout": "0s",
        "udpTimeout": "3s",
    }


@pytest.mark.parametrize("name", ["", "ipvs", "A", "a.b-c_d", "1" * 63])
def test_values_of_labels_are_taken(name: str) -> None:
    assert effective({"hostname_override": "node", "service_proxy_name": name}).service_proxy_name == name


@pytest.mark.parametrize("name", ["-a", "a-", "a b", "a,b", "a=b", "!a", "ä", "1" * 64, "a\n"])
def test_what_is_no_value_of_a_label_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=r"^--service-proxy-name: "):
        effective({"hostname_override": "node", "service_proxy_name": name})
