"""How the kernel shares out the connections of a virtual server: its scheduler, its flags, its persistence.

What the Service asks for by annotation comes first, then the settings of the agent. Where endpoints have weights, a
scheduler that does not look at them gives way to its weighted twin, so that a weight always means something. What a
Service asks for and cannot have is left out with its reason, and the settings of the agent are in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ipvs_proxy.kube.objects import Service, ServicePort
from ipvs_proxy.plan.annotations import ONE_PACKET, SCHEDULER, SCHEDULER_FLAGS
from ipvs_proxy.plan.endpoints import Omission
from ipvs_proxy.plan.fragment import Context, Fragment, Scheduling
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.tables import ONE_PACKET as ONE_PACKET_FLAG
from ipvs_proxy.plan.tables import PERSISTENT, SCHED1, SCHED2

#: The API's default of ``sessionAffinityConfig.clientIP.timeoutSeconds``, and its upper bound (86400), in seconds.
DEFAULT_AFFINITY_TIMEOUT = 10_800
MAX_AFFINITY_TIMEOUT = 86_400

#: The weighted twin of each scheduler that takes no notice of weights but 0.
_WEIGHTED: Final = MappingProxyType({"rr": "wrr", "lc": "wlc"})
#: The flags that a scheduler knows, by ipvsadm's names (``IP_VS_SVC_F_SCHED_*`` in linux/ip_vs.h).
FLAGS: Final = MappingProxyType(
    {
        "sh": MappingProxyType({"sh-fallback": SCHED1, "sh-port": SCHED2}),
        "mh": MappingProxyType({"mh-fallback": SCHED1, "mh-port": SCHED2}),
    }
)


def decide_scheduling(
    service: Service, port: ServicePort, context: Context, fragment: Fragment, *, weighted: bool
) -> Scheduling:
    """Decide how a port's virtual servers share out connections.

    ``weighted``: endpoints have weights, or may have soon. Omissions are added to the fragment.
    """
    scheduler, source = _scheduler(context, fragment, weighted=weighted)
    limited = fragment.options.max_connections is not None
    flags = _flags(scheduler, fragment, own=weighted or limited or source is Reason.ANNOTATION)
    if fragment.options.one_packet:
        if port.protocol == "UDP":
            flags |= ONE_PACKET_FLAG
        else:
            where = f"{fragment.where(port)} {port.protocol} annotation {ONE_PACKET}"
            fragment.omissions.append(Omission(where, Reason.ONE_PACKET_IS_FOR_UDP))
    timeout = _affinity_timeout(service, port, fragment)
    return Scheduling(scheduler, flags | PERSISTENT if timeout else flags, timeout, source)


def flag_names(scheduler: str, flags: int) -> list[str]:
    """Return the flags of a scheduler by ipvsadm's names, sorted."""
    return sorted(name for name, flag in FLAGS.get(scheduler, {}).items() if flags & flag)


def _scheduler(context: Context, fragment: Fragment, *, weighted: bool) -> tuple[str, Reason]:
    scheduler, source = context.scheduler, Reason.AGENT_SETTING
    wanted = fragment.options.scheduler
    if wanted is not None and wanted in context.missing_schedulers:
        where = f"service {fragment.name} annotation {SCHEDULER} {wanted}"
        fragment.omissions.append(Omission(where, Reason.NO_SUCH_SCHEDULER))
    elif wanted is not None:
        scheduler, source = wanted, Reason.ANNOTATION
    twin = _WEIGHTED.get(scheduler) if weighted else None
    if twin is None:
        return scheduler, source
    if twin in context.missing_schedulers:
        fragment.omissions.append(Omission(f"service {fragment.name} scheduler {twin}", Reason.NO_WEIGHTED_SCHEDULER))
        return scheduler, source
    return twin, Reason.WEIGHTS


def _flags(scheduler: str, fragment: Fragment, *, own: bool) -> int:
    """Return the flags of a scheduler; ``own``: the Service has a wish for itself, a limit or weights."""
    names = fragment.options.scheduler_flags
    if names is not None:
        known: Mapping[str, int] = FLAGS.get(scheduler, {})
        if names <= known.keys():
            return sum(known[name] for name in names)
        where = f"service {fragment.name} annotation {SCHEDULER_FLAGS} {','.join(sorted(names))} scheduler {scheduler}"
        fragment.omissions.append(Omission(where, Reason.FLAGS_OF_ANOTHER_SCHEDULER))
    # ``mh`` hashes the source port too, as with kube-proxy. Both refuse the clients of an endpoint with weight 0, or at
    # its limit, unless they may fall back to another one; with the agent's setting alone that is left as kube-proxy
    # has it.
    usual = SCHED2 if scheduler == "mh" else 0
    return usual | SCHED1 if own and scheduler in FLAGS else usual


def _affinity_timeout(service: Service, port: ServicePort, fragment: Fragment) -> int:
    """Return the persistence timeout in seconds, 0 without persistence."""
    if service.spec.session_affinity != "ClientIP":
        return 0
    config = service.spec.session_affinity_config
    if config is None or config.client_ip is None or config.client_ip.timeout_seconds is None:
        return DEFAULT_AFFINITY_TIMEOUT
    timeout = config.client_ip.timeout_seconds
    if 0 < timeout <= MAX_AFFINITY_TIMEOUT:
        return timeout
    where = f"{fragment.where(port)} timeoutSeconds {timeout}"
    fragment.omissions.append(Omission(where, Reason.INVALID_AFFINITY_TIMEOUT))
    return DEFAULT_AFFINITY_TIMEOUT
