"""What a changed configuration file means for a running agent: what it can take at once, and what needs a restart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Final, NamedTuple

from ipvs_proxy.settings.model import Settings
from ipvs_proxy.settings.table import SETTINGS

_LIVE: Final = tuple(setting for setting in SETTINGS if setting.live)


class Reload(StrEnum):
    """What became of a changed file: the label ``outcome`` of ``ipvs_proxy_configuration_reads_total``."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    RESTART_NEEDED = "restart-needed"
    REFUSED = "refused"


class Changes(NamedTuple):
    """The paths of the settings that differ, sorted: those that a running agent can take, and the others."""

    live: list[str]
    restart: list[str]


def changes(before: Mapping[str, object], after: Mapping[str, object]) -> Changes:
    """Return which of the fields of ``Settings.fields`` differ."""
    live = {setting.path for setting in _LIVE}
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    return Changes([path for path in changed if path in live], [path for path in changed if path not in live])


def reloaded(running: Settings, wanted: Settings) -> Settings:
    """Return the running settings with those of ``wanted`` that may change while the agent runs."""
    values = {setting.name: getattr(wanted, setting.name) for setting in _LIVE}
    fields = {setting.path: wanted.fields[setting.path] for setting in _LIVE if setting.path in wanted.fields}
    return replace(running, **values, fields={**running.fields, **fields})
