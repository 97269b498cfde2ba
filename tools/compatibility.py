"""``docs/compatibility.md``: the behaviours of kube-proxy's IPVS mode that an operator relies on, and their proof.

The proof is a run of the whole kernel ring. Sections are those of kube-proxy's behaviour: 1 inputs, 2 endpoint choice,
3 objects of each kind of Service, 4 rules, 6 graceful termination. A test is named by the beginning of its id; the
number of cases is counted from the results. ``*`` after a behaviour: deliberately different, see ``differences.md``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

from tools.documents import DOCS, ROOT, Texts

DOCUMENT: Final = DOCS / "compatibility.md"
#: The outcome of every test of the ring by its id; a run of the whole ring leaves it here.
RESULTS: Final = ROOT / ".cache" / "ring-results.json"

#: Before the id of a test in the results, if it has run with nftables.
WITH_NFTABLES: Final = "nftables: "

_KINDS: Final = "test_kinds.py::test_kernel_holds_what_a_service_asks_for"
_WHO: Final = "test_every_address.py::test_who_answers_and_which_source_it_sees"
_RULES: Final = "test_kernel_rules.py"


def _kinds(*names: str) -> tuple[str, ...]:
    return tuple(f"{_KINDS}[{name}]" for name in names)


def _who(*names: str) -> tuple[str, ...]:
    return tuple(f"{_WHO}[{name}" for name in names)


BEHAVIOURS: Final[Sequence[tuple[str, str, tuple[str, ...]]]] = (
    ("1.1", "A Service with the label service-proxy-name, whatever its value, is left alone",
     _kinds("a Service of another proxy, by a label without value")),
    ("1.1", "With --service-proxy-name only Services with that label are served, beside a kube-proxy in another mode *",
     ("test_beside_kube_proxy.py::test_labelled_services_are_reached_from_everywhere", "test_beside_kube_proxy.py::test_the_other_service_is_still_kube_proxys", "test_beside_changes.py::test_a_service_moves_here_and_back")),
    ("1.1", "A Service has its own scheduler, weights and limits by annotations *",
     ("test_scheduling.py", "test_endpoint_limits.py", "test_slow_start.py", "test_scheduling_changes.py", "test_scheduling_refused.py", "test_one_packet.py")),
    ("1.1", "Without annotations the kernel's state is what it was before there were any, to the last byte",
     ("test_kinds.py::test_the_kernel_holds_what_was_recorded_to_the_last_byte",)),
    ("1.2", "Headless and ExternalName Services ask for nothing", _kinds("a headless Service", "an ExternalName")),
    ("1.2", "The cluster IP of a family is found by its place in ipFamilies",
     _kinds("a cluster IP of both families", "the families in the other order")),
    ("1.2", "Node ports, ingress addresses and external IPs count whatever the type of the Service",
     _kinds("a node port of a Service of type ClusterIP", "an ingress address of a Service of type ClusterIP", "an external IP")),
    ("1.2", "Endpoint ports come from the slice: joined by name and protocol", _kinds("ports joined by name and protocol")),
    ("1.2", "External IPs: other families, malformed and blank entries are passed over", _kinds("an external IP")),
    ("1.2", "An ingress address counts with mode VIP or none, not with mode Proxy, nor a host name",
     _kinds("a load balancer", "an ingress address of mode VIP", "an ingress address of mode Proxy", "an ingress that is a host name")),
    ("1.2", "allocateLoadBalancerNodePorts: only the port numbers matter", _kinds("a load balancer without node port")),
    ("1.2", "Source ranges: white space, host bits, other families; a range of everybody allows all",
     _kinds("source ranges", "source ranges of which one is everybody")),
    ("1.2", "Session affinity is a persistent virtual server on every kind; the default timeout is 10800 s",
     (*_kinds("session affinity", "session affinity without a timeout"), "test_traffic.py::test_affinity_keeps_a_client_at_one_endpoint")),
    ("1.2", "externalTrafficPolicy counts only where somebody outside can reach the Service",
     _kinds("the external policy of a Service that nobody outside reaches")),
    ("1.2", "healthCheckNodePort of a load balancer with the policy Local is let through", _kinds("a load balancer with the policy Local")),
    ("1.3", "Slices of another address type are passed over", _kinds("a slice of host names beside one of addresses")),
    ("1.3", "A slice port without name or number is passed over", _kinds("a slice port without number or name")),
    ("1.3", "Only the first address of an endpoint counts", _kinds("only the first address of an endpoint")),
    ("1.3", "Unknown conditions mean ready, serving, not terminating", _kinds("an endpoint with all conditions unknown")),
    ("1.3", "Several slices of one Service are one list of endpoints", _kinds("two slices")),
    ("1.3", "Of two entries with one address the one that is not terminating wins", _kinds("one address in two slices, terminating in one")),
    ("1.4", "The node's addresses follow its interfaces, without a restart *",
     ("test_kernel_host_addresses.py::test_facts_follow_an_address_from_the_kernel", "test_node_changes.py::test_a_node_port_follows_an_address_of_an_interface")),
    ("1.4", "The zone of the own Node is followed live", ("test_node_changes.py::test_zone_hints_follow_the_nodes_label",)),
    ("2.1", "Endpoints that are not ready get nothing", _kinds("an endpoint that is not ready")),
    ("2.1", "Terminating endpoints that serve are used if no endpoint is ready, and only then",
     _kinds("terminating endpoints that serve, beside a ready one", "terminating endpoints that serve, and no other")),
    ("2.1", "Zone hints apply if every ready endpoint has one and one is of this zone",
     _kinds("zone hints", "zone hints that one endpoint lacks", "zone hints of which none is this zone")),
    ("2.1", "Node hints come before zone hints", _kinds("node hints")),
    ("2.1", "Hints never apply to the policy Local", _kinds("hints do not matter to the policy Local")),
    ("2.2", "internalTrafficPolicy: Local uses endpoints of the node", (*_kinds("the internal policy Local"), *_who("clusterip-local-here-there"))),
    ("2.2", "internalTrafficPolicy: Local without one drops, never leaving the node *",
     (*_kinds("the internal policy Local without a local endpoint"), *_who("clusterip-local-there"))),
    ("2.2", "externalTrafficPolicy: Local keeps the source address of clients outside",
     _who("nodeport-local-here-there", "loadbalancer-local-here-there", "externalip-local-here-there")),
    ("2.2", "externalTrafficPolicy: Local without a local endpoint drops clients outside *",
     _who("nodeport-local-there", "loadbalancer-local-there", "externalip-local-there")),
    ("2.2", "externalTrafficPolicy: Local serves clients in the cluster from all endpoints *",
     (*_who("nodeport-local", "loadbalancer-local", "externalip-local"), *_kinds("a node port with the policy Local"))),
    ("2.2", "A Service without endpoint refuses *",
     (*_who("clusterip-cluster-none", "nodeport-cluster-none", "loadbalancer-cluster-none", "externalip-cluster-none"), *_kinds("no endpoint"))),
    ("2.2", "--compat=kube-proxy gives one list of endpoints to all clients", ("test_kinds.py::test_compatible_behaviour_has_one_list_for_all_clients",)),
    ("3.1", "Virtual servers: scheduler, protocols, flags, timeout, masquerading real servers of weight 1",
     (*_kinds("a cluster IP"), "test_kernel_ipvs.py::test_settings_survive_the_way_through_the_kernel", "test_kernel_ipvs.py::test_the_kernels_schedulers_are_found")),
    ("3.1", "What kube-proxy left is taken over or removed; virtual servers of others stay *",
     ("test_lifecycle.py::test_table_left_by_another_agent_is_taken_over", "test_lifecycle.py::test_node_ports_that_kube_proxy_left")),
    ("3.2", "Cluster IP: virtual server, address, members of sets", (*_kinds("a cluster IP"), "test_traffic.py::test_cluster_ip_reaches")),
    ("3.2", "External IP: on kube-ipvs0 only if no other interface has it",
     (*_kinds("an external IP", "an external IP that is the node's", "an external IP with the policy Local"), *_who("externalip-cluster"))),
    ("3.2", "Load balancer: members of sets, source ranges, the node's own range",
     (*_kinds("a load balancer", "source ranges", "source ranges with the node's address in one"), *_who("loadbalancer-cluster"))),
    ("3.2", "Node port: a virtual server for each address, members by protocol and policy",
     (*_kinds("a node port", "a node port of UDP", "a node port of SCTP", "a node port with the policy Local"), *_who("nodeport-cluster"))),
    ("3.2", "UDP and SCTP on every kind", ("test_every_address.py::test_other_protocols_take_the_same_way",)),
    ("3.2", "Every local endpoint, whatever its condition, is in the hairpin set; a pod reaches itself",
     (*_kinds("an endpoint that is not ready"), "test_traffic.py::test_pod_reaches_itself_through_its_service_and_sees_the_node")),
    ("3.2", "kube-ipvs0 is a dummy that stays down", ("test_kinds.py::test_the_link_is_a_dummy_that_stays_down", "test_kernel_addresses.py::test_the_link_is_made_once_and_stays_down")),
    ("3.3", "Node ports are on all addresses but loopback and link-local, or on those of nodePortAddresses *",
     ("test_kernel_host_addresses.py::test_what_is_read_becomes_host_addresses_and_those_of_node_ports",)),
    ("3.4", "All 17 sets with kube-proxy's names, types and parameters",
     ("test_kernel_sets.py::test_all_sets_are_made_with_kube_proxys_parameters", "test_kernel_sets.py::test_what_kube_proxy_made_is_taken_over")),
    ("3.4", "Members of host length are not written again *", ("test_kinds.py::test_a_restart_writes_nothing",)),
    ("3.4", "Source ranges that change never open or close the wrong door *", ("test_firewall.py::test_ranges_that_change",)),
    ("4.1", "One iptables-restore for all tables, with the variant that kubelet uses",
     (f"{_RULES}::test_each_kind_of_drift_is_found", f"{_RULES}::test_the_variant_with_the_hint_of_the_kubelet_is_used")),
    ("4.1", "A host without iptables and ipset has nftables; a restart changes from one to the other, either way, without a gap *",
     ("test_choice.py", "test_switch.py", "test_kernel_nftables.py")),
    ("4.2", "All chains of nat and filter are there", (f"{_RULES}::test_what_is_written_is_what_iptables_save_prints",)),
    ("4.3", "Jumps in kube-proxy's order; those that exist are not moved",
     (f"{_RULES}::test_jumps_are_in_the_order_that_kube_proxy_makes", f"{_RULES}::test_the_rules_of_kube_proxy_are_taken_over")),
    ("4.4", "nat: masquerade by kind and policy", _who("clusterip-cluster", "nodeport-", "loadbalancer-", "externalip-")),
    ("4.4", "filter: source ranges, also for the node itself",
     ("test_firewall.py::test_ranges_that_change", "test_firewall.py::test_the_node_itself_needs_its_own_address_in_a_range")),
    ("4.4", "filter: no virtual address leads to a port of the node, with and without a host firewall",
     ("test_firewall.py::test_no_virtual_address_leads_to_a_port_of_the_node", "test_traffic.py::test_port_of_the_node_itself")),
    ("4.5", "Masquerading of cluster IPs follows detectLocalMode and masqueradeAll",
     (f"{_RULES}::test_what_is_written_is_what_iptables_save_prints", "test_traffic.py::test_cluster_ip_reaches")),
    ("4.6", "IPv6 has the same rules and behaves the same",
     (f"{_RULES}::test_what_is_written_is_what_iptables_save_prints[nf_tables-10]", *_who("loadbalancer-local-here-there-IPv6"))),
    ("6", "An endpoint that is removed drains: no new connection, the old ones go on",
     ("test_lifecycle.py::test_draining_endpoint_keeps_its_connection_and_gets_no_new_one",)),
    ("6", "An endpoint that returns while it drains keeps its connections *",
     ("test_lifecycle.py::test_draining_endpoint_keeps_its_connection_and_gets_no_new_one",)),
    ("6", "An idle endpoint is deleted at once; others at a deadline, that of the Service first *",
     ("test_lifecycle.py::test_idle_endpoint_is_removed_at_once_and_others_at_the_deadline", "test_drains.py::test_a_service_has_a_deadline_of_its_own")),
    ("6", "UDP endpoints are deleted at once, and clients follow",
     ("test_drains.py::test_udp_follows_at_once", "test_kernel_conntrack.py::test_only_flows_of_the_removed_real_server_go")),
    ("6", "UDP flows of a Service without endpoint, or deleted, are removed *",
     ("test_kernel_conntrack.py::test_flows_go_when_no_real_server_or_no_virtual_server_is_left",)),
    ("6", "Persistence lets go of an endpoint that drains", ("test_drains.py::test_affinity_lets_go_of_an_endpoint_that_drains",)),
    ("6", "A Service that is deleted drains *",
     ("test_drains.py::test_connections_of_a_deleted_service_go_on", "test_drains.py::test_idle_service_that_is_deleted_leaves_nothing")),
    ("6", "A restart and a crash carry drains on *",
     ("test_lifecycle.py::test_crash_while_draining", "test_lifecycle.py::test_restart_during_traffic")),
)  # fmt: skip

HEADING: Final = """\
# Compatibility with kube-proxy's IPVS mode

