"""Follows a directory of manifests as the agent does, and short ways to write them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from ipvs_proxy.kube.manifests import follow_manifests
from ipvs_proxy.kube.objects import KubernetesObject
from ipvs_proxy.kube.store import Change


class Recorder:
    """A sink that keeps the objects by kind and key, and everything that it received."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], KubernetesObject] = {}
        self.changes: list[Change] = []
        self.kinds_synced: list[str] = []
        self.skips: list[tuple[str, str, str]] = []

    def changed(self, changes: Sequence[Change]) -> None:
        for change in changes:
            self.changes.append(change)
            if change.old is not None:
                del self.objects[self._key(change.old)]
            if change.new is not None:
                self.objects[self._key(change.new)] = change.new

    def synced(self, kind: str) -> None:
        self.kinds_synced.append(kind)

    def skipped(self, kind: str, key: str, error: str) -> None:
        self.skips.append((kind, key, error))

    def _key(self, it: KubernetesObject) -> tuple[str, str]:
        return type(it).__name__, "/".join(filter(None, (it.metadata.namespace, it.metadata.name)))

    @property
    def names(self) -> set[str]:
        return {key for _, key in self.objects}


class Follower:
    """A running ``follow_manifests``; ``passes`` lets it read the directory a number of times."""

    def __init__(self) -> None:
        self.sink = Recorder()
        self._looks = asyncio.Semaphore(0)
        self._looked = asyncio.Semaphore(0)

    async def sleep(self, _: float) -> None:
        self._looked.release()
        await self._looks.acquire()

    async def first(self) -> None:
        await asyncio.wait_for(self._looked.acquire(), 10)

    async def passes(self, number: int = 1) -> set[str]:
        for _ in range(number):
            self._looks.release()
            await asyncio.wait_for(self._looked.acquire(), 10)
        return self.sink.names


@asynccontextmanager
async def following(directory: Path, node_name: str = "here", interval: float = 1.0) -> AsyncIterator[Follower]:
    follower = Follower()
    following = follow_manifests(directory, node_name, follower.sink, interval=interval, sleep=follower.sleep)
    task = asyncio.create_task(following)
    try:
        await follower.first()
        yield follower
        assert not task.done()
    finally:
        task.cancel()


def service(
    name: str, namespace: str | None = None, labels: dict[str, str] | None = None, **spec: Any
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    if labels:
        metadata["labels"] = labels
    spec = {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]} | spec
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def endpoint_slice(name: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": labels or {}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.1.0.1"]}],
    }


def node(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}


def write(directory: Path, name: str, *objects: dict[str, Any]) -> None:
    """Write a file of several documents by rename."""
    scratch = directory / f".{name}.tmp"
    scratch.write_text(yaml.safe_dump_all(objects) if not name.endswith("json") else json.dumps(objects[0]))
    scratch.replace(directory / name)
