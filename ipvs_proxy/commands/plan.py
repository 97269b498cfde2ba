"""``ipvs-proxy plan``: a dry run of a start on this node."""

from __future__ import annotations

import sys

from ipvs_proxy.agent.dry_run import find_changes
from ipvs_proxy.agent.settings import Settings
from ipvs_proxy.commands.changes import changes_text
from ipvs_proxy.commands.text import document
from ipvs_proxy.kernel.errors import Unusable
from ipvs_proxy.kube.client import ConnectError
from ipvs_proxy.kube.manifests import ManifestsError

NOTHING, ERROR, DIFFERENT = 0, 1, 2


def plan(settings: Settings, output: str) -> int:
    """Print what would change; give the exit status: NOTHING, DIFFERENT, or ERROR with one line on standard error."""
    try:
        found = find_changes(settings)
    except (Unusable, ConnectError, ManifestsError, OSError) as error:
        sys.stderr.write(f"ipvs-proxy: error: {error}\n")
        return ERROR
    sys.stdout.write(changes_text(found) if output == "text" else document(found, output))
    return DIFFERENT if found.changes else NOTHING
