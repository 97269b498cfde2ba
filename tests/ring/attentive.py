"""The agent, more attentive: what it looks at every second on a node (manifests, the configuration file, connections of
endpoints that drain) it looks at twenty times a second. A test then waits for what follows a change, not for the look.

The intervals are no settings, as nobody else needs other ones; all else is the agent's own.
"""

from __future__ import annotations

from typing import Any, Final

from ipvs_proxy.agent.reload import follow_configuration
from ipvs_proxy.agent.sync import drains
from ipvs_proxy.cli import main
from ipvs_proxy.kube.manifests import follow_manifests

#: Seconds between two looks.
INTERVAL: Final = 0.05


def shorten_intervals() -> None:
    """Have the agent of this process look more often."""
    for follow in (follow_manifests, follow_configuration):
        defaults: dict[str, Any] = follow.__kwdefaults__
        assert defaults["interval"] > INTERVAL
        defaults["interval"] = INTERVAL
    assert drains.INTERVAL > INTERVAL
    drains.INTERVAL = INTERVAL


if __name__ == "__main__":
    shorten_intervals()
    main()
