"""Objects from a directory of manifest files, for nodes and clusters without an API server.

Invariant: no accident in the file system removes an object that is served. A file that cannot be read or parsed, or
that has been truncated to nothing, keeps its last good objects. A file that is written in place is read once it has not
changed for one look; a file that was replaced by a rename is complete. If files that were deleted, or written in place,
would remove most of the objects at once, nothing happens until an operator confirms it with an empty List; see
``_Follower``.

``follow_manifests`` does for files what the reflector does for the API: it passes the same changes to the sink, and
applies the same selectors. The directory is polled, because polling works alike for editors, atomic renames, the
symlink swap of ConfigMap volumes and network file systems.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog

from ipvs_proxy.kube.decode import Skipped
from ipvs_proxy.kube.documents import ParseError, parse, read_file
from ipvs_proxy.kube.manifest_objects import Content, Unused, identity, read_objects
from ipvs_proxy.kube.objects import KubernetesObject
from ipvs_proxy.kube.sinks import Sink
from ipvs_proxy.kube.store import Store
from ipvs_proxy.kube.texts import quote

log = structlog.get_logger(__name__)

SUFFIXES: Final = (".yaml", ".yml", ".json")
KINDS: Final = ("Service", "EndpointSlice", "Node")
#: At most this many objects of a kind may disappear at once, whatever share of all objects they are.
FEW: Final = 10
#: Number of files that are read concurrently, so that a slow one does not delay the others.
READERS: Final = 2
#: At most this many files are named in a log line.
_NAMED: Final = 5
_REMEDY: Final = (
    "bring the files back; if the removal is meant, add a file with an empty List "
    "(apiVersion: v1, kind: List, items: []), or restart the agent"
)

Item = KubernetesObject | Skipped
Signature = tuple[int, ...]
#: Signature of a file that could not be read. It differs from that of any readable file, so the next look tries again.
_UNREAD: Final[Signature] = (0, 0)


class ManifestsError(Exception):
    """The directory of manifests cannot be used, so the agent cannot start."""


class _File(NamedTuple):
    """What was last seen of a file.

    ``signature`` comes from its stat, ``digest`` is the SHA-256 of its content. ``items``, ``removes`` and ``unused``
    are those of the last content that could be used.
    """

    signature: Signature
    digest: bytes
    items: list[Item]
    removes: bool = False
    unused: tuple[Unused, ...] = ()


class _Doubt(NamedTuple):
    """A change that has not been applied yet.

    ``file`` is the file as it is now, or ``None`` if it is gone. ``is_whole`` says whether a rename replaced it.
    """

    file: _File | None
    is_whole: bool = False


async def follow_manifests(
    directory: Path,
    node_name: str,
    sink: Sink,
    *,
    service_proxy_name: str = "",
    interval: float = 1.0,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Pass the objects of a directory to the sink, then follow its changes for ever.

    Reads ``*.yaml``, ``*.yml`` and ``*.json`` in the directory itself, in order of name, and ignores names that begin
    with a dot. After the first pass every kind is reported as synced, even if there are no files: at the start, the
    directory is accepted as it is.

    Args:
        directory: the directory with the files.
        node_name: the only Node whose object is passed on.
        sink: receives the changes.
        service_proxy_name: whose Services are passed on (see ``resources.services_for``).
        interval: seconds between two looks.
        sleep: waits for a number of seconds.

    Raises:
        ManifestsError: the directory cannot be read at the start. Later failures are only logged.

    """
    try:
        signatures = await asyncio.to_thread(_scan, directory)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ManifestsError(
            f"cannot read the manifests in {directory}: {reason}; give --manifests a readable directory"
        ) from None
    with ThreadPoolExecutor(READERS, "manifests") as readers:
        read = partial(read_objects, node_name=node_name, service_proxy_name=service_proxy_name)
        follower = _Follower(directory, read, sink, readers)
        try:
            await follower.follow(signatures, patience=None)
            for kind in KINDS:
                sink.synced(kind)
            while True:
                await sleep(interval)
                await follower.look(patience=interval)
        finally:
            readers.shutdown(wait=False, cancel_futures=True)


