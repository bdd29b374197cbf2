"""One TaskGroup for all parts: when one part ends, the daemon ends, and the log says which part it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import structlog

from kproxy_ebpf.errors import KproxyError

log = structlog.get_logger(__name__)

Start = Callable[[str, Coroutine[Any, Any, None]], object]
"""Starts a part under a name."""


class DiedError(KproxyError):
    """A part of the daemon ended, which it never should."""


@asynccontextmanager
async def supervised() -> AsyncIterator[Start]:
    """Parts started in the block run until one of them fails or ends, or until this task is cancelled.

    Leaving the block waits for that. Raises the KproxyError of the part, or of the block itself.
    """
    try:
        async with asyncio.TaskGroup() as group:
            yield lambda name, part: group.create_task(_watched(name, part), name=name)
            await asyncio.Event().wait()
    except BaseExceptionGroup as deaths:
        raise deaths.exceptions[0] from None


async def _watched(name: str, part: Coroutine[Any, Any, None]) -> None:
    try:
        await part
    except KproxyError as error:
        log.error("a part of the daemon died", part=name, error=str(error))  # noqa: TRY400 - the sentence says it all
        raise
    except Exception as error:
        log.exception("a part of the daemon died", part=name)
        raise DiedError(f"{name} died: {error!r}; the datapath stays in force") from error
    log.error("a part of the daemon ended", part=name)
    raise DiedError(f"{name} ended; the datapath stays in force")
