"""``ipvs-proxy cleanup``: removes everything of ours from this node, and says what that was.

It can be repeated: on a clean node it removes nothing and succeeds. It refuses to touch a node on which an agent or
kube-proxy is running: that would put everything back, and until then no Service could be reached. A kube-proxy whose
process cannot be seen from here (from a container without ``hostPID``) is not noticed.

Where our rules are as they are beside a kube-proxy, that one knows nothing of ours: it may run, and all of its own
stays.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ipvs_proxy.kernel.filter.beside import are_rules_beside_kube_proxy
from ipvs_proxy.netlink.errors import Unusable
from ipvs_proxy.node import cleanup, instances, processes, requirements

_AT_WORK = "is running on this node and would put everything back: take it off the node first (see docs/migration.md)"


def run(*, kube_proxy: bool, dry_run: bool, exclude: Sequence[cleanup.Network] = ()) -> int:
    """Clean the node; return the exit status: 0 if it is clean, or would be, else 1 with one line for each problem.

    ``kube_proxy`` also removes what kube-proxy left in any of its modes. With ``dry_run`` nothing is removed.
    ``exclude`` has networks whose virtual servers stay.
    """
    try:
        requirements.require_linux()
        requirements.require_capabilities()
        beside = not kube_proxy and are_rules_beside_kube_proxy()
    except Unusable as error:
        return _fail([str(error)])
    if instances.any_running():
        return _fail([f"an agent {_AT_WORK}"])
    kube_proxy_process = processes.running_kube_proxy()
    if kube_proxy_process is not None and not beside:
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
