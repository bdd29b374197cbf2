"""What was counted: packets by verdict and by way, and the entries of the tables."""

from __future__ import annotations

import time
from collections.abc import Iterator

from kproxy_ebpf.contract.layouts import Counter, Verdict, Way
from kproxy_ebpf.contract.maps import FAMILIES, FLOW_TABLES, SERVICE_TABLES, pinned_name
from kproxy_ebpf.contract.scalars import U32
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.arrays import Backends
from kproxy_ebpf.datapath.maps.packing import packer, unpack_frontend_values
from kproxy_ebpf.linux.bpf import Map
from kproxy_ebpf.model.service_tables import Frontend

_COUNTER = packer(Counter, "packets", "bytes")
_ARRAYS = ("backends", "slots")  # whose elements are always there: those in use are counted, and told last


class _Counts:
    """(packets, bytes) of both families since the map was made, all CPUs added up."""

    def __init__(self, generation: Generation, name: str) -> None:
        self._map = generation.map(name)

    def sum(self, index: int) -> tuple[int, int]:
        values = list(_COUNTER.iter_unpack(self._map.lookup(U32.pack(index)) or b""))
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


class Occupancy:
    """How full the tables are. Counting means walking them (30 ms for full flows), so an answer serves a while."""

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
        for name in sorted((*SERVICE_TABLES, *FLOW_TABLES), key=_ARRAYS.__contains__):
            with self._generation.map(name, family) as map_:
                answer[pinned_name(name, family)] = (self._used(name, map_, family), map_.info.max_entries)
        return answer

    def _used(self, name: str, map_: Map, family: int) -> int:
        """How many entries of a map are in use."""
        if name == "backends":
            return Backends(map_, family).count()
        if name == "slots":
            with self._generation.map("frontends", family) as frontends:
                ranges = {(each.slot_base, each.slot_count) for each in _entries(frontends)}
            return sum(count for _, count in ranges)
        return map_.count()


def _entries(frontends: Map) -> Iterator[Frontend]:
    for _, values in frontends.chunks():
        yield from unpack_frontend_values(values)
