"""Opens the kernel's tables, and sets what else of the kernel follows the settings: sysctls, limits, timeouts."""

from __future__ import annotations

import structlog

from ipvs_proxy.agent.local_detection import masquerading
from ipvs_proxy.kernel.dataplane import Dataplane
from ipvs_proxy.kernel.filter.beside import require_other_mode
from ipvs_proxy.kernel.filter.ipset_iptables import open_ipset_iptables
from ipvs_proxy.kernel.filter.nftables_filter import open_nftables
from ipvs_proxy.kernel.ipvs.records import Timeouts
from ipvs_proxy.kernel.ipvs.table import Ipvs
from ipvs_proxy.kernel.links.addresses import Addresses
from ipvs_proxy.kube.objects import Node
from ipvs_proxy.node import conntrack_limits, sysctl
from ipvs_proxy.node.packet_filters import Host
from ipvs_proxy.settings.model import Settings

log = structlog.get_logger(__name__)


def prepare_kernel(settings: Settings, host: Host) -> Dataplane:
    """Set the kernel's sysctls and timeouts, probe the scheduler, and open the tables.

    Raises:
        Unusable: for the first thing that does not work: one line that names it and the remedy.

    """
    if settings.service_proxy_name:
        for text in require_other_mode(host.iptables, host.families):
            log.warning("kube_proxy_warning", text=text, remedy="see ipvs-proxy doctor")
    ipvs = Ipvs()
    set_kernel(settings, ipvs)
    for problem in sysctl.kernel_problems():
        log.warning("sysctl_warning", text=str(problem))
    return open_tables(settings, host, ipvs)


def open_tables(settings: Settings, host: Host, ipvs: Ipvs, node: Node | None = None) -> Dataplane:
    """Open the kernel's tables, with the rules that follow from the own Node; nothing is written yet."""
    rules = {family: masquerading(settings, family, node) for family in host.families}
    beside = bool(settings.service_proxy_name)
    packet_filter = (
        open_nftables(rules, beside_kube_proxy=beside)
        if host.iptables is None
        else open_ipset_iptables(rules, host.iptables, beside_kube_proxy=beside)
    )
    return Dataplane(ipvs=ipvs, addresses=Addresses(), packet_filter=packet_filter)


def set_kernel(settings: Settings, ipvs: Ipvs) -> None:
    """Set what of the kernel follows the settings while the agent runs; what is right already is not written.

    Raises:
        Unusable: for the first thing that does not work.

    """
    for change in sysctl.make_changes(strict_arp=settings.strict_arp):
        log.info("sysctl_set", name=change.name, found=change.found, wanted=change.wanted)
    limits = conntrack_limits.Limits(
        max_per_core=settings.conntrack_max_per_core,
        minimum=settings.conntrack_min,
        tcp_established=settings.conntrack_tcp_established,
        tcp_close_wait=settings.conntrack_tcp_close_wait,
        tcp_be_liberal=settings.conntrack_tcp_be_liberal,
        udp=settings.conntrack_udp,
        udp_stream=settings.conntrack_udp_stream,
    )
    changes, refusals = conntrack_limits.set_limits(limits)
    for change in changes:
        log.info("sysctl_set", name=change.name, found=change.found, wanted=change.wanted)
    for refusal in refusals:
        log.info("sysctl_not_set", text=refusal)
    ipvs.require_scheduler(settings.scheduler)
    timeouts = Timeouts(int(settings.tcp_timeout), int(settings.tcp_fin_timeout), int(settings.udp_timeout))
    if any(timeouts):
        ipvs.set_timeouts(timeouts)
