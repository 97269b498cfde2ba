"""Objects from a directory of manifest files, for nodes and clusters that have no API server to ask.

``follow_manifests`` is to files what the reflector is to the API: it hands the sink the same changes, and applies the
same selectors. The directory is polled, because polling is what works alike for editors, atomic renames, the symlink
swap of ConfigMap volumes and network file systems. What cannot be read or parsed keeps its last good objects.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import structlog
import yaml

from ipvs_proxy.kube.decode import Skipped, convert_object, key_of
from ipvs_proxy.kube.objects import EndpointSlice, KubernetesObject, Node, Service
from ipvs_proxy.kube.reflector import Sink
from ipvs_proxy.kube.resources import ENDPOINT_SLICES, SERVICES, Resource, own_node
from ipvs_proxy.kube.store import Store

try:
    from yaml import CSafeLoader as SafeLoader
except ImportError:
    from yaml import SafeLoader  # type: ignore[assignment]

log = structlog.get_logger(__name__)

SUFFIXES = (".yaml", ".yml", ".json")
PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"

_API_VERSIONS = {"Service": "v1", "Node": "v1", "EndpointSlice": "discovery.k8s.io/v1"}

#: Levels of nesting in YAML.
MAX_DEPTH = 4000
_BRACKET = re.compile(rb"[\[\]{}]")
_INDENTED = re.compile(rb"^[ ?:-]{%d}" % MAX_DEPTH, re.MULTILINE)

Signature = tuple[int, ...]
#: Of a file that could not be read: it differs from any, so the next look tries again.
_UNREAD: Signature = (0, 0)


class ManifestsError(Exception):
    """The directory of manifests cannot be used; ends the start."""


class ParseError(Exception):
    """A file is not YAML or JSON; ``line`` counts from 1 and is 0 if unknown."""

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(reason)
        self.line = line


class _Loader(SafeLoader):
    """Loads plain data; timestamps stay strings, so that a bad one spoils its object and not the whole file."""

    yaml_implicit_resolvers = {  # noqa: RUF012  a class attribute is how PyYAML takes it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in SafeLoader.yaml_implicit_resolvers.items()
    }


class _File(NamedTuple):
    """What was last seen of a file: its stat and content, and the objects of the last content that parsed."""

    signature: Signature
    digest: bytes
    items: list[KubernetesObject | Skipped]


async def follow_manifests(
    directory: Path,
    node_name: str,
    sink: Sink,
    *,
    interval: float = 1.0,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Hand the sink the objects of a directory, then follow its changes for ever.

    Reads ``*.yaml``, ``*.yml`` and ``*.json`` in the directory itself, in the order of their names; names that begin
    with a dot are passed over. After the first pass every kind is synced, even if there are no files.

    Args:
        directory: where the files are.
        node_name: the only Node that is handed on.
        sink: gets the changes.
        interval: seconds between two looks.
        sleep: waits that long.

    Raises:
        ManifestsError: the directory cannot be read at the start; later that is only logged.

    """
    try:
        signatures = await asyncio.to_thread(_scan, directory)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ManifestsError(
            f"cannot read the manifests in {directory}: {reason}; give --manifests a readable directory"
        ) from None
    follower = _Follower(directory, node_name, sink)
    await follower.follow(signatures)
    for kind in _API_VERSIONS:
        sink.synced(kind)
    missing = False
    while True:
        await sleep(interval)
        try:
            signatures = await asyncio.to_thread(_scan, directory)
        except OSError as error:
            if not missing:
                log.warning("manifests_unreadable", directory=str(directory), error=str(error))
            missing = True
            continue
        missing = False
        await follower.follow(signatures)


