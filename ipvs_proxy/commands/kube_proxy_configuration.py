"""Where ``migrate check`` reads kube-proxy's configuration: from a file, a ConfigMap's manifest, or standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from select import select
from typing import Final

from ipvs_proxy.kube.documents import ParseError, parse_yaml, read_file
from ipvs_proxy.settings import row
from ipvs_proxy.settings.file import MAX_SIZE, read_text
from ipvs_proxy.settings.merge import effective
from ipvs_proxy.settings.model import Note, Settings, SettingsError

#: Bytes at most: a ConfigMap has at most one MiB.
LONGEST: Final = 4 << 20
#: Seconds to wait for a standard input that neither ends nor goes on.
SILENCE: Final = 30.0
_DOTS: Final = b"\n...\n"


def read(config: Path) -> tuple[str, str]:
    """Return the text of the configuration, and what to call it. ``-`` is standard input.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is too long or no text in UTF-8, or if standard input neither ends nor goes on.

    """
    try:
        if str(config) == "-":
            return read_until_end(sys.stdin.fileno(), None if sys.stdin.isatty() else SILENCE), "standard input"
        return read_file(config, MAX_SIZE).decode("utf-8-sig"), str(config)
    except OSError as error:
        raise OSError(f"--config {config}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--config {config}: it is no text in UTF-8") from error


def read_until_end(descriptor: int, silence: float | None) -> str:
    """Return a document, read up to the end of the input or to a line of three dots (YAML 1.2, 9.1.2).

    ``silence`` is how many seconds may pass without any input, ``None`` for any number: the standard input of a
    container may never end (``stdinOnce`` of the Kubernetes API).

    Raises:
        ValueError: if the input is silent for longer, has more than ``LONGEST`` bytes, or is no text in UTF-8.
        OSError: if it cannot be read.

    """
    received = bytearray()
    while select([descriptor], [], [], silence)[0]:
        piece = os.read(descriptor, LONGEST)
        looked_at = max(0, len(received) - len(_DOTS))
        received += piece
        end = received.find(_DOTS, looked_at)
        if end >= 0 or not piece:
            return bytes(received[: end + 1] if end >= 0 else received).decode("utf-8-sig")
        if len(received) > LONGEST:
            raise ValueError(f"--config -: it has more than {LONGEST:,} bytes")
    raise ValueError(
        f"--config -: nothing has come for {silence:g} s, and it has not ended: end it with a line of three dots (...)"
    )


def load(text: str, name: str, flags: Mapping[str, object]) -> tuple[Settings, list[Note]]:
    """Return the settings of a configuration, and the events and fields that the agent would log about it.

    ``flags`` are given beside it.

    Raises:
        SettingsError: if it cannot be used, with one line for each fault.

    """
    fields, notes = read_text(_unwrapped(text), name)
    settings = effective({"hostname_override": "node", **flags}, fields)
    return settings, [*settings.notes, *notes]


def _unwrapped(text: str) -> str:
    """Return the configuration inside the manifest of a ConfigMap; any other text unchanged."""
    try:
        documents = parse_yaml(text).documents
    except ParseError:
        return text  # whoever reads it reports the fault better
    manifest = documents[0] if len(documents) == 1 else None
    if not isinstance(manifest, dict) or manifest.get("kind") != "ConfigMap":
        return text
    data = manifest.get("data")
    values = data.values() if isinstance(data, dict) else ()
    for value in values:
        if isinstance(value, str) and row.KUBE_PROXY.kind in value:
            return value
    raise SettingsError(f"the ConfigMap has no {row.KUBE_PROXY.kind} in its data")
