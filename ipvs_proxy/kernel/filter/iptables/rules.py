"""The packet rules of one family: read, find drift, repair.

The rules masquerade and filter; what they apply to is in the sets. They are the same whatever Services there are: a
rule is also there while its set is empty, which matches nothing (see ``render``). So they are written once,
before the first virtual server, and from then on only read: an audit that finds nothing wrong writes nothing.

A repair is one process and one commit for each table: raw first, which takes packet marks off, then nat and filter, as
kube-proxy does, and mangle. All our chains are set in that write, whoever filled them before; jumps are only added
where they are missing, so rules of others keep their place. What was written is read back once, to learn how it is
printed; in a start that waits for the first audit, as everybody waits for the first virtual servers. Between the
commits a node has the new nat rules and the old filter rules for some milliseconds. That is harmless: at a first start
there is no virtual server yet; at a takeover the old and the new rules of a table are both right for the same sets, and
the tables share nothing but the packet mark. Only where a takeover also changes the mark can a packet miss the rule
that accepts forwarding; where the node drops by default, it is then sent again.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Final

import structlog

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

    ``settings`` may be replaced at any time: the next repair writes what they say. ``writes`` counts the writes.

    Raises:
        ValueError: if the settings are not for this family.

    """

    def __init__(self, family: Family, settings: Masquerading, *, iptables: Iptables) -> None:
        self.family = family
        self.settings = settings
        self.writes = 0
        self._iptables = iptables
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
        return differences(self._wanted(), our_rules(self.look()), forms=self._forms)

    def write(self, seen: Saved) -> list[str]:
        """Set our chains and add missing jumps if ``seen``, which ``look`` gave, is not right; say what is not.

        Raises:
            Unusable: if the rules cannot be written. A table is changed whole or not at all.

        """
        with self._lock:
            return self._write(our_rules(seen))

    def repair(self) -> list[str]:
        """Set our chains and add missing jumps if anything is not as it should be; say what was wrong.

        Raises:
            Unusable: if the rules cannot be read or written. A table is changed whole or not at all.

        """
        with self._lock:
            before = our_rules(self.look())
            if self._unread is not None:
                self._learn(*self._unread, after=before)
            findings = self._write(before)
            if self._unread is not None:
                wanted, _ = self._unread
                after = our_rules(self.look())
                self._learn(*self._unread, after=after)
                left = differences(wanted, after, forms=self._forms)
                if left:
                    log.warning("rules_changed_while_written", family=self.family.label, findings=left)
            return findings

    def _wanted(self) -> Ruleset:
        return render(
            self.settings,
            family=self.family,
            random_fully=self._iptables.random_fully,
            bridge_netfilter=BRIDGE_NETFILTER.exists(),
        )

    def _write(self, before: Ruleset) -> list[str]:
        wanted = self._wanted()
        findings = differences(wanted, before, forms=self._forms)
        if findings:
            self.writes += 1
            jumps = missing_jumps(wanted, before, forms=self._forms)
            self._iptables.restore(self.family, payload(wanted, jumps, former=outdated(before)))
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
