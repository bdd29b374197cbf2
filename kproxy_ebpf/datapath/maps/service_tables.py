"""The service tables, counters and settings, as the daemon and the commands read and write them."""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Iterator
from typing import Self

from kproxy_ebpf.contract.layouts import EventsLevel, Settings, Switches, Verdict, Way
from kproxy_ebpf.contract.maps import FAMILIES, pinned_name
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.arrays import Backends, MappedArray, Slots
from kproxy_ebpf.datapath.maps.packing import codec, unpack_frontend_values
from kproxy_ebpf.linux.bpf import Map
from kproxy_ebpf.model.service_tables import Frontend, TableContents, TableWrites

_U32 = struct.Struct("=I")
_COUNTER = struct.Struct("=QQ")


class ServiceMaps:
    """The service tables of one address family. Keeps the maps open; `close` when done."""

    def __init__(self, generation: Generation, family: int) -> None:
        self.family = family
        self._codec = codec(family)
        self._frontends = generation.map("frontends", family)
        self._source_ranges = generation.map("source_ranges", family)
        self._slots = Slots(generation.map("slots", family))
        self._backends = Backends(generation.map("backends", family))

    def read(self) -> TableContents:
        """What the tables hold. Raises OSError."""
        contents = TableContents()
        for keys, values in self._frontends.chunks():
            contents.frontends |= self._codec.unpack_frontends(keys, values)
        for keys, _ in self._source_ranges.chunks():
            contents.source_ranges |= self._codec.unpack_source_ranges(keys)
        ranges = [(entry.slot_base, entry.slot_count) for entry in contents.frontends.values() if entry.slot_count]
        contents.slots = self._slots.read(ranges)
        contents.backends = {index: self._codec.unpack_backend(value) for index, value in self._backends.read()}
        return contents

    def apply(self, writes: TableWrites) -> None:
        """Perform `writes` in the order of their fields. Raises MapFullError (what came before is written), OSError.

        Writing the same again is harmless, so a failed call may be repeated.
        """
        if writes.backends:
            self._backends.write({index: self._codec.pack_backend(b) for index, b in writes.backends.items()})
        if writes.slots:
            self._slots.write(writes.slots)
        source_ranges = self._codec.pack_source_ranges(writes.source_ranges)
        self._source_ranges.update_batch(source_ranges, bytes(_U32.size * len(writes.source_ranges)))
        self._frontends.update_batch(*self._codec.pack_frontends(writes.frontends))
        for key in writes.removed_frontends:
            self._frontends.delete(self._codec.pack_frontend_keys((key,)))
        for source_range in writes.removed_source_ranges:
            self._source_ranges.delete(self._codec.pack_source_ranges((source_range,)))
        if writes.backend_states:
            self._backends.write_states(writes.backend_states)

    def close(self) -> None:
        for map_ in (self._frontends, self._source_ranges, self._slots.map, self._backends.map):
            map_.close()


class _Counts:
    """(packets, bytes) of both families since the map was made, all CPUs added up."""

    def __init__(self, generation: Generation, name: str) -> None:
        self._map = generation.map(name)

    def sum(self, index: int) -> tuple[int, int]:
        values = list(_COUNTER.iter_unpack(self._map.lookup(_U32.pack(index)) or b""))
        return sum(packets for packets, _ in values), sum(octets for _, octets in values)

    def close(self) -> None:
        self._map.close()


class Counters(_Counts):
    """The verdict counters."""

    def __init__(self, generation: Generation) -> None:
        super().__init__(generation, "counters")

    def read(self) -> dict[Verdict, tuple[int, int]]:
        return {verdict: self.sum(verdict) for verdict in Verdict}


class Ways(_Counts):
    """The counters of the ways that packets went on."""

    def __init__(self, generation: Generation) -> None:
        super().__init__(generation, "ways")

    def read(self) -> dict[Way, tuple[int, int]]:
        return {way: self.sum(way) for way in Way}


class LiveSettings:
    """What the programs read while they run. Each field is written alone: daemon and commands write their own."""

    def __init__(self, generation: Generation) -> None:
        self._array = MappedArray(generation.map("settings"))

    def tell(self, level: EventsLevel) -> None:
        """From now on the programs tell `level` of events to the ring buffer."""
        with self._array.words() as words:
            words[_word("events_level")] = level

    def switch(self, switches: Switches) -> None:
        """From now on new connections meet this."""
        with self._array.words() as words:
            words[_word("switches")] = switches

    def set_host(self, netns_cookie: int) -> None:
        """Which network namespace is the host's, before sockets are switched on. Raises OSError."""
        with self._array.words() as words:
            low, high = netns_cookie & 0xFFFFFFFF, netns_cookie >> 32
            first = _word("host_netns_cookie")
            words[first], words[first + 1] = (low, high) if sys.byteorder == "little" else (high, low)

    def begin_datagrams(self, since_seconds: int) -> None:
        """From when on (CLOCK_MONOTONIC) a datagram of a socket that none was seen of is the first of its flow."""
        with self._array.words() as words:
            words[_word("datagrams_since_seconds")] = since_seconds

    def switches(self) -> Switches:
        with self._array.words() as words:
            return Switches(words[_word("switches")])

    def close(self) -> None:
        self._array.map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _word(field: str) -> int:
    offset: int = getattr(Settings, field).offset
    return offset // _U32.size


class Occupancy:
    """How full the tables are. Counting means walking them (30 ms for full flows), so an answer serves a while."""

    _COUNTED = ("frontends", "source_ranges", "flows", "affinity")

    def __init__(self, generation: Generation, seconds: float = 10.0) -> None:
        self._generation = generation
        self._seconds = seconds
        self._counted_at = -seconds
        self._answer: dict[str, tuple[int, int]] = {}

    def read(self) -> dict[str, tuple[int, int]]:
        """(entries, limit) by the table's pinned name, such as flows_v4; at most `seconds` old."""
        if time.monotonic() - self._counted_at >= self._seconds:
            self._answer = {name: entry for family in FAMILIES for name, entry in self._count(family).items()}
            self._counted_at = time.monotonic()
        return self._answer

    def _count(self, family: int) -> dict[str, tuple[int, int]]:
        answer = {}
        for name in self._COUNTED:
            with self._generation.map(name, family) as map_:
                answer[pinned_name(name, family)] = (map_.count(), map_.info.max_entries)
        with self._generation.map("backends", family) as map_:
            answer[pinned_name("backends", family)] = (Backends(map_).count(), map_.info.max_entries)
        with self._generation.map("slots", family) as map_, self._generation.map("frontends", family) as frontends:
            ranges = {(entry.slot_base, entry.slot_count) for entry in _entries(frontends)}
            answer[pinned_name("slots", family)] = (sum(count for _, count in ranges), map_.info.max_entries)
        return answer


def _entries(frontends: Map) -> Iterator[Frontend]:
    for _, values in frontends.chunks():
        yield from unpack_frontend_values(values)
