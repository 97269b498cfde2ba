"""How the agent logs: one event name per fact, with fields, on standard error."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from structlog.typing import EventDict

#: From this verbosity on (kube-proxy's ``--v``), debug events are logged.
DEBUG_VERBOSITY = 4


_verbosity = 0


def set_verbosity(verbosity: int) -> None:
    """Change what is logged from now on."""
    global _verbosity  # noqa: PLW0603  loggers are shared by the whole process, and so is this
    _verbosity = verbosity


def _drop_debug(_: Any, method: str, event: EventDict) -> EventDict:
    """Leave out what nobody asked for; not in the loggers, which keep the level that they are made with."""
    if method == "debug" and _verbosity < DEBUG_VERBOSITY:
        raise structlog.DropEvent
    return event


def configure(verbosity: int, logging_format: str, level: int = logging.DEBUG) -> None:
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
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
