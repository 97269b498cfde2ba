"""The table of all settings: flags, fields of the file, defaults, checks and documentation derive from it.

Names, defaults and meanings are kube-proxy's (kubeproxy.config.k8s.io/v1alpha1 of Kubernetes 1.36). What it has and
this agent has no use for is accepted, so that its file and its command line work as they are; ``without_effect`` says
why. Our own settings have a document of their own beside kube-proxy's. A row is all that a further setting needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Final, NamedTuple

from ipvs_proxy.settings.values import (
    ADDRESS,
    ANYTHING,
    CLUSTER_NETWORKS,
    COMPATIBILITY,
    COUNT,
    DIRECTORY,
    DURATION,
    GATES,
    INTERFACE,
    NETWORKS,
    NODE_PORT_ADDRESSES,
    NUMBER,
    SCHEDULER,
    SERVICE_METRICS,
    SWITCH,
    TEXT,
    Kind,
    bind_address,
    duration_kind,
    duration_or,
    integer_kind,
    one_of,
)

DETECT_LOCAL_MODES: Final = ("ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix")
ANY_IPV4: Final = "0.0.0.0"  # noqa: S104  kube-proxy's default


class Document(NamedTuple):
    """One kind of document of a configuration file."""

    api_version: str
    kind: str


KUBE_PROXY: Final = Document("kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration")
OWN: Final = Document("ipvs-proxy.io/v1alpha1", "IpvsProxyConfiguration")


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table.

    ``field`` is its place in ``document`` (empty: flag only) and ``flag`` its flag (empty: field only). ``default`` is
    written as a flag's value is, and ``file_default`` where a file has another one. ``outranks_file`` is for the flags
    that count although there is a file. ``live`` settings follow a changed file without a restart.
    """

    name: str
    field: str
    flag: str
    kind: Kind
    default: str
    help: str
    outranks_file: bool = False
    file_default: str | None = None
    live: bool = False
    without_effect: str = ""
    hidden: bool = False
    document: Document = KUBE_PROXY

    @property
    def path(self) -> str:
        """The field with the kind of its document in front, as error messages have it."""
        return f"{self.document.kind}.{self.field}" if self.field else ""


_OTHER_MODE: Final = "IPVS is the only mode here"
_WINDOWS: Final = "Windows only"


def _accepted(field: str, flag: str, kind: Kind, default: str, why: str) -> Setting:
    """Make the row of a setting of kube-proxy that means nothing here."""
    return Setting(_name(field or flag), field, flag, kind, default, f"Accepted: {why}", without_effect=why)


def _name(text: str) -> str:
    return text.removeprefix("--").replace(".", "_").replace("-", "_").lower()


