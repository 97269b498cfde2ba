"""How the agent logs: one event name per fact, with fields, on standard error.

A node whose cluster never rests has no end of changes: lines of one event at info level are thinned out, and the next
one that is written says how many were not. Warnings and errors are all written; so is everything with the verbosity of
debug events. Metrics count all of it in any case. Nothing waits for the reader of the log (``standard_error``).
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import structlog
from structlog.typing import EventDict

from ipvs_proxy.agent.observe.standard_error import StandardError, install
from ipvs_proxy.agent.observe.thinning import Thinning

#: Its descriptor.
STANDARD_ERROR: Final = 2
#: From this verbosity on (kube-proxy's ``--v``), debug events are logged.
DEBUG_VERBOSITY = 4
#: Lines of one event at info level at once, and per second from then on.
BURST: Final = 30
RATE: Final = 0.1

log = structlog.get_logger(__name__)
_verbosity = 0


def never_wait() -> None:
    """Have nothing in this process wait for whoever reads its standard error.

    Where it was closed, what is written goes nowhere; the next file to be opened would take its descriptor otherwise.
    """
    if sys.stderr is None:
        descriptor = os.open(os.devnull, os.O_RDWR)
        while descriptor < STANDARD_ERROR:
            descriptor = os.open(os.devnull, os.O_RDWR)
        sys.stderr = open(descriptor, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  a descriptor
    install(lambda lines: log.warning("log_lines_dropped", lines=lines, reason="standard error was not read"))


def end_of_log() -> None:
    """Write the last lines, as far as somebody reads them."""
    if isinstance(sys.stderr, StandardError):
        sys.stderr.drain()
    else:
        sys.stderr.flush()


def set_verbosity(verbosity: int) -> None:
    """Change what is logged from now on."""
    global _verbosity  # noqa: PLW0603  loggers are shared by the whole process, and so is this
    _verbosity = verbosity


def _drop_debug(_: Any, method: str, event: EventDict) -> EventDict:
    """Leave out what nobody asked for; not in the loggers, which keep the level that they are made with."""
    if method == "debug" and _verbosity < DEBUG_VERBOSITY:
        raise structlog.DropEvent
    return event


class _Brake:
    """Leaves out lines at info level of an event that happens too often, and has the next one say how many."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._thinning = Thinning(clock, burst=BURST, rate=RATE)

    def __call__(self, _: Any, method: str, event: EventDict) -> EventDict:
        if method != "info" or _verbosity >= DEBUG_VERBOSITY:
            return event
        more = self._thinning.admit(event["event"])
        if more is None:
            raise structlog.DropEvent
        event.update(more)
        return event


def configure(
    verbosity: int, logging_format: str, level: int = logging.DEBUG, clock: Callable[[], float] = time.monotonic
) -> None:
    """Set structlog up. ``logging_format`` is ``text``, ``json``, or ``auto``: text on a terminal, JSON otherwise.

    What is below ``level`` is never logged, whatever the verbosity.
    """
    set_verbosity(verbosity)
    text = logging_format == "text" or (logging_format == "auto" and sys.stderr.isatty())
    renderer = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=24)
        if text
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            _drop_debug,
            _Brake(clock),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
