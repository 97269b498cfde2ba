"""Follows the configuration file: what can change while the agent runs does, and the rest is named.

The file is looked at every second, through symbolic links, so that the swap of a ConfigMap volume is a change like any
other. A file that is written in place is read when it has rested for a second, as its first half may parse. A file that
cannot be used is refused with its faults, and what runs stays as it is.

This loop has a clock and a log, so it belongs to the agent. Which settings may change is for ``settings.live`` to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import structlog

from ipvs_proxy.settings.live import Reload, changes, reloaded
from ipvs_proxy.settings.model import Settings, SettingsError

log = structlog.get_logger(__name__)

#: Seconds between two looks at the file.
INTERVAL: Final = 1.0
#: Inode, time of the last change in nanoseconds, size in bytes; ``None`` while there is no file.
Signature = tuple[int, int, int] | None


async def follow_configuration(
    path: Path,
    running: Settings,
    *,
    read: Callable[[], Settings],
    apply: Callable[[Settings], Awaitable[None]],
    told: Callable[[Reload], None],
    interval: float = INTERVAL,
) -> None:
    """Apply every change of a file, for ever.

    ``read`` returns the settings anew or raises SettingsError; ``apply`` takes those that are to run from now on, and
    ``told`` what became of the file. If ``apply`` fails, the next change of the file tries again.
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
            told(Reload.REFUSED)
            continue
        try:
            running, outcome = await _apply(running, wanted, apply)
        except (OSError, ValueError) as error:
            log.error("configuration_not_applied", path=str(path), error=str(error))
            outcome = Reload.REFUSED
        told(outcome)


async def _apply(
    running: Settings, wanted: Settings, apply: Callable[[Settings], Awaitable[None]]
) -> tuple[Settings, Reload]:
    """Apply what can be applied; return what runs now, and whether that is all."""
    changed = changes(running.fields, wanted.fields)
    if changed.live:
        running = reloaded(running, wanted)
        await apply(running)
        log.info("configuration_applied", changed=changed.live)
    if changed.restart:
        log.warning("restart_needed", changed=changed.restart, remedy="restart the agent; traffic goes on meanwhile")
        return running, Reload.RESTART_NEEDED
    return running, Reload.APPLIED if changed.live else Reload.UNCHANGED


def _signature(path: Path) -> Signature:
    """Return what tells one content of a file from another; ``None`` while it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
