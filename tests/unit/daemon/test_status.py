"""The status file follows what happens, and survives a disk that doesn't take it."""

import asyncio
import threading
import time
from pathlib import Path

import pytest
import structlog.testing

from kproxy_ebpf.daemon import status
from kproxy_ebpf.daemon.status import StatusFile
from kproxy_ebpf.observe.state import read_json, write_json


async def poll(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.01)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_it_is_written_at_the_start_and_after_each_touch(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    content = {"pid": 1}
    file = StatusFile(path, lambda: dict(content))
    task = asyncio.create_task(file.run())
    try:
        await poll(lambda: read_json(path) == {"pid": 1})
        content["pid"] = 2
        file.touch()
        await poll(lambda: read_json(path) == {"pid": 2})
    finally:
        await stop(task)


async def test_a_place_that_takes_no_file_costs_one_warning(tmp_path: Path) -> None:
    blocker = tmp_path / "blocker"
    blocker.touch()
    written = 0

    def content() -> dict[str, int]:
        nonlocal written
        written += 1
        file.touch()
        return {"n": written}

    file = StatusFile(blocker / "status.json", content)
    with structlog.testing.capture_logs() as logs:
        task = asyncio.create_task(file.run())
        try:
            await poll(lambda: written >= 3)
        finally:
            await stop(task)
    assert [entry["log_level"] for entry in logs] == ["warning"]


async def test_what_has_not_changed_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    content, asked = {"pid": 1}, 0

    def ask() -> dict[str, int]:
        nonlocal asked
        asked += 1
        return dict(content)

    file = StatusFile(path, ask)
    task = asyncio.create_task(file.run())
    try:
        await poll(path.exists)
        first = path.stat().st_ino  # each write makes a new file
        file.touch()
        await poll(lambda: asked == 2)
        content["pid"] = 2
        file.touch()
        await poll(lambda: asked == 3 and read_json(path) == {"pid": 2})
        assert first != path.stat().st_ino
        content["pid"] = 3
        file.touch()
        await poll(lambda: read_json(path) == {"pid": 3})
        third = path.stat().st_ino
        file.touch()
        await poll(lambda: asked == 5)
        assert path.stat().st_ino == third
    finally:
        await stop(task)


async def test_the_last_change_is_written_at_the_end(tmp_path: Path) -> None:
    """The change came while the file rested from the write before."""
    path = tmp_path / "status.json"
    content = {"pid": 1}
    file = StatusFile(path, lambda: dict(content))
    task = asyncio.create_task(file.run())
    await poll(path.exists)
    content["pid"] = 2
    file.touch()
    await stop(task)
    assert read_json(path) == {"pid": 1}
    await file.finish()
    assert read_json(path) == {"pid": 2}
    written = path.stat().st_ino
    await file.finish()
    assert path.stat().st_ino == written, "nothing has changed"


async def test_a_write_under_way_does_not_have_the_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status.json"
    content, slow, begun = {"pid": 1}, threading.Event(), threading.Event()
    written: list[int] = []

    def write(path: Path, content: dict[str, int]) -> None:
        if content["pid"] == 1:
            begun.set()
            slow.wait(5)
        write_json(path, content)
        written.append(content["pid"])

    monkeypatch.setattr(status, "write_json", write)
    file = StatusFile(path, lambda: dict(content))
    task = asyncio.create_task(file.run())
    await poll(begun.is_set)
    content["pid"] = 2
    await stop(task)
    finishing = asyncio.create_task(file.finish())
    await asyncio.sleep(0.05)
    slow.set()
    await finishing
    assert written == [1, 2]
    assert read_json(path) == {"pid": 2}


async def test_an_end_before_there_was_anything_to_tell_leaves_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    path.write_text('{"pid": 1}')
    await StatusFile(path, dict).finish()
    assert read_json(path) == {"pid": 1}


async def test_waiting_is_no_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that waits for the disk does not put off the next one by many times that wait."""
    written: list[int] = []

    def write(path: Path, content: dict[str, int]) -> None:
        written.append(content["n"])
        time.sleep(0.2)
        file.touch()

    monkeypatch.setattr(status, "write_json", write)
    file = StatusFile(tmp_path / "status.json", lambda: {"n": len(written)})
    task = asyncio.create_task(file.run())
    try:
        async with asyncio.timeout(3):
            while len(written) < 3:  # noqa: ASYNC110 - a file has no event
                await asyncio.sleep(0.01)
    finally:
        await stop(task)
