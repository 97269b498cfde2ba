"""Follows a configuration file as the agent does, and records what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ipvs_proxy.agent.reload import follow_configuration
from ipvs_proxy.settings.file import read_settings
from ipvs_proxy.settings.live import Reload
from ipvs_proxy.settings.model import Settings

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


class Followed:
    """What follows from a configuration file: the settings in effect, and the outcome of each reading."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.running = read_settings({}, path)
        self.outcomes: asyncio.Queue[Reload] = asyncio.Queue()
        self.fault: Exception | None = None

    async def apply(self, settings: Settings) -> None:
        if self.fault is not None:
            raise self.fault
        self.running = settings

    async def outcome(self) -> Reload:
        async with asyncio.timeout(10):
            return await self.outcomes.get()


@asynccontextmanager
async def following(path: Path, interval: float = 0.01) -> AsyncIterator[Followed]:
    followed = Followed(path)
    task = asyncio.create_task(
        follow_configuration(
            path,
            followed.running,
            read=lambda: read_settings({}, path),
            apply=followed.apply,
            told=followed.outcomes.put_nowait,
            interval=interval,
        )
    )
    try:
        await asyncio.sleep(0)
        yield followed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
