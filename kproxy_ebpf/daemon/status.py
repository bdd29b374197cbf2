"""Keeps the status file fresh: it has what the commands need to know and the maps do not hold."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from kproxy_ebpf.observe.state import write_json

log = structlog.get_logger(__name__)

REST_SECONDS = 0.05
REST_FACTOR = 20.0


class StatusFile:
    """Writes `content()` to `path` soon after each `touch` that changed it. `run` it as a task, then call `finish`.

    The more processor time a write takes (with ten thousand Services it is a megabyte), the longer the rest until the
    next one. Waiting for a turn on a busy machine is no cost.
    """

    def __init__(self, path: Path, content: Callable[[], Mapping[str, Any]]) -> None:
        self._path, self._content = path, content
        self._touched = asyncio.Event()
        self._written: Mapping[str, Any] | None = None
        self._writing: asyncio.Future[float] | None = None
        self._warned = False

    def touch(self) -> None:
        """Something that the file tells has changed."""
        self._touched.set()

    async def run(self) -> None:
        self.touch()
        while True:
            await self._touched.wait()
            self._touched.clear()
            began = time.thread_time()
            content = self._content()
            cost_seconds = time.thread_time() - began
            if content != self._written:
                cost_seconds += await self._write(content)
            await asyncio.sleep(max(REST_SECONDS, REST_FACTOR * cost_seconds))

    async def finish(self) -> None:
        """Write what a rest or the daemon's end kept from being written: the commands go on reading it."""
        if self._writing is not None:
            await asyncio.wait([self._writing])  # cancelling `run` does not end the thread: its content is older
        content = self._content()
        if content and content != self._written:
            await self._write(content)

    async def _write(self, content: Mapping[str, Any]) -> float:
        """Returns the processor seconds that it took, 0 where it failed."""
        self._writing = asyncio.ensure_future(asyncio.to_thread(_timed_write, self._path, content))
        try:
            cost_seconds = await asyncio.shield(self._writing)
        except OSError as error:
            if not self._warned:  # a full disk is worth one warning
                log.warning("the status file can't be written", path=str(self._path), error=str(error))
            self._written, self._warned = None, True
            return 0.0
        self._written, self._warned = content, False
        return cost_seconds


def _timed_write(path: Path, content: Mapping[str, Any]) -> float:
    began = time.thread_time()
    write_json(path, content)
    return time.thread_time() - began
