"""Whichever part ends, the daemon ends, and says which."""

import asyncio

import pytest
import structlog.testing

from kproxy_ebpf.daemon.supervise import DiedError, supervise
from kproxy_ebpf.errors import ClusterError


async def forever(cancelled: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        cancelled.append("forever")


async def fail(error: Exception) -> None:
    raise error


async def test_a_part_that_dies_ends_all_and_is_named() -> None:
    cancelled: list[str] = []
    with structlog.testing.capture_logs() as logs, pytest.raises(DiedError, match="links died: ValueError"):
        await supervise({"source": forever(cancelled), "links": fail(ValueError("odd"))})
    assert cancelled == ["forever"]
    assert [entry["part"] for entry in logs] == ["links"]


async def test_an_own_error_keeps_its_class_and_exit_code() -> None:
    with pytest.raises(ClusterError, match="no folder"):
        await supervise({"source": fail(ClusterError("no folder"))})


async def test_a_part_that_ends_counts_as_dead() -> None:
    with pytest.raises(DiedError, match="source ended"):
        await supervise({"source": asyncio.sleep(0)})


async def test_cancelling_ends_all_parts_quietly() -> None:
    cancelled: list[str] = []
    with structlog.testing.capture_logs() as logs:
        running = asyncio.create_task(supervise({"a": forever(cancelled), "b": forever(cancelled)}))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert cancelled == ["forever", "forever"]
    assert logs == []
