"""``ipvs-proxy debug-bundle``: one archive with all that is needed to find a fault from afar.

The parts are independent: one that cannot be read is named in ``missing.txt``, and the others are there. Of iptables'
rules, only lines that name our chains are taken, of nftables' our own table. No setting of the agent is a secret; what
looks like one in any part (a token, a password, a user in a URL) is masked all the same.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ipvs_proxy import __version__
from ipvs_proxy.commands import ask
from ipvs_proxy.commands.doctor import examine
from ipvs_proxy.commands.text import document
from ipvs_proxy.kernel.filter.backend import NFTABLES
from ipvs_proxy.kernel.filter.iptables.programs import installed_variants
from ipvs_proxy.kernel.filter.nftables.names import TABLE_NAME
from ipvs_proxy.kernel.filter.nftables.program import read_tables
from ipvs_proxy.kernel.filter.nftables.tables import has_own_table
from ipvs_proxy.netlink.errors import MissingPiece, Unusable
from ipvs_proxy.plan.tables import Family
from ipvs_proxy.state.documents import NodeState

_OWN_TABLE: Final = re.compile(rf"^table {TABLE_NAME} {{\n.*?^}}\n", re.MULTILINE | re.DOTALL)
#: Pages of the agent, by file name in the archive.
_PAGES: Final = {
    "differences.json": "/state/differences",
    "configz.json": "/configz",
    "flagz.txt": "/flagz",
    "statusz.txt": "/statusz",
    "metrics.txt": "/metrics",
}
_FILES: Final = ("net/ip_vs", "net/ip_vs_stats", "modules", "version", "net/dev", "net/route", "net/if_inet6")
_SYSCTLS: Final = ("net/ipv4/vs", "net/netfilter", "net/ipv4/ip_forward", "net/ipv4/conf/all", "net/ipv6/conf/all")
#: At most this many Services that are not in sync are explained.
_EXPLAINED: Final = 50
_SECRETS: Final = (
    (re.compile(r"(?i)(bearer\s+)[\w.~+/=-]{8,}"), r"\1(masked)"),
    (
        re.compile(r"(?i)(\"?\b(?:token|password|secret|client-key-data|authorization)\"?\s*[:=]\s*\"?)[^\s\",]+"),
        r"\1(masked)",
    ),
    (re.compile(r"(://)[^/@\s]+@"), r"\1(masked)@"),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]+"), "(masked)"),
)


def masked(text: str) -> str:
    """Return the text with everything masked that looks like a secret."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def write_bundle(agent: str, path: Path | None, proc: Path = Path("/proc")) -> Path:
    """Write the archive (gzip, readable by its owner alone); return its path.

    Raises:
        OSError: if it cannot be written, or if there is such a file already.

    """
    name = time.strftime("ipvs-proxy-%Y%m%dT%H%M%SZ", time.gmtime())
    path = path or Path(f"{name}.tar.gz")
    missing: list[str] = []
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:

        def add(member: str, text: str) -> None:
            data = masked(text).encode()
            entry = tarfile.TarInfo(f"{name}/{member}")
            entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(data))

        add("version.txt", f"ipvs-proxy {__version__}, Python {sys.version}\n")
        for member, collect in _parts(agent, proc):
            try:
                add(member, collect())
            except (ask.NoAnswer, Unusable, OSError, ValueError) as error:
                missing.append(f"{member}: {error}\n")
        add("missing.txt", "".join(missing))
    return path


def _parts(agent: str, proc: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    for member, page in _PAGES.items():
        yield member, lambda page=page: ask.fetch(agent, page).decode()  # type: ignore[misc]
    yield "state.json", lambda: document(_all_services(agent), "json")
    yield "services-that-differ.json", lambda: _explained(agent)
    yield "doctor.json", lambda: document(examine(agent), "json")
    for name in _FILES:
        yield f"proc/{name}.txt", lambda name=name: _read(proc / name)  # type: ignore[misc]
    for name in _SYSCTLS:
        yield f"sysctl/{name.replace('/', '.')}.txt", lambda name=name: _sysctls(proc / "sys" / name)  # type: ignore[misc]
    yield "rules.txt", _rules


def _all_services(agent: str) -> NodeState:
    return ask.ask_for_services(agent)


def _explained(agent: str) -> str:
    names = [f"{one.namespace}/{one.name}" for one in _all_services(agent).services if not one.in_sync]
    found = [ask.fetch(agent, f"/state/services/{name}").decode() for name in names[:_EXPLAINED]]
    return f"[{','.join(found)}]\n"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _sysctls(path: Path) -> str:
    files = [path] if path.is_file() else sorted(found for found in path.iterdir() if found.is_file())
    lines = []
    for file in files:
        try:
            lines.append(f"{file.name} = {_read(file).strip()}\n")
        except OSError as error:  # some can only be written
            lines.append(f"{file.name}: {error.strerror}\n")
    return "".join(lines)


def _rules() -> str:
    parts = []
    if has_own_table():
        parts += [f"# {NFTABLES}\n", *_OWN_TABLE.findall(read_tables())]
    try:
        variants = installed_variants()
    except MissingPiece as error:
        variants = []
        parts.append(f"# no rules of iptables: {error}\n")
    for variant in variants:
        for family in Family:
            parts.append(f"# {variant.backend} {family.label}\n")
            lines = variant.save(family).splitlines(keepends=True)
            parts += [line for line in lines if line[0] in "*:" or "KUBE-" in line or "IPVS-PROXY" in line]
    return "".join(parts)
