"""Structured logs: JSON lines for machines, coloured lines on a terminal; the level changes at run time.

Field names are the same everywhere: ``service`` (namespace/name), ``object`` (kind namespace/name), ``link``,
``ifindex``, ``table``, ``verdict``, ``reason``, ``error``, ``seconds``.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


_ours = logging.getLogger("kproxy_ebpf")


def set_level(name: str) -> None:
    """Let through records of level `name` (a key of LEVELS) and above, from now on.

    Libraries log details for their makers: of theirs only warnings and errors pass.
    """
    _ours.setLevel(LEVELS[name])
    logging.getLogger().setLevel(max(LEVELS[name], logging.WARNING))


def configure(level: str = "info", stream: TextIO | None = None) -> None:
    """Send structlog's and the standard library's records to `stream` (standard error) as one kind of line."""
    out = stream or sys.stderr
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if out.isatty()
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[_filter_by_level, *shared, *renderer],
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    logging.getLogger().handlers[:] = [handler]
    set_level(level)


def _filter_by_level(_: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if _ours.isEnabledFor(LEVELS.get(method, logging.ERROR)):
        return event
    raise structlog.DropEvent
