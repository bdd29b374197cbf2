"""What counters and events tell of a packet, and how events come through the ring buffer into an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop
from harness import FROM_POD, PROTOCOLS, TO_POD, Datapath
from packets import BACKEND, CLIENT, OUTSIDE, ROUTER, TOO_BIG, VIP, Packet, icmp_error, tcp, udp

from kproxy_ebpf.contract.layouts import Direction, EventsLevel, Settings, Verdict
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.events import EventStream, VerdictEvent

ROUND: tuple[tuple[Direction, Packet], ...] = (
    (FROM_POD, tcp(CLIENT, VIP, "S")),
    (TO_POD, tcp(BACKEND, CLIENT, "SA")),
    (FROM_POD, tcp(CLIENT, VIP, "A")),
    (FROM_POD, tcp(CLIENT, VIP.on(81), "S")),
    (FROM_POD, tcp(CLIENT, OUTSIDE, "S")),
    (FROM_POD, tcp(CLIENT, OUTSIDE, "A")),
    (TO_POD, icmp_error(TOO_BIG, ROUTER, CLIENT.host, tcp(CLIENT, BACKEND, "A"))),
)
VERDICTS = [
    Verdict.BALANCED,
    Verdict.REVERSED,
    Verdict.TRANSLATED,
    Verdict.REJECTED_UNDEFINED_PORT,
    Verdict.UNTOUCHED,
    Verdict.MIDSTREAM,
    Verdict.ICMP_ERROR_TRANSLATED,
]
NOTABLE = [Verdict.BALANCED, Verdict.REJECTED_UNDEFINED_PORT, Verdict.ICMP_ERROR_TRANSLATED]


def test_packets_and_bytes_are_counted(datapath: Datapath) -> None:
    for hook, packet in ROUND:
        frame = packet.frame(datapath.family)
        bytes_before = datapath.count_bytes()
        verdict, _ = datapath.see(hook, frame)
        bytes_after = datapath.count_bytes()
        assert {
            key: bytes_after[key] - bytes_before[key] for key in Verdict if bytes_after[key] != bytes_before[key]
        } == {verdict: len(frame)}


async def told(generation: Generation, datapath: Datapath, level: EventsLevel) -> list[VerdictEvent]:
    """The events of a round, up to a last packet that is always told."""
    async with asyncio.timeout(10), EventStream(generation, level) as events:
        for hook, packet in ROUND:
            datapath.run(hook, packet.frame(datapath.family))
        datapath.run(FROM_POD, udp(OUTSIDE, VIP.on(9)).frame(datapath.family))
        seen = []
        async for event in events:
            if event.protocol == PROTOCOLS["udp"]:
                break
            seen.append(event)
    return seen


@pytest.mark.parametrize(
    ("level", "verdicts"), [(EventsLevel.ALL, VERDICTS), (EventsLevel.NOTABLE, NOTABLE)], ids=["all", "notable"]
)
async def test_events(generation: Generation, datapath: Datapath, level: EventsLevel, verdicts: list[Verdict]) -> None:
    events = await told(generation, datapath, level)
    assert [event.verdict for event in events] == verdicts


async def test_what_an_event_says(generation: Generation, datapath: Datapath) -> None:
    family = datapath.family
    balanced, refused, error = await told(generation, datapath, EventsLevel.NOTABLE)
    client, vip, backend = (end.host.packed(family) for end in (CLIENT, VIP, BACKEND))
    assert (balanced.family, balanced.direction, balanced.ifindex) == (family, FROM_POD, 1)  # loopback's, in a test run
    assert balanced.length == len(ROUND[0][1].frame(family))
    assert (balanced.source, balanced.source_port) == (client, CLIENT.port)
    assert (balanced.destination, balanced.destination_port) == (vip, VIP.port)
    assert (balanced.to_source, balanced.to_source_port) == (client, CLIENT.port)
    assert (balanced.to_destination, balanced.to_destination_port) == (backend, BACKEND.port)
    assert (refused.to_destination, refused.to_destination_port) == (vip, 81)
    assert (error.source, error.to_source) == (ROUTER.packed(family), vip)
    assert error.direction == TO_POD


async def test_off_means_silence(generation: Generation, datapath: Datapath) -> None:
    async with asyncio.timeout(10), EventStream(generation) as events:
        datapath.set_live(events_level=EventsLevel.OFF)
        datapath.run(FROM_POD, tcp(CLIENT, VIP, "S").frame(datapath.family))
        datapath.set_live(events_level=EventsLevel.NOTABLE)
        datapath.run(FROM_POD, udp(CLIENT, VIP).frame(datapath.family))
        assert (await anext(aiter(events))).protocol == PROTOCOLS["udp"]


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
