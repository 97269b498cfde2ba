"""Puts the agent together and runs it until it is told to stop.

A start that is refused ends with one line. SIGTERM and SIGINT end the agent at once; the kernel stays as it is, so
traffic goes on, and the next start takes over.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from ipvs_proxy import __version__
from ipvs_proxy.agent.observe.logs import configure, end_of_log, never_wait
from ipvs_proxy.agent.observe.loop_delay import LoopDelay
from ipvs_proxy.agent.start import Stopped, prepare, start
from ipvs_proxy.agent.web.listener import raise_descriptor_limit
from ipvs_proxy.kube.client import ConnectError
from ipvs_proxy.kube.manifests import ManifestsError
from ipvs_proxy.netlink.errors import Unusable
from ipvs_proxy.node import instances
from ipvs_proxy.settings.model import Settings

log = structlog.get_logger(__name__)

#: So many new objects are looked through for garbage at once, until everything is programmed for the first time.
START_GC_THRESHOLD = 1_000_000
#: Seconds that a thread that answers a scrape may keep Python from the event loop, which is five times less than usual:
#: a change waits for it some times on its way, and waits half as long at worst.
SWITCH_INTERVAL = 0.001
#: Seconds after which ``--init-only`` tries no more: its caller does.
INIT_PATIENCE = 30.0


def initialize(settings: Settings) -> int:
    """Do only what needs more rights than the agent has later: load modules, set sysctls. Gives the exit status."""
    never_wait()
    configure(settings.verbosity, settings.logging_format)

    try:
        asyncio.run(asyncio.wait_for(prepare(settings), INIT_PATIENCE))
    except TimeoutError:
        return _fail(f"the kernel has been short of memory, buffers or descriptors for {INIT_PATIENCE:.0f} s")
    except Unusable as error:
        return _fail(str(error))
    log.info("initialized")
    return 0


def run(settings: Settings, *, reread: Callable[[], Settings] | None = None, config: Path | None = None) -> int:
    """Run the agent until SIGTERM or SIGINT; return the exit status: 0, or 1 with one line on standard error.

    ``config`` is the file that is followed, and ``reread`` gives the settings anew.
    """
    # A start makes a million objects that stay: looking through them for garbage again and again took a tenth of it.
    gc.set_threshold(START_GC_THRESHOLD, *gc.get_threshold()[1:])
    sys.setswitchinterval(SWITCH_INTERVAL)
    never_wait()
    configure(settings.verbosity, settings.logging_format)
    raise_descriptor_limit()
    try:
        loop_delay = LoopDelay()
        loop = asyncio.SelectorEventLoop(loop_delay)
    except OSError as error:
        return _fail(f"the process cannot wait for events ({error.strerror}): raise its limit of open files")
    try:
        loop.run_until_complete(_run(settings, reread, config, loop_delay))
    except (Unusable, ConnectError, ManifestsError) as error:
        return _fail(str(error))
    end_of_log()
    # A worker thread may be in the middle of a long read: nobody needs its result, and writes are whole messages.
    os._exit(0)


def _fail(problem: str) -> int:
    sys.stderr.write(f"ipvs-proxy: error: {problem}\n")
    return 1


async def _run(
    settings: Settings, reread: Callable[[], Settings] | None, config: Path | None, loop_delay: LoopDelay
) -> None:
    begun = time.monotonic()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    log.info("starting", version=__version__, node=settings.node_name, scheduler=settings.scheduler)
    for event, fields in settings.notes:
        log.warning(event, **fields)
    _protect_from_memory_pressure(settings.oom_score_adj)
    # Held as long as this process lives: no cleanup meanwhile.
    registered = instances.register()
    if instances.count_running() > (registered is not None):
        log.warning("another_agent_is_running", reason="two agents on one node undo each other's work")
    try:
        agent = await start(settings, stop)
    except Stopped:
        log.info("stopped", seconds=round(time.monotonic() - begun, 1))
        return
    loop_delay.observe = agent.loop_delayed
    await _run_until(stop, agent.loops(config, reread))
    agent.programmer.close()
    log.info("stopped", kernel_writes=agent.programmer.kernel_writes(), seconds=round(time.monotonic() - begun, 1))


def _protect_from_memory_pressure(value: int) -> None:
    """Set how the kernel chooses whom to end when memory runs out; lowering it needs CAP_SYS_RESOURCE."""
    try:
        Path("/proc/self/oom_score_adj").write_text(str(value), encoding="ascii")
    except OSError as error:
        log.info("oom_score_adj_not_set", wanted=value, error=error.strerror)


async def _run_until(stop: asyncio.Event, loops: list[Coroutine[Any, Any, None]]) -> None:
    """Run all loops until told to stop; a loop that ends before that is a fault, which ends the agent."""
    tasks = [asyncio.create_task(loop) for loop in loops]
    waiting = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([*tasks, waiting], return_when=asyncio.FIRST_COMPLETED)
    for task in [*tasks, waiting]:
        task.cancel()
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), timeout=0.5)
    for task in done - {waiting}:
        if not task.cancelled():
            task.result()