Made from the results of the kernel ring (`make test` fails if it is out of date): one row for each behaviour of
kube-proxy's IPVS mode, with the tests in a real kernel that prove it and the number of cases of them that passed. Those
that are about the packet filter have run a second time, with `--packet-filter nftables` in a kernel without iptables
and ipset. `*`: deliberately different, see [differences](differences.md).

| section | behaviour | proven by | cases | with nftables |
|---|---|---|---|---|
"""


def written() -> Texts:
    """Return the document from the results of the last run of the whole ring.

    Raises OSError if there was none.
    """
    results = json.loads(RESULTS.read_text())
    return {DOCUMENT: document({name.replace("tests/ring/", "", 1): outcome for name, outcome in results.items()})}


def document(results: Mapping[str, str]) -> str:
    """Return the document from the outcome of every test by its id below ``tests/ring/``.

    Those that have run with nftables have ``WITH_NFTABLES`` before it.
    """
    lines = []
    for section, behaviour, tests in BEHAVIOURS:
        found = [outcome for name, outcome in results.items() if name.startswith(tests)]
        empty = [test for test in tests if not any(name.startswith(test) for name in results)]
        verdict = f"{len(found)} passed"
        if empty or set(found) != {"passed"}:
            verdict = "**FAILED**" + "".join(f" no such test: {test}" for test in empty)
        again = [
            outcome for name, outcome in results.items() if name.startswith(tuple(map(WITH_NFTABLES.__add__, tests)))
        ]
        verdict_again = f"{len(again)} passed" if set(again) == {"passed"} else "**FAILED**" if again else ""
        proven = "<br>".join(f"`{name}`" for name in dict.fromkeys(test.replace("|", "\\|") for test in tests))
        lines.append(f"| {section} | {behaviour} | {proven} | {verdict} | {verdict_again} |\n")
    return HEADING + "".join(lines)
