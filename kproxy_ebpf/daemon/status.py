"""Keeps the status file fresh: what the commands need to know and the maps can't tell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from kproxy_ebpf.observe.state import write_json

log = structlog.get_logger(__name__)

WRITE_SECONDS = 1.0


async def keep_status(path: Path, content: Callable[[], Mapping[str, Any]]) -> None:
    """Write `content()` to `path` now, and once a second while it changes. A full disk is worth one warning."""
    written: Mapping[str, Any] | None = None
    warned = False
    while True:
        latest = content()
        if latest != written:
            try:
                await asyncio.to_thread(write_json, path, latest)
                written, warned = latest, False
            except OSError as error:
                if not warned:
                    log.warning("the status file can't be written", path=str(path), error=str(error))
                warned = True
        await asyncio.sleep(WRITE_SECONDS)
