"""The packet rules of one family: read, find drift, repair.

The rules masquerade and filter; what they apply to is in the sets. They do not depend on which Services there are: a
rule is there even while its set is empty and matches nothing (see ``render``). So they are written once, before the
first virtual server, and from then on only read: an audit that finds nothing wrong writes nothing.

A repair takes one process, and one commit for each table: raw first, which takes packet marks off, then nat and filter
in kube-proxy's order, then mangle. That write sets all our chains, whoever filled them before. Jumps are only added
where they are missing, so that rules of others keep their place. What was written is read back once, to learn how this
iptables prints it; a start leaves that to the first audit, because the first virtual servers are waiting.

Between the commits a node has the new nat rules and the old filter rules for some milliseconds. That is harmless. At a
first start there is no virtual server yet. At a takeover the old and the new rules of a table are both right for the
same sets, and the tables share nothing but the packet mark. Only where a takeover also changes the mark can a packet
miss the rule that accepts forwarding; if the node drops by default, its sender sends it again.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Final

import structlog

from ipvs_proxy.kernel.filter.iptables.chains import ALONE, Layout
from ipvs_proxy.kernel.filter.iptables.compare import (
    differences,
    missing_jumps,
    our_rules,
    outdated,
    payload,
    printed_forms,
)
from ipvs_proxy.kernel.filter.iptables.programs import Iptables
from ipvs_proxy.kernel.filter.iptables.render import Rule, Ruleset, render
from ipvs_proxy.kernel.filter.iptables.saved import Saved, parse
from ipvs_proxy.plan.masquerading import Masquerading
from ipvs_proxy.plan.tables import Family

log = structlog.get_logger()

#: Exists while br_netfilter is loaded (Documentation/networking/bridge.rst of the kernel).
BRIDGE_NETFILTER: Final = Path("/proc/sys/net/bridge")


class IptablesRules:
    """The rules as chains of iptables that refer to ipsets; all sets must exist before the first write.

    ``settings`` may be replaced at any time: the next repair writes what they say. ``layout`` says which chains are
    ours. ``writes`` counts the writes.

    Raises:
        ValueError: if the settings are not for this family.

    """

    def __init__(self, family: Family, settings: Masquerading, *, iptables: Iptables, layout: Layout = ALONE) -> None:
        self.family = family
        self.settings = settings
        self.writes = 0
        self._iptables = iptables
        self._layout = layout
        self._forms: dict[Rule, str] = {}
        self._unread: tuple[Ruleset, Ruleset] | None = None
        self._lock = Lock()
        self._wanted()

    def look(self) -> Saved:
        """Read all rules of the family, also those of others.

        Raises:
            Unusable: if iptables does not run.

        """
        return parse(self._iptables.save(self.family))

    def drift(self) -> list[str]:
        """Say what is not as it should be, by table and chain; nothing if all is right.

        Raises:
            Unusable: if the rules cannot be read.

        """
        return self._differences(self._wanted(), our_rules(self.look(), self._layout))

    def write(self, seen: Saved) -> list[str]:
        """Set our chains and add missing jumps if ``seen``, which ``look`` gave, is not right; say what is not.

        Raises:
            Unusable: if the rules cannot be written. A table is changed whole or not at all.

        """
        with self._lock:
            return self._write(our_rules(seen, self._layout))

    def repair(self) -> list[str]:
        """Set our chains and add missing jumps if anything is not as it should be; say what was wrong.

        Raises:
            Unusable: if the rules cannot be read or written. A table is changed whole or not at all.

        """
        with self._lock:
            before = our_rules(self.look(), self._layout)
            if self._unread is not None:
                self._learn(*self._unread, after=before)
            findings = self._write(before)
            if self._unread is not None:
                wanted, _ = self._unread
                after = our_rules(self.look(), self._layout)
                self._learn(*self._unread, after=after)
                left = self._differences(wanted, after)
                if left:
                    log.warning("rules_changed_while_written", family=self.family.label, findings=left)
            return findings

    def _wanted(self) -> Ruleset:
        return render(
            self.settings,
            family=self.family,
            random_fully=self._iptables.random_fully,
            bridge_netfilter=BRIDGE_NETFILTER.exists(),
            layout=self._layout,
        )

    def _differences(self, wanted: Ruleset, found: Ruleset) -> list[str]:
        return differences(wanted, found, forms=self._forms, layout=self._layout)

    def _write(self, before: Ruleset) -> list[str]:
        wanted = self._wanted()
        findings = self._differences(wanted, before)
        if findings:
            self.writes += 1
            jumps = missing_jumps(wanted, before, forms=self._forms)
            self._iptables.restore(self.family, payload(wanted, jumps, former=outdated(before, self._layout)))
            self._unread = wanted, before
        return findings

    def _learn(self, wanted: Ruleset, before: Ruleset, *, after: Ruleset) -> None:
        """Learn how what was written is printed, from what was there before and after it."""
        self._unread = None
        forms = printed_forms(wanted, before=before, after=after)
        if forms != {rule: self._forms.get(rule) for rule in forms}:
            self._forms |= forms
            rule, printed = next(iter(forms.items()))
            log.info(
                "rules_printed_in_other_form",
                family=self.family.label,
                rules=len(forms),
                written=rule.text,
                printed=printed,
            )
