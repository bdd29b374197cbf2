"""When the links count as dealt with."""

import asyncio
from typing import Any

import pytest

from kproxy_ebpf.datapath.attach.link_watcher import LinkWatcher
from kproxy_ebpf.datapath.attach.tc import Method
from kproxy_ebpf.linux import rtnetlink


class FakeAttacher:
    def attached(self) -> dict[int, Method]:
        return {}

    def attach(self, _: int) -> Method:
        return Method.TCX


async def test_links_are_ready_after_the_look_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan that is under way when somebody asks may already be past the links that are meant."""
    loop, looks = asyncio.get_running_loop(), 0
    ready: list[int] = []

    def links() -> dict[int, str]:
        nonlocal looks
        looks += 1
        if looks == 1:
            asyncio.run_coroutine_threadsafe(ask(), loop).result()
        return {5: "veth5"}

    async def ask() -> None:
        subject.reconsider()

    monkeypatch.setattr(rtnetlink, "links", links)
    monkeypatch.setattr(rtnetlink, "uplinks", set)
    attacher: Any = FakeAttacher()
    subject = LinkWatcher(attacher, lambda _: True)
    say, subject.ready.set = subject.ready.set, lambda: (ready.append(looks), say())[1]  # type: ignore[method-assign]
    subject.reconsider()
    async with asyncio.timeout(5):
        await subject._finish()
    assert subject.ready.is_set()
    assert ready == [2]
    assert subject.attached == {5: "veth5"}
