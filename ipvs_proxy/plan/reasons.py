"""Why something is in the plan or left out: one vocabulary for logs, metrics, events and explanations."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Reason(StrEnum):
    """A reason; the value is the form that people and machines see."""

    # An endpoint is used.
    READY = "ready"
    TERMINATING_FALLBACK = "serving-terminating-fallback"

    # An endpoint is not used.
    NOT_READY = "not-ready"
    TERMINATING = "terminating"
    OTHER_ZONE = "other-zone"
    OTHER_NODE = "other-node"
    NOT_LOCAL = "not-local"
    NO_ADDRESS = "no-address"
    INVALID_ADDRESS = "invalid-address"
    SPECIAL_ADDRESS = "special-address"
    VIRTUAL_ENDPOINT = "endpoint-is-a-virtual-ip"

    # A port of an EndpointSlice, or a whole slice, is not used.
    NO_PORT_NAME = "no-port-name"
    NO_PORT_NUMBER = "no-port-number"
    UNSUPPORTED_ADDRESS_TYPE = "unsupported-address-type"
    UNKNOWN_PROTOCOL = "unknown-protocol"

    # A Service, or one of its ports, asks for nothing here.
    HEADLESS = "headless"
    EXTERNAL_NAME = "external-name"
    OTHER_PROXY = "other-service-proxy"
    NO_CLUSTER_IP = "no-cluster-ip"
    INVALID_CLUSTER_IP = "invalid-cluster-ip"
    INVALID_PORT = "invalid-port"
    INVALID_AFFINITY_TIMEOUT = "invalid-affinity-timeout"
    INVALID_DRAIN_TIMEOUT = "invalid-drain-timeout"
    INVALID_SCHEDULER = "invalid-scheduler"
    NO_SUCH_SCHEDULER = "no-such-scheduler"
    NO_WEIGHTED_SCHEDULER = "no-weighted-scheduler"
    INVALID_SCHEDULER_FLAGS = "invalid-scheduler-flags"
    FLAGS_OF_ANOTHER_SCHEDULER = "flags-of-another-scheduler"
    INVALID_ONE_PACKET = "invalid-one-packet"
    ONE_PACKET_IS_FOR_UDP = "one-packet-is-for-udp"
    INVALID_CONNECTION_LIMIT = "invalid-connection-limit"
    INVALID_WEIGHTS = "invalid-weights"
    INVALID_ENDPOINT_WEIGHT = "invalid-endpoint-weight"
    INVALID_SLOW_START = "invalid-slow-start"
    INVALID_SOURCE_RANGE = "invalid-source-range"
    INVALID_EXTERNAL_ADDRESS = "invalid-external-address"
    DUPLICATE_PORT = "duplicate-port"
    NO_HEALTH_CHECK_PORT = "no-health-check-node-port"
    TOO_MUCH = "too-much-for-one-service"
    MORE = "and-more"
    EXTERNAL_IPS_OFF = "external-ips-are-off"
    API_SERVER_ADDRESS = "api-server-address"
    NODE_ADDRESS = "address-of-this-node"
    DUPLICATE_HEALTH_CHECK_PORT = "health-check-node-port-is-node-port"
    NO_MARK_LEFT = "no-mark-left"
    OLDER_SERVICE_WINS = "older-service-wins"

    # An object of a kernel table is wanted.
    CLUSTER_IP = "cluster-ip"
    EXTERNAL_IP = "external-ip"
    LOAD_BALANCER = "load-balancer"
    NODE_PORT = "node-port"
    SOURCE_RANGE = "source-range"
    HEALTH_CHECK = "health-check"
    CLUSTER_CLIENT = "client-in-cluster"
    LOCAL_ENDPOINT = "local-endpoint"
    NO_LOCAL_ENDPOINT = "no-local-endpoint"
    NO_ENDPOINT = "no-endpoint"

    # A virtual server has its scheduler.
    AGENT_SETTING = "agent-setting"
    ANNOTATION = "annotation"
    WEIGHTS = "weights"


#: What is done instead where a Service is served, but not as it is written.
SERVED_OTHERWISE: Final[Mapping[Reason, str]] = MappingProxyType(
    {
        Reason.INVALID_AFFINITY_TIMEOUT: "the API's default of 10800 s is used",
        Reason.INVALID_DRAIN_TIMEOUT: "the drain timeout of the agent is used",
        Reason.INVALID_SCHEDULER: "the scheduler of the agent is used",
        Reason.NO_SUCH_SCHEDULER: "the kernel of this node does not have it, so the scheduler of the agent is used",
        Reason.NO_WEIGHTED_SCHEDULER: "the kernel of this node does not have it, so no weight but 0 counts",
        Reason.INVALID_SCHEDULER_FLAGS: "the scheduler's usual flags are used",
        Reason.FLAGS_OF_ANOTHER_SCHEDULER: "the scheduler's usual flags are used",
        Reason.INVALID_ONE_PACKET: "packets of a connection go to one endpoint",
        Reason.ONE_PACKET_IS_FOR_UDP: "packets of this port's connections go to one endpoint",
        Reason.INVALID_CONNECTION_LIMIT: "there is no such limit",
        Reason.INVALID_WEIGHTS: "no endpoint gets another weight by it",
        Reason.INVALID_ENDPOINT_WEIGHT: "the endpoints of the EndpointSlice get no weight by it",
        Reason.INVALID_SLOW_START: "new endpoints get their full weight at once",
        Reason.INVALID_SOURCE_RANGE: "the range is passed over",
        Reason.NODE_ADDRESS: "it is served, and other nodes that serve it do not reach this node any more",
        Reason.NO_MARK_LEFT: "clients in the cluster get the endpoints that clients outside get",
        Reason.NO_HEALTH_CHECK_PORT: "all but the health check is served",
        Reason.VIRTUAL_ENDPOINT: "it gets connections, which end on the node itself: name the endpoints behind it",
        Reason.DUPLICATE_HEALTH_CHECK_PORT: "all but the health check is served",
    }
)
