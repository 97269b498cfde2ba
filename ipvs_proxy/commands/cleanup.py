"""``ipvs-proxy cleanup``: takes everything of ours off this node, and says what that was.

Safe to repeat: on a clean node it removes nothing and ends well. It does not touch a node on which an agent or
kube-proxy is at work: they would put everything back, and until then the Services would be cut off. A kube-proxy whose
processes cannot be seen from here (in a container without ``hostPID``) is not noticed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ipvs_proxy.netlink.errors import Unusable
from ipvs_proxy.node import cleanup, instances, processes, requirements

_AT_WORK = "is running on this node and would put everything back: take it off the node first (see docs/migration.md)"


def run(*, kube_proxy: bool, dry_run: bool, exclude: Sequence[cleanup.Network] = ()) -> int:
    """Clean the node; return the exit status: 0 if it is clean (or could be), 1 with one line for each problem.

    ``kube_proxy``: also what kube-proxy left in any of its modes. ``exclude``: networks whose virtual servers stay.
    """
    try:
        requirements.require_linux()
        requirements.require_capabilities()
    except Unusable as error:
        return _fail([str(error)])
    if instances.any_running():
        return _fail([f"an agent {_AT_WORK}"])
    kube_proxy_process = processes.running_kube_proxy()
    if kube_proxy_process is not None:
        return _fail([f"{kube_proxy_process} {_AT_WORK}"])
    removed, problems = cleanup.clean(kube_proxy=kube_proxy, dry_run=dry_run, exclude=exclude)
    for line in removed:
        sys.stdout.write(f"{'would remove' if dry_run else 'removed'} {line}\n")
    if not removed and not problems:
        sys.stdout.write("nothing to remove, this node is clean\n")
    return _fail([f"cannot remove {problem}" for problem in problems])


def _fail(problems: Sequence[str]) -> int:
    for problem in problems:
        sys.stderr.write(f"ipvs-proxy: error: {problem}\n")
    return 1 if problems else 0
