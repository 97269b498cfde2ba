"""How virtual and real servers are written for people: as ipvsadm does, and only what is not as usual."""

from __future__ import annotations

from ipvs_proxy.plan.scheduling import flag_names
from ipvs_proxy.plan.tables import MASQUERADE, ONE_PACKET, PERSISTENT, RealServer, VirtualServer


def flags_of(server: VirtualServer) -> list[str]:
    """Return the flags of a virtual server: those of its scheduler by ipvsadm's names, and ``one-packet``."""
    return flag_names(server.scheduler, server.flags) + (["one-packet"] if server.flags & ONE_PACKET else [])


def virtual_server_words(server: VirtualServer) -> str:
    """Return the settings of a virtual server: ``sh sh-port persistent 10800``."""
    persistent = [f"persistent {server.timeout}"] if server.flags & PERSISTENT else []
    return " ".join([server.scheduler, *flags_of(server), *persistent])


def real_server_words(settings: RealServer) -> str:
    """Return the settings of a real server: ``weight 3``, and what else is not as usual."""
    words = [f"weight {settings.weight}"]
    if settings.forwarding != MASQUERADE:
        words.append(f"forwarding {settings.forwarding}")
    if settings.upper_threshold:
        words.append(f"at most {settings.upper_threshold} connections")
    if settings.lower_threshold:
        words.append(f"again below {settings.lower_threshold}")
    return ", ".join(words)
