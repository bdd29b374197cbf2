"""A reflector of Services that is watched at its work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from fake_api import SERVICES, FakeApi

from kproxy_ebpf.kube.client import Client
from kproxy_ebpf.kube.kinds.common import Scope
from kproxy_ebpf.kube.kinds.service import SERVICE
from kproxy_ebpf.kube.reflector import Reflector, WatchTiming
from kproxy_ebpf.kube.stream import Change

TOKEN = "of-the-tests"  # noqa: S105
FAST = WatchTiming(idle=5.0, initial_idle=5.0, answer=5.0, page=5.0, healthy=0.0, backoff_base=0.02, backoff_cap=0.1)


class Watched:
    """A reflector of Services at work, and what it told."""

    def __init__(self, client: Client, **options: Any) -> None:
        self.state: dict[str, object] = {}
        self.removed: list[str] = []
        self.syncs = 0
        self.reflector = Reflector(client, SERVICE.resource(Scope()), self._emit, **{"timing": FAST, **options})
        self.task = asyncio.create_task(self.reflector.run())

    def _emit(self, changes: list[Change], complete: bool) -> None:
        for change in changes:
            if change.object is None:
                del self.state[change.name]
                self.removed.append(change.name)
            else:
                self.state[change.name] = change.object
        self.syncs += complete

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert not self.task.done(), self.task
            assert time.monotonic() < deadline, (self.state, self.syncs, self.reflector.last_error)
            await asyncio.sleep(0.005)


async def synced(watched: Watched, api: FakeApi) -> Watched:
    await watched.until(lambda: watched.syncs == 1 and api.watching(SERVICES) == 1)
    return watched
