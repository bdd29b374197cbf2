"""The programs' events, from the ring buffer to the event loop."""

from __future__ import annotations

import asyncio
import ctypes
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from kproxy_ebpf.contract.layouts import Direction, Event, EventsLevel, Verdict
from kproxy_ebpf.contract.scalars import address_bytes
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.settings import LiveSettings
from kproxy_ebpf.linux.libbpf import SAMPLE_CALLBACK, call, library

_BACKLOG = 65536


@dataclass(frozen=True, slots=True)
class VerdictEvent:
    """What happened to one packet. Addresses are packed; `to_…` is the packet after translation."""

    time_ns: int  # CLOCK_MONOTONIC
    verdict: Verdict
    family: int
    protocol: int
    direction: Direction
    ifindex: int
    length: int  # of the packet, link layer included
    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    to_source: bytes
    to_source_port: int
    to_destination: bytes
    to_destination_port: int


def decode_event(data: bytes) -> VerdictEvent:
    """Turn a packed `struct event` into a VerdictEvent. Raises ValueError where it is none."""
    raw = Event.from_buffer_copy(data)
    size = address_bytes(raw.family)
    return VerdictEvent(
        time_ns=raw.time_ns,
        verdict=Verdict(raw.verdict),
        family=raw.family,
        protocol=raw.protocol,
        direction=Direction(raw.direction),
        ifindex=raw.ifindex,
        length=raw.bytes,
        source=bytes(raw.source)[:size],
        source_port=raw.source_port_be,
        destination=bytes(raw.destination)[:size],
        destination_port=raw.destination_port_be,
        to_source=bytes(raw.to_source)[:size],
        to_source_port=raw.to_source_port_be,
        to_destination=bytes(raw.to_destination)[:size],
        to_destination_port=raw.to_destination_port_be,
    )


class EventStream:
    """`async with EventStream(generation) as events: async for event in events: …`

    The programs tell events while the stream is open. A ring buffer has one reader: of two streams at once each
    sees a part. What is not read in time is lost, in the ring (1 MiB: the programs go on) or in the backlog here.
    """

    def __init__(self, generation: Generation, level: EventsLevel = EventsLevel.NOTABLE) -> None:
        self._generation = generation
        self._level = level
        self._backlog: deque[bytes] = deque(maxlen=_BACKLOG)
        self._wake = asyncio.Event()
        self._on_sample = SAMPLE_CALLBACK(self._take)  # libbpf keeps a pointer to it
        self._ring: int | None = None

    async def __aenter__(self) -> Self:
        self._map = self._generation.map("events")
        self._ring = library().ring_buffer__new(self._map.fd, self._on_sample, None, None)
        if not self._ring:
            raise OSError(ctypes.get_errno(), "ring_buffer__new events")
        self._descriptor = call("ring_buffer__epoll_fd", "events", self._ring)
        self._consume()  # what an earlier reader has left is no news
        self._backlog.clear()
        asyncio.get_running_loop().add_reader(self._descriptor, self._consume)
        self._tell(self._level)
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(OSError):  # the generation may have been replaced meanwhile
            self._tell(EventsLevel.OFF)
        asyncio.get_running_loop().remove_reader(self._descriptor)
        library().ring_buffer__free(self._ring)
        self._map.close()

    async def __aiter__(self) -> AsyncIterator[VerdictEvent]:
        while True:
            while self._backlog:
                yield decode_event(self._backlog.popleft())
            self._wake.clear()
            await self._wake.wait()

    def _tell(self, level: EventsLevel) -> None:
        with LiveSettings(self._generation) as live:
            live.tell(level)

    def _consume(self) -> None:
        call("ring_buffer__consume", "events", self._ring)
        if self._backlog:
            self._wake.set()

    def _take(self, _: int | None, data: int, size: int) -> int:
        self._backlog.append(ctypes.string_at(data, size))
        return 0
