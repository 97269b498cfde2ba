"""Follows the configuration file: what can change while the agent runs does, the rest is named.

The file is looked at every second, through symbolic links, so that the swap of a ConfigMap volume is a change like any
other. One that is written in place is read when it has rested for a second, as its first half may parse. A file that
cannot be used is refused with its faults, and what runs stays as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Final

import structlog

from ipvs_proxy.settings.document import changes
from ipvs_proxy.settings.merge import Settings, SettingsError
from ipvs_proxy.settings.table import SETTINGS

log = structlog.get_logger(__name__)

#: Seconds between two looks at the file.
INTERVAL: Final = 1.0
_LIVE: Final = tuple(setting for setting in SETTINGS if setting.live)


class Outcome(StrEnum):
    """What became of a changed file."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    RESTART_NEEDED = "restart-needed"
    REFUSED = "refused"


Signature = tuple[int, int, int] | None


async def follow_configuration(
    path: Path,
    running: Settings,
    *,
    read: Callable[[], Settings],
    apply: Callable[[Settings], Awaitable[None]],
    told: Callable[[Outcome], None],
    interval: float = INTERVAL,
) -> None:
    """Apply every change of a file, for ever.

    ``read`` gives the settings anew or raises SettingsError; ``apply`` gets those that are to run from now on, and
    ``told`` the outcome. A change that ``apply`` fails with is tried again with the next change of the file.
    """
    seen, moving = _signature(path), None
    while True:
        await asyncio.sleep(interval)
        found = _signature(path)
        if found == seen or found is None:
            continue
        if seen is not None and found[0] == seen[0] and found != moving:
            moving = found
            continue
        seen, moving = found, None
        try:
            wanted = await asyncio.to_thread(read)
        except SettingsError as error:
            log.error("configuration_refused", path=str(path), faults=str(error).splitlines())
            told(Outcome.REFUSED)
            continue
        try:
            running, outcome = await _take(running, wanted, apply)
        except (OSError, ValueError) as error:
            log.error("configuration_not_applied", path=str(path), error=str(error))
            outcome = Outcome.REFUSED
        told(outcome)


async def _take(
    running: Settings, wanted: Settings, apply: Callable[[Settings], Awaitable[None]]
) -> tuple[Settings, Outcome]:
    """Apply what can be applied; return what runs now, and whether that is all."""
    changed = changes(running.fields, wanted.fields)
    live = changed & {setting.path for setting in _LIVE}
    left = sorted(changed - live)
    if live:
        running = merge(running, wanted)
        await apply(running)
        log.info("configuration_applied", changed=sorted(live))
    if left:
        log.warning("restart_needed", changed=left, remedy="restart the agent; traffic goes on meanwhile")
        return running, Outcome.RESTART_NEEDED
    return running, Outcome.APPLIED if live else Outcome.UNCHANGED


def merge(running: Settings, wanted: Settings) -> Settings:
    """Return the running settings with those of ``wanted`` that may change while the agent runs."""
    values = {setting.name: getattr(wanted, setting.name) for setting in _LIVE}
    fields = {setting.path: wanted.fields[setting.path] for setting in _LIVE if setting.path in wanted.fields}
    return replace(running, **values, fields={**running.fields, **fields})


def _signature(path: Path) -> Signature:
    """Tell one content of a file from another; ``None`` while it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
