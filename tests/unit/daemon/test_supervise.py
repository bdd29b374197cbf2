"""Whichever part ends, the daemon ends, and says which."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
import structlog.testing

from kproxy_ebpf.daemon.supervise import DiedError, supervised
from kproxy_ebpf.errors import BusyError, ClusterError


async def forever(cancelled: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        cancelled.append("forever")


async def fail(error: Exception) -> None:
    raise error


async def daemon(block: Callable[[], Awaitable[object]] | None = None, **parts: Coroutine[Any, Any, None]) -> None:
    """Starts `parts`, then does what `block` says."""
    async with supervised() as start:
        for name, part in parts.items():
            start(name, part)
        await asyncio.sleep(0)
        if block is not None:
            await block()


async def test_a_part_that_dies_ends_all_and_is_named() -> None:
    cancelled: list[str] = []
    with structlog.testing.capture_logs() as logs, pytest.raises(DiedError, match="links died: ValueError"):
        await daemon(source=forever(cancelled), links=fail(ValueError("odd")))
    assert cancelled == ["forever"]
    assert [entry["part"] for entry in logs] == ["links"]


async def test_a_part_that_dies_ends_the_block_too() -> None:
    with pytest.raises(DiedError):
        await daemon(asyncio.Event().wait, links=fail(ValueError("odd")))


async def test_an_own_error_keeps_its_class_and_exit_code() -> None:
    with pytest.raises(ClusterError, match="no folder"):
        await daemon(source=fail(ClusterError("no folder")))


async def test_an_error_of_the_block_ends_all_parts() -> None:
    cancelled: list[str] = []
    with pytest.raises(BusyError, match="taken"):
        await daemon(lambda: fail(BusyError("taken")), source=forever(cancelled))
    assert cancelled == ["forever"]


async def test_a_part_that_ends_counts_as_dead() -> None:
    with pytest.raises(DiedError, match="source ended"):
        await daemon(source=asyncio.sleep(0))


async def test_cancelling_ends_all_parts_quietly() -> None:
    cancelled: list[str] = []
    started = asyncio.Event()

    async def block() -> None:
        started.set()

    with structlog.testing.capture_logs() as logs:
        running = asyncio.create_task(daemon(block, source=forever(cancelled)))
        await started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert cancelled == ["forever"]
    assert logs == []
