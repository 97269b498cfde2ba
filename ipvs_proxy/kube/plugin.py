"""Runs the credential plugins of a kubeconfig (``exec``). A plugin that hangs is killed with everything it started.

The library waits for a plugin without a timeout, and cancelling that wait does not reach the process. So this module
starts the process, in a session of its own, and kills its process group if the wait ends first. The protocol is the one
that the library implements (Kubernetes documentation, "client-go credential plugins").
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import suppress
from types import ModuleType
from typing import Any, Final

from ipvs_proxy.kube.texts import quote

#: Maximum bytes kept of each output stream of a plugin.
_PRINTED: Final = 2**20


def own_plugins(library: ModuleType) -> None:
    """Make the configuration loader of ``kubernetes_asyncio`` run plugins with this module."""
    provider, error = library.exec_provider.ExecProvider, library.ConfigException

    class Plugin(provider):  # type: ignore[misc, valid-type]  # the base class is known only at run time
        """A plugin whose process does not outlive the wait for it."""

        async def run(self, previous_response: str | None = None) -> Any:  # noqa: ARG002  no server has sent one since 1.18
            information = {"apiVersion": self.api_version, "kind": "ExecCredential", "spec": {"interactive": False}}
            printed, complaint, status = await _run(
                self.args, self.env | {"KUBERNETES_EXEC_INFO": json.dumps(information)}
            )
            if status:
                raise error(f"exec: process returned {status}. {quote(complaint.decode(errors='replace').strip())}")
            return _credential(printed, self.api_version, error)

    library.kube_config.ExecProvider = Plugin


async def _run(command: list[str], environment: dict[str, str]) -> tuple[bytes, bytes, int]:
    """Run a command; return its standard output, its standard error and its exit status.

    If the wait is cancelled or fails, the process group is killed.
    """
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, start_new_session=True
    )
    assert process.stdout is not None and process.stderr is not None  # noqa: S101, PT018  they are pipes
    try:
        printed, complaint = await asyncio.gather(_read(process.stdout), _read(process.stderr))
        return printed, complaint, await process.wait()
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise


async def _read(stream: asyncio.StreamReader) -> bytes:
    """Read a pipe to its end; return the beginning, at most ``_PRINTED`` bytes."""
    kept = bytearray()
    while piece := await stream.read(2**16):
        kept += piece[: _PRINTED - len(kept)]
    return bytes(kept)


def _credential(printed: bytes, version: str, error: type[Exception]) -> Any:
    try:
        credential = json.loads(printed)
        found, status = credential["apiVersion"], credential["status"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise error("exec: the plugin did not print an ExecCredential with a status") from None
    if found != version:
        raise error(f"exec: the plugin printed an ExecCredential of {quote(str(found))}, not of {version}")
    return status
