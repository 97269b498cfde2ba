"""Looks at a node, and at kube-proxy's configuration, before this agent takes kube-proxy's place there.

Nothing is changed. Each finding says what was seen and what follows from it; what stands in the way has a remedy.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ipvs_proxy.agent.settings import Settings, SettingsError, effective
from ipvs_proxy.agent.settings_file import read_file, read_text
from ipvs_proxy.kernel import preflight, sysctl
from ipvs_proxy.kernel.addresses import LINK, Addresses
from ipvs_proxy.kernel.errors import Unusable
from ipvs_proxy.kernel.ipvs import Ipvs
from ipvs_proxy.kernel.leftovers import Leftovers
from ipvs_proxy.kernel.sets import Sets
from ipvs_proxy.plan import ownership
from ipvs_proxy.plan.difference import KernelTables
from ipvs_proxy.plan.sets import definitions

#: The file of kubeadm's ConfigMap that holds the configuration.
CONFIG_KEY = "config.conf"
_PATIENCE = 1.0


class Level(StrEnum):
    """How much a finding matters."""

    FINE = "fine"
    CHANGES = "changes"
    UNSUPPORTED = "unsupported"
    IN_THE_WAY = "in the way"


class Finding(NamedTuple):
    """One thing that was seen, and what follows from it or is to be done."""

    level: Level
    what: str
    consequence: str


def check(config: Path | None) -> list[Finding]:
    """Look at everything; give the findings, the configuration's first."""
    settings, findings = _configuration(config)
    try:
        host = preflight.check()
    except Unusable as error:
        return [*findings, Finding(Level.IN_THE_WAY, "The node lacks something", str(error))]
    variant = f"iptables {host.iptables.version_text} ({host.iptables.backend}), IPVS, ipset and dummy links work"
    findings.append(Finding(Level.FINE, variant, f"this variant is used, as {host.iptables.reason}"))
    findings += [
        Finding(Level.UNSUPPORTED, f"{family.label} is not served", reason)
        for family, reason in host.unsupported.items()
    ]
    return [*findings, *_tables(host), *_sysctls(settings), *_servers(settings)]


def _configuration(path: Path | None) -> tuple[Settings, list[Finding]]:
    """Read the configuration as the agent would; without one, or with a broken one, go on with the defaults."""
    if path is None:
        return effective({}), []
    try:
        fields, notes = _read(path)
        settings = effective({}, fields)
    except SettingsError as error:
        faults = [
            Finding(Level.IN_THE_WAY, "The configuration cannot be used", line) for line in str(error).splitlines()
        ]
        return effective({}), faults
    findings = [Finding(Level.FINE, f"{path} can be used", f"scheduler {settings.scheduler}, as it is there")]
    for event, said in (*settings.notes, *notes):
        findings.append(_note(event, said))
    return settings, findings


def _read(path: Path) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    """Read a configuration file, or the ConfigMap that holds one."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return read_file(path)  # which says what is wrong, or reads two documents
    if not isinstance(found, dict) or found.get("kind") != "ConfigMap":
        return read_file(path)
    text = (found.get("data") or {}).get(CONFIG_KEY)
    if not isinstance(text, str):
        raise SettingsError(f"{path}: the ConfigMap has no {CONFIG_KEY}")
    return read_text(text, path)


def _note(event: str, said: dict[str, Any]) -> Finding:
    match event:
        case "settings_without_effect":
            return Finding(Level.UNSUPPORTED, "Settings without effect here", ", ".join(said["settings"]))
        case "mode_ignored":
            return Finding(Level.CHANGES, f"The configuration says mode {said['mode']}", "IPVS is used")
        case "config_decoded_leniently":
            return Finding(
                Level.UNSUPPORTED, "Unknown or duplicate fields", ", ".join(said["unknown"] + said["duplicate"])
            )
    return Finding(Level.CHANGES, event.replace("_", " "), ", ".join(map(str, said.values())))


def _tables(host: preflight.Host) -> Iterator[Finding]:
    """Say what is in the kernel, and what becomes of it."""
    addresses = Addresses()
    sets = Sets([definition for family in host.families for definition in definitions(family).values()])
    tables = KernelTables(addresses=addresses.read(), entries=sets.read())
    found = Ipvs().read_virtual_servers().virtual_servers
    ours = [key for key in found if ownership.is_ours(key, tables)]
    if addresses.has_link() and ours:
        what = f"kube-proxy's IPVS mode: {len(ours)} virtual servers, {len(tables.addresses)} addresses on {LINK}"
        yield Finding(Level.CHANGES, what, "taken over as they are; only differences are written")
    if len(found) > len(ours):
        what = f"{len(found) - len(ours)} virtual servers of others"
        yield Finding(Level.FINE, what, "kept; kube-proxy would delete those that excludeCIDRs does not name")
    for line in Leftovers(host.iptables, host.families).find():
        yield Finding(Level.CHANGES, line, "it serves until all virtual servers are complete, then it is removed")


def _sysctls(settings: Settings) -> Iterator[Finding]:
    for change in sysctl.drift(strict_arp=settings.strict_arp):
        yield Finding(Level.CHANGES, str(change), "set at the start")


def _servers(settings: Settings) -> Iterator[Finding]:
    """Say whether somebody serves where the agent would: mostly the kube-proxy that still runs."""
    for name, address in (("health", settings.healthz_bind_address), ("metrics", settings.metrics_bind_address)):
        if address and _answers(address):
            what = f"Something serves {name} at {address}"
            yield Finding(Level.IN_THE_WAY, what, "stop it, mostly kube-proxy, on this node; traffic goes on meanwhile")


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))  # noqa: S104  any address is this host
    try:
        with socket.create_connection((host, int(port)), timeout=_PATIENCE):
            return True
    except OSError:
        return False