class _Follower:
    """The files as last seen, and the stores of the objects in them.

    A change is in doubt if it would remove many objects at once: more than half of a kind and more than ten, or any if
    no file is left. It is not applied unless some file contains an empty List. The exception is a file that a rename
    has replaced: it is applied once it has not changed for one look. The wait is for programs that are still rewriting
    their files.
    """

    def __init__(
        self, directory: Path, read: Callable[[list[Any]], Content], sink: Sink, readers: ThreadPoolExecutor
    ) -> None:
        self._directory = directory
        self._read_objects = read
        self._sink = sink
        self._readers = readers
        self._stores = {kind: Store(kind) for kind in KINDS}
        self._files: dict[str, _File] = {}
        self._doubts: dict[str, _Doubt] = {}
        self._is_unreadable = False
        self._doubts_told: frozenset[str] = frozenset()
        self._moving: dict[str, Signature] = {}
        self._readings: dict[str, asyncio.Future[_File | None]] = {}
        self._twice: set[tuple[str, str, str, str]] = set()
        self._unused_told: set[tuple[str, str]] = set()

    async def look(self, *, patience: float) -> None:
        """Look at the directory again and apply what has changed. An unreadable directory is logged once."""
        try:
            signatures = await asyncio.to_thread(_scan, self._directory)
        except OSError as error:
            if not self._is_unreadable:
                log.warning("manifests_unreadable", directory=str(self._directory), error=str(error))
            self._is_unreadable = True
            return
        self._is_unreadable = False
        await self.follow(signatures, patience=patience)

    async def follow(self, signatures: Mapping[str, Signature], *, patience: float | None) -> None:
        """Read the files that changed and pass the resulting changes to the sink.

        A file that is not read within ``patience`` seconds is left to a later look. ``None`` means to wait for all.
        """
        loop = asyncio.get_running_loop()
        for name, signature in signatures.items():
            if name not in self._readings and self._is_settled(name, signature):
                self._readings[name] = loop.run_in_executor(
                    self._readers, self._read, name, signature, self._files.get(name)
                )
        if self._readings:
            await asyncio.wait(self._readings.values(), timeout=patience)
        changed = False
        for name in [name for name, reading in self._readings.items() if reading.done()]:
            file = self._readings.pop(name).result()
            if file is not None:
                self._take(name, file)
                changed = True
        self._look_for_gone(signatures)
        if self._doubts:
            changed |= self._settle_doubts(signatures)
        if changed:
            self._hand_on()

    def _is_settled(self, name: str, signature: Signature) -> bool:
        """Return whether a file is to be read now.

        A file that is written in place is read once it has not changed for one interval: the first half of a manifest
        often parses, and would remove all objects of the second half. A file with a new inode is complete.
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

    def _read(self, name: str, signature: Signature, known: _File | None) -> _File | None:
        """Read a file. Runs in a thread.

        Returns the file with its new objects, or with its previous ones if the content cannot be used. Returns ``None``
        if the file is gone.
        """
        before = _File(_UNREAD, b"", []) if known is None else known
        path = self._directory / name
        try:
            content = read_file(path)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not path.is_symlink():
                return None  # the next look at the directory notices that it is gone
            if known is None or known.signature != _UNREAD:
                log.error("manifest_unreadable", file=str(path), error=error.strerror)
            return before._replace(signature=_UNREAD, digest=b"")
        digest = hashlib.sha256(content).digest()
        if known is not None and known.digest == digest:
            return known._replace(signature=signature)
        before = before._replace(signature=signature, digest=digest)
        try:
            documents = parse(content, is_json=name.endswith(".json")) if content.strip() else []
            found = self._read_objects(documents)
        except ParseError as error:
            log.error("manifest_unparsable", file=str(path), line=error.line, error=str(error))
            return before
        if found.is_empty and before.items:
            log.error("manifest_empty", file=str(path), reason="what it held stays in use", remedy=_REMEDY)
            return before
        return _File(signature, digest, found.items, found.removes, tuple(found.unused))

    def _take(self, name: str, file: _File) -> None:
        """Accept a file that was read: at once if it is new or has the same objects, otherwise as a doubt."""
        known = self._files.get(name)
        self._doubts.pop(name, None)
        if known is None or known.items is file.items:
            self._files[name] = file
        else:
            is_whole = known.signature[:2] != file.signature[:2]
            self._files[name] = known._replace(signature=file.signature, digest=file.digest)
            self._doubts[name] = _Doubt(file, is_whole)
        if known is None or known.items is not file.items:
            self._tell(name, file)

    def _tell(self, name: str, file: _File) -> None:
        for item in file.items:
            if isinstance(item, Skipped):
                self._sink.skipped(item.kind, item.key, f"{self._directory / name}: {item.error}")
        for unused in file.unused:
            if (name, unused.kind) not in self._unused_told:
                self._unused_told.add((name, unused.kind))
                log.warning("manifest_object_ignored", file=name, **unused._asdict())

    def _look_for_gone(self, signatures: Mapping[str, Signature]) -> None:
        for name in self._files:
            if name not in signatures:
                self._doubts[name] = _Doubt(None)
            elif name in self._doubts and self._doubts[name].file is None:
                del self._doubts[name]

    def _settle_doubts(self, signatures: Mapping[str, Signature]) -> bool:
        """Apply the changes that are in doubt unless they remove too much; return whether anything changed."""
        rested = {
            name: doubt
            for name, doubt in self._doubts.items()
            if doubt.is_whole and name in self._doubts_told and signatures.get(name) == self._files[name].signature
        }
        self._follow_doubts(rested)
        if not self._doubts:
            return True
        wanted = {**self._files, **{name: doubt.file for name, doubt in self._doubts.items()}}
        files = {name: file for name, file in wanted.items() if file is not None}
        lost = _lost(_unite(self._files), _unite(files), any_counts=not signatures)
        if lost and not any(file.removes for file in files.values()):
            self._tell_doubts(lost)
            return bool(rested)
        self._follow_doubts(dict(self._doubts))
        return True

    def _follow_doubts(self, doubts: Mapping[str, _Doubt]) -> None:
        for name, doubt in doubts.items():
            del self._doubts[name]
            if doubt.file is None:
                del self._files[name]
            else:
                self._files[name] = doubt.file
        self._doubts_told -= doubts.keys()

    def _tell_doubts(self, lost: int) -> None:
        """Log the changes that are not applied, once for each file."""
        if self._doubts.keys() - self._doubts_told:
            names = sorted(self._doubts)
            more = {"more_files": len(names) - _NAMED} if len(names) > _NAMED else {}
            log.error(
                "manifests_kept",
                directory=str(self._directory),
                files=names[:_NAMED],
                **more,
                objects=lost,
                reason="these files would remove too many objects at once: what they held stays in use",
                remedy=_REMEDY,
            )
        self._doubts_told = frozenset(self._doubts)

    def _hand_on(self) -> None:
        """Merge the files, the later name winning, and pass the differences to the sink."""
        united = _unite(self._files)
        twice = {
            (kind, key, loser, winner)
            for kind, objects in united.items()
            for key, (winner, _, losers) in objects.items()
            for loser in losers
        }
        for kind, key, loser, winner in sorted(twice - self._twice):
            log.warning("manifest_object_twice", kind=kind, object=quote(key), used=winner, ignored=loser)
        self._twice = twice
        for kind, store in self._stores.items():
            items = [found.item for found in united[kind].values()]
            changes = store.replace(
                [item for item in items if not isinstance(item, Skipped)],
                {item.key for item in items if isinstance(item, Skipped)},
            )
            if changes:
                self._sink.changed(changes)


class _United(NamedTuple):
    """An object after merging all files: the file that provides it, and the earlier ones that contain it too."""

    file: str
    item: Item
    losers: tuple[str, ...]


def _unite(files: Mapping[str, _File]) -> dict[str, dict[str, _United]]:
    """Return the objects of all files by kind and key. The file with the later name wins."""
    united: dict[str, dict[str, _United]] = {kind: {} for kind in KINDS}
    for name in sorted(files):
        for item in files[name].items:
            kind, key = identity(item)
            earlier = united[kind].get(key)
            losers = () if earlier is None else (*earlier.losers, earlier.file)
            united[kind][key] = _United(name, item, losers)
    return united


def _lost(
    before: Mapping[str, Mapping[str, _United]], after: Mapping[str, Mapping[str, _United]], *, any_counts: bool
) -> int:
    """Return how many objects would disappear if these are too many of any kind, otherwise 0."""
    lost = {kind: len(objects.keys() - after[kind].keys()) for kind, objects in before.items()}
    too_many = any(number > (0 if any_counts else max(FEW, len(before[kind]) // 2)) for kind, number in lost.items())
    return sum(lost.values()) if too_many else 0


def _scan(directory: Path) -> dict[str, Signature]:
    """Return the signature of each manifest file, in order of name. Files that vanish meanwhile are left out."""
    signatures: dict[str, Signature] = {}
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or not entry.name.endswith(SUFFIXES):
                continue
            try:
                stat = entry.stat()
            except OSError:
                # A dangling symlink exists but cannot be read. Anything else has just been deleted.
                if entry.is_symlink():
                    signatures[entry.name] = _UNREAD
                continue
            signatures[entry.name] = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    return signatures
