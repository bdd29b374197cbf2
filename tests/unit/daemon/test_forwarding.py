"""The tables of redirect are brought up to date soon after something has changed."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from kproxy_ebpf.daemon.forwarding import ForwardingTables


async def test_waiting_is_no_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attaching an uplink's program waits for the kernel: what changes then is not put off by many times that wait."""
    waited = 0.2
    synced: list[float] = []

    def learn(self: ForwardingTables, links: frozenset[int]) -> dict[int, dict[bytes, int]]:
        synced.append(time.monotonic())
        time.sleep(waited)
        self.wake()
        return {}

    monkeypatch.setattr(ForwardingTables, "_learn", learn)
    links = SimpleNamespace(ready=asyncio.Event(), attached={})
    links.ready.set()
    tables = ForwardingTables(generation=None, uplinks=None, is_on=lambda: False, health=None)  # type: ignore[arg-type]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(6 * waited):
            await tables.run(links)  # type: ignore[arg-type]
    assert len(synced) >= 3
