"""How the agent logs: one event name per fact, with fields, on standard error."""

from __future__ import annotations

import logging
import sys

import structlog

#: From this verbosity on (kube-proxy's ``--v``), debug events are logged.
DEBUG_VERBOSITY = 4


def configure(verbosity: int, logging_format: str) -> None:
    """Set structlog up. ``logging_format`` is ``text``, ``json``, or ``auto``: text on a terminal, JSON otherwise."""
    text = logging_format == "text" or (logging_format == "auto" and sys.stderr.isatty())
    renderer = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=24)
        if text
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.DEBUG if verbosity >= DEBUG_VERBOSITY else logging.INFO
        ),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
