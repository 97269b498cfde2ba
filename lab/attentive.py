"""The agent with shorter polling intervals, so that tests need not wait for its next look.

On a node the agent polls manifests, its configuration file and the connections of draining endpoints once a second;
here it polls them twenty times a second. The intervals are not settings, because only tests need others.
"""

from __future__ import annotations

from typing import Final

from ipvs_proxy.agent.reload import follow_configuration
from ipvs_proxy.agent.sync import drains
from ipvs_proxy.cli import main
from ipvs_proxy.kube.manifests import follow_manifests

#: The interval here, in seconds.
INTERVAL: Final = 0.05


def shorten_intervals() -> None:
    """Shorten the polling intervals of the agent that runs in this process."""
    for follow in (follow_manifests, follow_configuration):
        defaults = follow.__kwdefaults__
        assert defaults is not None
        assert defaults["interval"] > INTERVAL
        defaults["interval"] = INTERVAL
    assert drains.INTERVAL > INTERVAL
    drains.INTERVAL = INTERVAL


if __name__ == "__main__":
    shorten_intervals()
    main()
