"""The effective settings, each declared once.

Invariant: a setting that the agent uses is one statement below: a field of ``Settings`` whose row says where it is
written, of which kind it is, what it is by default, and what it means. Nothing else in the package knows a default:
flags, the file, ``--help`` and the documentation take it from here, and so does a ``Settings`` that is made without
them. mypy compares a field's type with what the row's kind reads.

Names, defaults and meanings are kube-proxy's (kubeproxy.config.k8s.io/v1alpha1 of Kubernetes 1.36). Our own settings
have a document of their own beside kube-proxy's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from ipvs_proxy.kernel.filter.backend import AUTO, IPTABLES, NFTABLES
from ipvs_proxy.plan.masquerading import MASQUERADE_BIT
from ipvs_proxy.plan.node_addresses import NodePortAddresses
from ipvs_proxy.settings.row import OWN, Group, row
from ipvs_proxy.settings.values import (
    ADDRESS,
    CLUSTER_NETWORKS,
    COMPATIBILITY,
    COUNT,
    DIRECTORY,
    DURATION,
    GATES,
    INTERFACE,
    INTERFACE_PREFIX,
    LABEL_VALUE,
    NETWORKS,
    NODE_PORT_ADDRESSES,
    SCHEDULER,
    SERVICE_METRICS,
    SWITCH,
    TEXT,
    Kind,
    Network,
    ServiceMetrics,
    bind_address,
    integer_kind,
    one_of,
)

ANY_IPV4: Final = "0.0.0.0"  # noqa: S104  kube-proxy's default
#: The one feature gate that means something here.
EXTERNAL_IPS_GATE: Final = "AllowServiceExternalIPs"
PACKET_FILTER: Final = Kind("auto|iptables|nftables", one_of(AUTO, IPTABLES, NFTABLES))
_CLUSTER_CIDR: Final = "ClusterCIDR"
_LOCAL_MODE: Final = Kind("MODE", one_of(_CLUSTER_CIDR, "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"))
HEALTHZ_PORT: Final = 10256
METRICS_PORT: Final = 10249
#: The ports of the two servers on a node where kube-proxy has its own, unless others are configured.
HEALTHZ_PORT_BESIDE: Final = 10356
METRICS_PORT_BESIDE: Final = 10349


class SettingsError(Exception):
    """Settings that cannot be used: one line for each fault, with the field or flag."""


class Note(NamedTuple):
    """What the operator should be told of the settings: the name of a log event, and its fields."""

    event: str
    fields: Mapping[str, str | Sequence[str]]


# fmt: off
@dataclass(frozen=True, slots=True)
class Settings:
    """The effective settings. Durations are in seconds; a timeout of 0 leaves the kernel's as it is.

    ``node_name`` is the name of this node. ``notes`` are what the operator should be told once. ``fields`` are all
    settings as a file has them, also those without effect, by their paths (``KubeProxyConfiguration.ipvs.scheduler``).
    """

    node_name: str

    kubeconfig: str = row(
        Group.OBJECTS, "clientConnection.kubeconfig", "--kubeconfig", TEXT, "",
        "The path to the kubeconfig file. If unset, the service account of the pod is used")
    master: str = row(
        Group.OBJECTS, "", "--master", TEXT, "",
        "The address of the API server (overrides the one in the kubeconfig)", outranks_file=True)
    manifests: Path | None = row(
        Group.OBJECTS, "", "--manifests", DIRECTORY, "",
        "The directory whose YAML and JSON files to read objects from, instead of the API", outranks_file=True)
    hostname_override: str = row(
        Group.OBJECTS, "hostnameOverride", "--hostname-override", TEXT, "",
        "The name of this node. If unset, the host name is used", outranks_file=True)

    service_proxy_name: str = row(
        Group.OBJECTS, "serviceProxyName", "--service-proxy-name", LABEL_VALUE, "",
        "If set, serve only Services whose label service.kubernetes.io/service-proxy-name has this value, beside a "
        "kube-proxy in iptables or nftables mode that serves the others", document=OWN, outranks_file=True)

    scheduler: str = row(
        Group.BALANCING, "ipvs.scheduler", "--ipvs-scheduler", SCHEDULER, "rr",
        "The IPVS scheduler: rr, lc, sh, wrr, wlc, mh, or any other that the kernel has", live=True)
    sync_period: float = row(
        Group.BALANCING, "ipvs.syncPeriod", "--ipvs-sync-period", DURATION, "30s",
        "The interval at which the kernel is compared with what it should hold, and repaired",
        zero_is_default=True, live=True)
    min_sync_period: float = row(
        Group.BALANCING, "ipvs.minSyncPeriod", "--ipvs-min-sync-period", DURATION, "1s",
        "The minimum time between two rounds of changes", file_default="0s", live=True)
    drain_timeout: float = row(
        Group.BALANCING, "drainTimeout", "--drain-timeout", DURATION, "1h",
        "The time after which a removed endpoint loses the connections that it still has (0s to let them end by "
        "themselves)", document=OWN, outranks_file=True, live=True)
    node_port_addresses: NodePortAddresses = row(
        Group.BALANCING, "nodePortAddresses", "--nodeport-addresses", NODE_PORT_ADDRESSES, "",
        "The CIDRs of the node's addresses to serve node ports on; 'primary' stands for the node IPs and 'all' for all "
        "addresses. If unset, node ports are served on all addresses", live=True)
    feature_gates: Mapping[str, bool] = row(
        Group.BALANCING, "featureGates", "--feature-gates", GATES, "",
        f"The feature gates, of which only {EXTERNAL_IPS_GATE} has an effect. If false, externalIPs of Services are "
        "not served. The default is that of Kubernetes 1.36 to 1.39, true (planned from 1.40 on: false)", live=True)
    exclude_cidrs: tuple[Network, ...] = row(
        Group.BALANCING, "ipvs.excludeCIDRs", "--ipvs-exclude-cidrs", NETWORKS, "",
        "The CIDRs whose virtual servers are never deleted")
    strict_arp: bool = row(
        Group.BALANCING, "ipvs.strictARP", "--ipvs-strict-arp", SWITCH, "false",
        "If true, set arp_ignore to 1 and arp_announce to 2", live=True)
    tcp_timeout: float = row(
        Group.BALANCING, "ipvs.tcpTimeout", "--ipvs-tcp-timeout", DURATION, "0s",
        "The timeout for idle IPVS TCP connections (0s to leave the kernel's)", live=True)
    tcp_fin_timeout: float = row(
        Group.BALANCING, "ipvs.tcpFinTimeout", "--ipvs-tcpfin-timeout", DURATION, "0s",
        "The timeout for IPVS TCP connections after a FIN packet (0s to leave the kernel's)", live=True)
    udp_timeout: float = row(
        Group.BALANCING, "ipvs.udpTimeout", "--ipvs-udp-timeout", DURATION, "0s",
        "The timeout for IPVS UDP flows (0s to leave the kernel's)", live=True)

    cluster_cidrs: tuple[Network, ...] = row(
        Group.MASQUERADING, "clusterCIDR", "--cluster-cidr", CLUSTER_NETWORKS, "",
        f"The CIDR of the cluster's pods, or one of each family. With --detect-local-mode {_CLUSTER_CIDR}, connections "
        "to cluster IPs from elsewhere are masqueraded", live=True)
    detect_local_mode: str = row(
        Group.MASQUERADING, "detectLocalMode", "--detect-local-mode", _LOCAL_MODE, _CLUSTER_CIDR,
        "How to tell the cluster's pods from other clients: ClusterCIDR, NodeCIDR, BridgeInterface or "
        "InterfaceNamePrefix", live=True)
    bridge_interface: str = row(
        Group.MASQUERADING, "detectLocal.bridgeInterface", "--pod-bridge-interface", INTERFACE, "",
        "The bridge that connects local pods, for --detect-local-mode BridgeInterface", live=True)
    interface_name_prefix: str = row(
        Group.MASQUERADING, "detectLocal.interfaceNamePrefix", "--pod-interface-name-prefix", INTERFACE_PREFIX, "",
        "The prefix of the names of local pods' interfaces, for --detect-local-mode InterfaceNamePrefix", live=True)
    masquerade_all: bool = row(
        Group.MASQUERADING, "iptables.masqueradeAll", "--masquerade-all", SWITCH, "false",
        "If true, masquerade all traffic to cluster IPs", live=True)
    packet_filter: str = row(
        Group.MASQUERADING, "packetFilter", "--packet-filter", PACKET_FILTER, AUTO,
        "The packet filter that masquerades, filters and marks: iptables (with ipset), nftables, or auto (what the "
        "node has been served with until now, else what works there)", document=OWN,
        outranks_file=True)
    masquerade_bit: int = row(
        Group.MASQUERADING, "iptables.masqueradeBit", "--iptables-masquerade-bit", integer_kind("BIT", 0, 31),
        str(MASQUERADE_BIT), "The bit of the packet mark that asks for masquerading (0 to 31)")

    conntrack_max_per_core: int = row(
        Group.CONNECTION_TRACKING, "conntrack.maxPerCore", "--conntrack-max-per-core", COUNT, "32768",
        "The maximum number of connections to track per CPU core (0 to leave the kernel's limit and ignore "
        "--conntrack-min)", live=True)
    conntrack_min: int = row(
        Group.CONNECTION_TRACKING, "conntrack.min", "--conntrack-min", COUNT, "131072",
        "The minimum number of connections to have room for, regardless of --conntrack-max-per-core", live=True)
    conntrack_tcp_established: float = row(
        Group.CONNECTION_TRACKING, "conntrack.tcpEstablishedTimeout", "--conntrack-tcp-timeout-established", DURATION,
        "24h", "The idle timeout for established TCP connections (0s to leave the kernel's)", live=True)
    conntrack_tcp_close_wait: float = row(
        Group.CONNECTION_TRACKING, "conntrack.tcpCloseWaitTimeout", "--conntrack-tcp-timeout-close-wait", DURATION,
        "1h", "The timeout for TCP connections in the CLOSE_WAIT state (0s to leave the kernel's)", live=True)
    conntrack_tcp_be_liberal: bool = row(
        Group.CONNECTION_TRACKING, "conntrack.tcpBeLiberal", "--conntrack-tcp-be-liberal", SWITCH, "false",
        "If true, do not treat TCP packets outside the window as invalid (sets nf_conntrack_tcp_be_liberal to 1)",
        live=True)
    conntrack_udp: float = row(
        Group.CONNECTION_TRACKING, "conntrack.udpTimeout", "--conntrack-udp-timeout", DURATION, "0s",
        "The idle timeout for UDP flows without replies (0s to leave the kernel's)", live=True)
    conntrack_udp_stream: float = row(
        Group.CONNECTION_TRACKING, "conntrack.udpStreamTimeout", "--conntrack-udp-timeout-stream", DURATION, "0s",
        "The idle timeout for UDP flows with replies (0s to leave the kernel's)", live=True)

    healthz_bind_address: str = row(
        Group.SERVERS, "healthzBindAddress", "--healthz-bind-address", Kind("IP[:PORT]", bind_address(HEALTHZ_PORT)),
        f"{ANY_IPV4}:{HEALTHZ_PORT}", "The address to serve /healthz and /livez on. If unset and --bind-address is an "
        f"IPv6 address, it is [::]:{HEALTHZ_PORT}")
    metrics_bind_address: str = row(
        Group.SERVERS, "metricsBindAddress", "--metrics-bind-address", Kind("IP[:PORT]", bind_address(METRICS_PORT)),
        f"127.0.0.1:{METRICS_PORT}", "The address to serve /metrics on. If unset and --bind-address is an IPv6 "
        f"address, it is [::1]:{METRICS_PORT}")
    service_metrics: ServiceMetrics = row(
        Group.SERVERS, "serviceMetrics", "--service-metrics", SERVICE_METRICS, "off",
        "Whose connections, packets and bytes are metrics: nobody's (off), those of all Services (all: five series for "
        "each port), or those of the busiest endpoints too (endpoints: at most 1,000)",
        document=OWN, outranks_file=True, live=True)
    expose_state: bool = row(
        Group.SERVERS, "exposeState", "--expose-state", SWITCH, "false",
        "If true, serve /state, /configz, /statusz, /flagz and the page beyond the loopback too, to anybody who asks",
        document=OWN, outranks_file=True, live=True)
    healthz_port: int = row(
        Group.SERVERS, "", "--healthz-port", integer_kind("PORT", 0, 65535), str(HEALTHZ_PORT),
        "Deprecated: the port for --healthz-bind-address where that is unset (0 to serve no health checks)",
        hidden=True)
    metrics_port: int = row(
        Group.SERVERS, "", "--metrics-port", integer_kind("PORT", 1, 65535), str(METRICS_PORT),
        "Deprecated: the port for --metrics-bind-address where that is unset", hidden=True)
    bind_address: str = row(
        Group.SERVERS, "bindAddress", "--bind-address", ADDRESS, ANY_IPV4,
        "The primary IP of this node, instead of the one in its Node object. Its family decides the defaults of the "
        "two addresses above")
    bind_address_hard_fail: bool = row(
        Group.SERVERS, "bindAddressHardFail", "--bind-address-hard-fail", SWITCH, "false",
        "If true, exit if one of the two addresses is taken, instead of trying again")
    oom_score_adj: int = row(
        Group.SERVERS, "oomScoreAdj", "--oom-score-adj", integer_kind("NUMBER", -1000, 1000), "-999",
        "The oom_score_adj of this process: from -1000 (never killed when memory runs out) to 1000 (killed first)")

    verbosity: int = row(
        Group.LOGS, "logging.verbosity", "--v", integer_kind("NUMBER", 0, 100), "0",
        "The number for the log level verbosity; 4 and above include debug events", outranks_file=True, live=True)
    logging_format: str = row(
        Group.LOGS, "logging.format", "--logging-format", Kind("FORMAT", one_of("auto", "text", "json")), "auto",
        "The log format: text, json, or auto (text on a terminal, json elsewhere)", outranks_file=True)

    compatible: bool = row(
        Group.COMPATIBILITY, "compatibility", "--compat", COMPATIBILITY, "",
        "If kube-proxy, behave as it does: all clients get one list of endpoints, even where a traffic policy is Local",
        document=OWN, outranks_file=True, live=True)
    mode: str = row(
        Group.COMPATIBILITY, "mode", "--proxy-mode", Kind("MODE", one_of("ipvs", "iptables", "nftables")), "ipvs",
        "Accepted for compatibility with kube-proxy; the mode is always ipvs")

    notes: tuple[Note, ...] = ()
    fields: Mapping[str, object] = field(default_factory=dict, repr=False)
    # fmt: on

    @property
    def external_ips(self) -> bool:
        """Whether ``externalIPs`` of Services are served."""
        return self.feature_gates.get(EXTERNAL_IPS_GATE, True)
