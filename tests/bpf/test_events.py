"""Events, from the programs through the ring buffer into the event loop (uvloop, as in the daemon, and asyncio's)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from kproxy_ebpf.contract.layouts import EventsLevel, Settings, Verdict
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.events import EventStream, VerdictEvent

MALFORMED = bytes(12) + b"\x08\0" + bytes((0x45, *bytes(7), 64, 6, *bytes(10)))


async def some(generation: Generation, level: EventsLevel, count: int) -> list[VerdictEvent]:
    with generation.program("from_pod", 4) as program:
        program.test_run(MALFORMED)  # before the stream is open: not told
        async with EventStream(generation, level) as events:
            program.test_run(MALFORMED, repeat=count)
            seen: list[VerdictEvent] = []
            async with asyncio.timeout(10):
                async for event in events:
                    seen.append(event)
                    if len(seen) == count:
                        break
    with generation.map("settings") as settings:
        level = Settings.from_buffer_copy(settings.lookup(bytes(4)) or b"").events_level
        assert level == EventsLevel.OFF, "nobody listens any more"
    return seen


@pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_events_arrive(generation: Generation, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        seen = runner.run(some(generation, EventsLevel.ALL, 20))
    assert {(event.verdict, event.family) for event in seen} == {(Verdict.MALFORMED, 4)}
    assert [event.time_ns for event in seen] == sorted(event.time_ns for event in seen)