class _Follower:
    """Keeps what was seen of the files, and the stores of the objects in them."""

    def __init__(self, directory: Path, node_name: str, sink: Sink) -> None:
        self._directory = directory
        self._node_name = node_name
        self._sink = sink
        self._resources = {resource.kind: resource for resource in (SERVICES, ENDPOINT_SLICES, own_node(node_name))}
        self._stores = {kind: Store(kind) for kind in self._resources}
        self._files: dict[str, _File] = {}
        self._moving: dict[str, Signature] = {}
        self._twice: set[tuple[str, str, str, str]] = set()

    async def follow(self, signatures: dict[str, Signature]) -> None:
        """Read the files that changed and hand on what that changes."""
        changed = self._files.keys() - signatures.keys()
        for name in changed:
            del self._files[name]
        for name, signature in signatures.items():
            if self._is_settled(name, signature):
                file = await asyncio.to_thread(self._read, name, signature)
                if file is not None:
                    self._take(name, file)
                    changed.add(name)
        if changed:
            self._hand_on()

    def _is_settled(self, name: str, signature: Signature) -> bool:
        """Tell whether a file is to be read now.

        A file that is written in place is read when it stood still for one interval: the first half of a manifest
        often parses, and would take away all objects of the second half. A file with a new inode came as a whole.
        """
        known = self._files.get(name)
        if known is None or known.signature[:2] != signature[:2]:
            return True
        if known.signature == signature:
            self._moving.pop(name, None)
            return False
        settled = self._moving.get(name) == signature
        self._moving[name] = signature
        return settled

    def _read(self, name: str, signature: Signature) -> _File | None:
        known = self._files.get(name)
        items = known.items if known else []
        path = self._directory / name
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None  # the next look at the directory tells
        except OSError as error:
            if known is None or known.signature != _UNREAD:
                log.error("manifest_unreadable", file=str(path), error=error.strerror)
            return _File(_UNREAD, b"", items)
        digest = hashlib.sha256(content).digest()
        if known is not None and known.digest == digest:
            return known._replace(signature=signature)
        try:
            items = list(self._items(name, parse(content, is_json=name.endswith(".json"))))
        except ParseError as error:
            log.error("manifest_unparsable", file=str(path), line=error.line, error=str(error))
        except RecursionError:
            log.error("manifest_unparsable", file=str(path), line=0, error="nested too deeply")
        return _File(signature, digest, items)

    def _take(self, name: str, file: _File) -> None:
        known = self._files.get(name)
        self._files[name] = file
        if known is None or known.items is not file.items:
            for item in file.items:
                if isinstance(item, Skipped):
                    self._sink.skipped(item.kind, item.key, f"{self._directory / name}: {item.error}")

    def _items(self, name: str, documents: list[Any]) -> Iterator[KubernetesObject | Skipped]:
        for mapping in _objects(documents):
            resource = self._resources.get(str(mapping.get("kind")))
            if resource is None:
                continue
            expected = _API_VERSIONS[resource.kind]
            version = mapping.get("apiVersion")
            if version != expected:
                # Knative and others have Services of their own.
                log.warning(
                    "manifest_object_ignored", file=name, kind=resource.kind, api_version=version, want=expected
                )
                continue
            item = convert_object(_with_namespace(mapping, resource), resource)
            if self._is_selected(item):
                yield item

    def _is_selected(self, item: KubernetesObject | Skipped) -> bool:
        """Apply the selectors that the API applies for the reflectors."""
        if isinstance(item, Skipped):
            return item.kind != "Node" or item.key == self._node_name
        labels = item.metadata.labels or {}
        match item:
            case Service():
                return PROXY_NAME_LABEL not in labels and item.spec.cluster_ip != "None"
            case EndpointSlice():
                return HEADLESS_LABEL not in labels
            case Node():
                return item.metadata.name == self._node_name

    def _hand_on(self) -> None:
        """Unite the files, the later name winning, and hand on what differs from before."""
        united: dict[str, dict[str, tuple[str, KubernetesObject | Skipped]]] = {kind: {} for kind in self._stores}
        twice = set()
        for name in sorted(self._files):
            for item in self._files[name].items:
                kind, key = _identity(item)
                if key in united[kind]:
                    twice.add((kind, key, united[kind][key][0], name))
                united[kind][key] = (name, item)
        for kind, key, loser, winner in sorted(twice - self._twice):
            log.warning("manifest_object_twice", kind=kind, object=key, used=winner, ignored=loser)
        self._twice = twice
        for kind, store in self._stores.items():
            items = [item for _, item in united[kind].values()]
            changes = store.replace(
                [item for item in items if not isinstance(item, Skipped)],
                {item.key for item in items if isinstance(item, Skipped)},
            )
            if changes:
                self._sink.changed(changes)


def parse(content: bytes, *, is_json: bool) -> list[Any]:
    """Give the documents of a file.

    Raises:
        ParseError: with the line and the reason.

    """
    try:
        if is_json:
            return [json.loads(content)]
        if _is_too_deep(content):
            raise ParseError("nested too deeply")
        return list(yaml.load_all(content, _Loader))
    except json.JSONDecodeError as error:
        raise ParseError(error.msg, error.lineno) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = error.problem or error.context or "not YAML"
        raise ParseError(reason, mark.line + 1 if mark else 0) from None
    except RecursionError:
        raise ParseError("nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ParseError(" ".join(str(error).split())) from None


def _is_too_deep(content: bytes) -> bool:
    """Tell whether YAML may nest so deeply that libyaml, which recurses unchecked, would overflow the stack."""
    depth = 0
    for bracket in _BRACKET.finditer(content):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > MAX_DEPTH:
            return True
    return _INDENTED.search(content) is not None


def _scan(directory: Path) -> dict[str, Signature]:
    """Give a signature for each manifest, in the order of the names; one that vanishes meanwhile is left out."""
    signatures: dict[str, Signature] = {}
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or not entry.name.endswith(SUFFIXES):
                continue
            try:
                if entry.is_file():
                    stat = entry.stat()
                    signatures[entry.name] = (
                        stat.st_dev,
                        stat.st_ino,
                        stat.st_size,
                        stat.st_mtime_ns,
                        stat.st_ctime_ns,
                    )
            except OSError:
                continue
    return signatures


def _objects(documents: list[Any], *, api_version: Any = None, kind: str = "") -> Iterator[dict[str, Any]]:
    """Unfold lists; the elements of a typed list (ServiceList) may leave out what the list says."""
    for document in documents:
        if not isinstance(document, dict):
            continue
        mapping = document
        if kind and "kind" not in mapping:
            mapping = {"apiVersion": api_version, "kind": kind} | mapping
        own = str(mapping.get("kind"))
        items = mapping.get("items")
        if own.endswith("List") and isinstance(items, list):
            yield from _objects(items, api_version=mapping.get("apiVersion"), kind=own.removesuffix("List"))
        else:
            yield mapping


def _with_namespace(mapping: dict[str, Any], resource: Resource) -> dict[str, Any]:
    metadata = mapping.get("metadata")
    if resource.kind == "Node" or not isinstance(metadata, dict) or metadata.get("namespace"):
        return mapping
    return mapping | {"metadata": metadata | {"namespace": "default"}}


def _identity(item: KubernetesObject | Skipped) -> tuple[str, str]:
    if isinstance(item, Skipped):
        return item.kind, item.key
    return type(item).__name__, key_of(item)
