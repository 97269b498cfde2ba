"""What kube-proxy left behind in its other modes, and how it is taken away.

Only the variant of iptables in use is looked at: rules in the other one are of a time when the host used that. While
these rules are there they serve the Services, so they go after the first virtual servers are complete.
"""

from __future__ import annotations

from collections.abc import Mapping

from ipvs_proxy.kernel.filter.iptables.iptables_mode import chains_of, takedown
from ipvs_proxy.kernel.filter.iptables.programs import Iptables
from ipvs_proxy.kernel.filter.iptables.saved import Saved
from ipvs_proxy.kernel.filter.nftables.tables import delete_kube_proxy_table, has_kube_proxy_table
from ipvs_proxy.plan.tables import Family


def find(saved: Mapping[Family, Saved]) -> list[str]:
    """Say what there is in these families, one line for each kind; nothing on a clean node.

    ``saved`` has all rules of iptables of each family.
    """
    findings: list[str] = []
    for family, rules in saved.items():
        chains = chains_of(rules)
        if chains:
            findings.append(f"{family.label}: {sum(map(len, chains.values()))} chains of iptables mode")
        if has_kube_proxy_table(family):
            findings.append(f"{family.label}: the table of nftables mode")
    return findings


def remove(saved: Mapping[Family, Saved], iptables: Iptables) -> None:
    """Take away what there is in these families; ``saved`` as for ``find``.

    Raises:
        Unusable: if rules cannot be written.
        OSError: if the kernel refuses to delete a table.

    """
    for family, rules in saved.items():
        text = takedown(rules)
        if text:
            iptables.restore(family, text)
        if has_kube_proxy_table(family):
            delete_kube_proxy_table(family)
