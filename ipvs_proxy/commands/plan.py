"""``ipvs-proxy plan``: a dry run of a start on this node or, offline, on one with an empty kernel.

Settings are those that are given, or those of the agent that runs here.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from ipvs_proxy.agent.observe.logs import configure
from ipvs_proxy.commands.ask import NoAnswer, fetch
from ipvs_proxy.commands.changes import changes_text
from ipvs_proxy.commands.dry_run import find_changes, find_ground
from ipvs_proxy.commands.text import document
from ipvs_proxy.kube.client import ConnectError
from ipvs_proxy.kube.manifests import ManifestsError
from ipvs_proxy.netlink.errors import Unusable
from ipvs_proxy.settings.file import read_settings, read_text
from ipvs_proxy.settings.merge import effective
from ipvs_proxy.settings.model import Settings, SettingsError
from ipvs_proxy.settings.table import SETTINGS

NOTHING, ERROR, DIFFERENT = 0, 1, 2
#: The flags that a configuration file replaces.
_REPLACED: Final = {setting.name for setting in SETTINGS if setting.field and not setting.outranks_file}


class Assumed(NamedTuple):
    """The settings that a plan is made with, and where they are from, for who reads it."""

    settings: Settings
    source: str


def assume(given: Mapping[str, Any], config: Path | None, agent: str | None) -> Assumed:
    """Return the settings to plan with.

    They are those of the flags and the file if there are any; otherwise those of the agent at ``agent`` (``IP:port``),
    with the flags that outrank a file. If no agent answers, or if ``agent`` is ``None``, they are the defaults.

    Raises:
        SettingsError: with one line for each fault.

    """
    if config is not None:
        return Assumed(read_settings(given, config), f"--config {config}")
    if _REPLACED & given.keys():
        return Assumed(read_settings(given, None), "the flags given, and defaults for all others")
    if agent is None:
        return Assumed(read_settings(given, None), "defaults")
    try:
        answer = fetch(agent, "/configz")
    except NoAnswer as error:
        return Assumed(read_settings(given, None), f"defaults, as {error}")
    name = f"the configuration of the agent at {agent}"
    try:
        text = yaml.safe_dump_all(json.loads(answer).values())
    except (ValueError, AttributeError) as error:
        raise SettingsError(f"{name} cannot be read: what answers there is not an agent of this version") from error
    fields, _ = read_text(text, name)
    return Assumed(effective(given, fields), name)


def plan(assumed: Assumed, output: str, *, offline: bool) -> int:
    """Print what would change; return the exit status: NOTHING, DIFFERENT, or ERROR with one line on standard error.

    Standard error also says where the settings come from and, if the kernel is assumed to be empty, what else is
    assumed: a plan is only as right as that.
    """
    settings = assumed.settings
    configure(settings.verbosity, settings.logging_format, logging.WARNING)
    sys.stderr.write(f"ipvs-proxy: settings: {assumed.source}\n")
    try:
        ground = find_ground(settings, offline=offline)
        if ground.assumed:
            sys.stderr.write(f"ipvs-proxy: kernel: {ground.assumed}\n")
        found = find_changes(settings, ground)
    except (Unusable, ConnectError, ManifestsError, OSError) as error:
        sys.stderr.write(f"ipvs-proxy: error: {error}\n")
        return ERROR
    sys.stdout.write(changes_text(found) if output == "text" else document(found, output))
    return DIFFERENT if found.changes else NOTHING