# fmt: off
SETTINGS_BY_GROUP: Final[Mapping[str, tuple[Setting, ...]]] = {
    "Where the objects come from": (
        Setting("kubeconfig", "clientConnection.kubeconfig", "--kubeconfig", TEXT, "",
                "How to reach the API server; without it, the pod's service account"),
        Setting("master", "", "--master", TEXT, "",
                "Address of the API server, instead of the kubeconfig's", outranks_file=True),
        Setting("manifests", "", "--manifests", DIRECTORY, "",
                "Read objects from the YAML and JSON files of this directory", outranks_file=True),
        Setting("hostname_override", "hostnameOverride", "--hostname-override", TEXT, "",
                "Name of this node; without it, the host's name", outranks_file=True),
    ),
    "Balancing": (
        Setting("scheduler", "ipvs.scheduler", "--ipvs-scheduler", SCHEDULER, "rr",
                "Scheduler of the kernel: rr, lc, sh, wrr, wlc, mh, ...", live=True),
        Setting("sync_period", "ipvs.syncPeriod", "--ipvs-sync-period", duration_kind(duration_or(30.0)), "30s",
                "How often the kernel is compared with what it should hold", live=True),
        Setting("min_sync_period", "ipvs.minSyncPeriod", "--ipvs-min-sync-period", DURATION, "1s",
                "Pause between two rounds of changes", file_default="0s", live=True),
        Setting("drain_timeout", "drainTimeout", "--drain-timeout", DURATION, "1h",
                "When a removed endpoint loses its last connections; 0s: never", outranks_file=True, live=True,
                document=OWN),
        Setting("node_port_addresses", "nodePortAddresses", "--nodeport-addresses", NODE_PORT_ADDRESSES, "",
                "Serve node ports only on addresses of these CIDRs; 'primary' is the node IPs, 'all' all addresses",
                live=True),
        Setting("feature_gates", "featureGates", "--feature-gates", GATES, "",
                "AllowServiceExternalIPs=false: externalIPs are not served (default in Kubernetes 1.36 to 1.39: true, "
                "from 1.40 on, as planned: false); no other gate means anything here", live=True),
        Setting("exclude_cidrs", "ipvs.excludeCIDRs", "--ipvs-exclude-cidrs", NETWORKS, "",
                "Virtual servers with these addresses are never deleted"),
        Setting("strict_arp", "ipvs.strictARP", "--ipvs-strict-arp", SWITCH, "false",
                "Set arp_ignore to 1 and arp_announce to 2", live=True),
        Setting("tcp_timeout", "ipvs.tcpTimeout", "--ipvs-tcp-timeout", DURATION, "0s",
                "IPVS timeout of idle TCP connections; 0s: the kernel's", live=True),
        Setting("tcp_fin_timeout", "ipvs.tcpFinTimeout", "--ipvs-tcpfin-timeout", DURATION, "0s",
                "IPVS timeout of TCP connections after a FIN; 0s: the kernel's", live=True),
        Setting("udp_timeout", "ipvs.udpTimeout", "--ipvs-udp-timeout", DURATION, "0s",
                "IPVS timeout of UDP packets; 0s: the kernel's", live=True),
    ),
    "Masquerading": (
        Setting("cluster_cidrs", "clusterCIDR", "--cluster-cidr", CLUSTER_NETWORKS, "",
                "CIDR of the pods, or one for each family; the rest is masqueraded", live=True),
        Setting("detect_local_mode", "detectLocalMode", "--detect-local-mode",
                Kind("MODE", one_of("", *DETECT_LOCAL_MODES)), "", "How to tell the cluster's pods from other clients: "
                "ClusterCIDR (the default), NodeCIDR, BridgeInterface or InterfaceNamePrefix", live=True),
        Setting("bridge_interface", "detectLocal.bridgeInterface", "--pod-bridge-interface", INTERFACE, "",
                "The bridge that local pods are on, with BridgeInterface", live=True),
        Setting("interface_name_prefix", "detectLocal.interfaceNamePrefix", "--pod-interface-name-prefix", INTERFACE,
                "", "How the names of local pods' interfaces begin, with InterfaceNamePrefix", live=True),
        Setting("masquerade_all", "iptables.masqueradeAll", "--masquerade-all", SWITCH, "false",
                "Masquerade all traffic to cluster IPs", live=True),
        Setting("masquerade_bit", "iptables.masqueradeBit", "--iptables-masquerade-bit",
                integer_kind("BIT", 0, 31), "14", "Bit of the packet mark that asks for masquerading"),
    ),
    "Tracking of connections": (
        Setting("conntrack_max_per_core", "conntrack.maxPerCore", "--conntrack-max-per-core", COUNT, "32768",
                "Room for so many tracked connections for each CPU; 0: leave the kernel's limit", live=True),
        Setting("conntrack_min", "conntrack.min", "--conntrack-min", COUNT, "131072",
                "Room for at least so many tracked connections", live=True),
        Setting("conntrack_tcp_established", "conntrack.tcpEstablishedTimeout", "--conntrack-tcp-timeout-established",
                DURATION, "24h", "Idle TCP connections are forgotten after this time; 0s: the kernel's", live=True),
        Setting("conntrack_tcp_close_wait", "conntrack.tcpCloseWaitTimeout", "--conntrack-tcp-timeout-close-wait",
                DURATION, "1h", "The same for connections in CLOSE_WAIT; 0s: the kernel's", live=True),
        Setting("conntrack_tcp_be_liberal", "conntrack.tcpBeLiberal", "--conntrack-tcp-be-liberal", SWITCH, "false",
                "Do not take packets outside of the TCP window for invalid", live=True),
        Setting("conntrack_udp", "conntrack.udpTimeout", "--conntrack-udp-timeout", DURATION, "0s",
                "Idle UDP flows without an answer are forgotten after this time; 0s: the kernel's", live=True),
        Setting("conntrack_udp_stream", "conntrack.udpStreamTimeout", "--conntrack-udp-timeout-stream", DURATION, "0s",
                "The same for flows with answers; 0s: the kernel's", live=True),
    ),
    "Health and metrics": (
        Setting("healthz_bind_address", "healthzBindAddress", "--healthz-bind-address",
                Kind("IP[:PORT]", bind_address(10256)), "",
                f"Where /healthz and /livez are served (default {ANY_IPV4}:10256)"),
        Setting("metrics_bind_address", "metricsBindAddress", "--metrics-bind-address",
                Kind("IP[:PORT]", bind_address(10249)), "", "Where /metrics is served (default 127.0.0.1:10249)"),
        Setting("service_metrics", "serviceMetrics", "--service-metrics", SERVICE_METRICS, "off",
                "Expose connections, packets and bytes: of all Services (five series for each port), besides of the "
                "endpoints (1,000 at most, those of the busiest), or off",
                outranks_file=True, live=True, document=OWN),
        Setting("expose_state", "exposeState", "--expose-state", SWITCH, "false",
                "Answer /state, /configz, /statusz, /flagz and the page beyond the loopback too, to anybody who asks",
                outranks_file=True, live=True, document=OWN),
        Setting("healthz_port", "", "--healthz-port", integer_kind("PORT", 0, 65535), "10256",
                "Deprecated: port of the address above where it has none; 0: no health server", hidden=True),
        Setting("metrics_port", "", "--metrics-port", integer_kind("PORT", 1, 65535), "10249",
                "Deprecated: port of the address above where it has none", hidden=True),
        Setting("bind_address", "bindAddress", "--bind-address", ADDRESS, ANY_IPV4,
                "Address of this node, instead of the Node's; its family is that of the two defaults above"),
        Setting("bind_address_hard_fail", "bindAddressHardFail", "--bind-address-hard-fail", SWITCH, "false",
                "End if one of the two addresses is taken, instead of trying again"),
        Setting("oom_score_adj", "oomScoreAdj", "--oom-score-adj", integer_kind("NUMBER", -1000, 1000),
                "-999", "How the kernel chooses when memory runs out: -1000 spares this process, 1000 ends it first"),
    ),
    "Logs": (
        Setting("verbosity", "logging.verbosity", "--v", integer_kind("NUMBER", 0, 100), "0",
                "Log verbosity; from 4 on also debug events", outranks_file=True, live=True),
        Setting("logging_format", "logging.format", "--logging-format", Kind("FORMAT", one_of("auto", "text", "json")),
                "auto", "text, json, or auto: text on a terminal, else json", outranks_file=True),
    ),
    "Compatibility": (
        Setting("compatible", "compatibility", "--compat", COMPATIBILITY, "",
                "Behave as kube-proxy does: one list of endpoints for all clients, also where a policy is Local",
                outranks_file=True, live=True, document=OWN),
        Setting("mode", "mode", "--proxy-mode", Kind("MODE", one_of("", "ipvs", "iptables", "nftables")), "",
                "Accepted as kube-proxy's, and always ipvs"),
    ),
    "Accepted as kube-proxy's, without effect": (
        _accepted("clientConnection.acceptContentTypes", "", TEXT, "", "the agent reads JSON"),
        _accepted("clientConnection.contentType", "--kube-api-content-type", TEXT,
                  "application/vnd.kubernetes.protobuf", "the agent reads JSON"),
        _accepted("clientConnection.qps", "--kube-api-qps", NUMBER, "5", "three watches need no limit"),
        _accepted("clientConnection.burst", "--kube-api-burst", COUNT, "10", "three watches need no limit"),
        _accepted("configSyncPeriod", "--config-sync-period", duration_kind(duration_or(900.0)), "15m",
                  "watches are followed, not listed again"),
        _accepted("enableProfiling", "--profiling", SWITCH, "false", "there is no Go runtime to profile"),
        _accepted("showHiddenMetricsForVersion", "--show-hidden-metrics-for-version", TEXT, "",
                  "no metric is hidden"),
        _accepted("portRange", "", TEXT, "", "kube-proxy has no use for it either"),
        _accepted("iptables.localhostNodePorts", "--iptables-localhost-nodeports", SWITCH, "true", _OTHER_MODE),
        _accepted("iptables.syncPeriod", "--iptables-sync-period", DURATION, "30s", _OTHER_MODE),
        _accepted("iptables.minSyncPeriod", "--iptables-min-sync-period", DURATION, "1s", _OTHER_MODE),
        _accepted("nftables.masqueradeBit", "", COUNT, "14", _OTHER_MODE),
        _accepted("nftables.masqueradeAll", "", SWITCH, "false", _OTHER_MODE),
        _accepted("nftables.syncPeriod", "", DURATION, "30s", _OTHER_MODE),
        _accepted("nftables.minSyncPeriod", "", DURATION, "1s", _OTHER_MODE),
        _accepted("winkernel.networkName", "", TEXT, "", _WINDOWS),
        _accepted("winkernel.sourceVip", "", TEXT, "", _WINDOWS),
        _accepted("winkernel.enableDSR", "", SWITCH, "false", _WINDOWS),
        _accepted("winkernel.rootHnsEndpointName", "", TEXT, "", _WINDOWS),
        _accepted("winkernel.forwardHealthCheckVip", "", SWITCH, "false", _WINDOWS),
        _accepted("windowsRunAsService", "", SWITCH, "false", _WINDOWS),
        _accepted("logging.flushFrequency", "--log-flush-frequency", ANYTHING, "5s", "every line is written at once"),
        _accepted("logging.vmodule", "--vmodule", ANYTHING, "", "one verbosity is for all modules"),
        _accepted("logging.options", "", ANYTHING, "", "all lines go to standard error at once"),
        _accepted("", "--log-text-split-stream", SWITCH, "false", "all lines go to standard error"),
        _accepted("", "--log-text-info-buffer-size", TEXT, "0", "every line is written at once"),
        _accepted("", "--log-json-split-stream", SWITCH, "false", "all lines go to standard error"),
        _accepted("", "--log-json-info-buffer-size", TEXT, "0", "every line is written at once"),
        _accepted("", "--boot-id-file", TEXT, "/proc/sys/kernel/random/boot_id", "nothing reads it"),
        _accepted("", "--machine-id-file", TEXT, "/etc/machine-id,/var/lib/dbus/machine-id", "nothing reads it"),
    ),
}
# fmt: on
SETTINGS: Final = tuple(chain.from_iterable(SETTINGS_BY_GROUP.values()))
