"""Memory-mapped BPF arrays: `slots` and `backends` are read and written as memory.

Elements stand at a stride of 8 bytes or a multiple. A mapping counts as resident memory of the daemon, so it is made
for each use and released at once (8 MiB cost 0.2 ms).
"""

from __future__ import annotations

import mmap
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kproxy_ebpf.contract.layouts import layouts
from kproxy_ebpf.errors import MapFullError
from kproxy_ebpf.linux.bpf import Map

_WORD = 4
_CHUNK = 1 << 16


class MappedArray:
    """One BPF_F_MMAPABLE array. Indices outside the array raise MapFullError, as an update of the map would."""

    def __init__(self, map_: Map) -> None:
        self.map = map_
        self.stride = (map_.info.value_size + 7) & ~7

    @contextmanager
    def words(self) -> Iterator[memoryview]:
        """The whole array as 32-bit words, mapped for the time of the `with` block."""
        size = self.stride * self.map.info.max_entries
        pages = -(-size // mmap.PAGESIZE)
        with mmap.mmap(self.map.fd, pages * mmap.PAGESIZE) as mapping, memoryview(mapping).cast("I") as words:
            yield words

    def check(self, first: int, count: int = 1) -> None:
        if first + count > self.map.info.max_entries:
            raise MapFullError(self.map.name, self.map.info.max_entries)


class Slots(MappedArray):
    """Backend ids by slot number."""

    def write(self, ranges: dict[int, tuple[int, ...]]) -> None:
        """Write ranges of ids, each from its base on. No frontend may point at them yet."""
        for base, ids in ranges.items():
            self.check(base, len(ids))
        step = self.stride // _WORD
        with self.words() as words:
            for base, ids in ranges.items():
                words[base * step : (base + len(ids)) * step : step] = array("I", ids)

    def read(self, ranges: Sequence[tuple[int, int]]) -> dict[int, tuple[int, ...]]:
        """The ids in the ranges given as (base, count)."""
        step = self.stride // _WORD
        limit = self.map.info.max_entries
        with self.words() as words:
            return {
                base: tuple(words[base * step : (base + count) * step : step])
                for base, count in ranges
                if base + count <= limit
            }


class Backends(MappedArray):
    """Packed `struct backend` of one family by backend id. The word behind the address holds port, state and flags."""

    def __init__(self, map_: Map, family: int) -> None:
        super().__init__(map_)
        layout = layouts(family).Backend
        self._state_at = layout.state.offset
        self._state_word, self._epoch_word = layout.port_be.offset // _WORD, layout.epoch.offset // _WORD

    def write(self, entries: dict[int, bytes]) -> None:
        """Write whole elements so that a program never sees a usable backend with another's address.

        The epoch is written first, so flows of the id's former owner stop reading the element. The word with port,
        state and flags is written last.
        """
        for index in entries:
            self.check(index)
        state, epoch = self._state_word, self._epoch_word
        with self.words() as words:
            for index, value in entries.items():
                base = index * self.stride // _WORD
                new = memoryview(value).cast("I")
                if words[base : base + state] != new[:state]:
                    words[base + state] = 0  # BACKEND_FREE while the address changes
                words[base + epoch : base + len(new)] = new[epoch:]
                words[base : base + state] = new[:state]
                words[base + state] = new[state]

    def write_states(self, states: dict[int, tuple[int, int]]) -> None:
        """Change state and flags, {id: (state, flags)}, in one write each."""
        for index in states:
            self.check(index)
        with self.words() as words, words.cast("B") as octets, octets.cast("H") as halves:
            for index, pair in states.items():
                halves[(index * self.stride + self._state_at) // 2] = int.from_bytes(bytes(pair), sys.byteorder)

    def read(self) -> Iterator[tuple[int, bytes]]:
        """(id, packed element) of every element that is not all zero."""
        stride, size = self.stride, self.map.info.value_size
        for first, chunk in self._chunks():
            if chunk.count(0) == len(chunk):  # most of the table
                continue
            for offset in range(0, len(chunk), stride):
                value = chunk[offset : offset + size]
                if any(value):
                    yield first + offset // stride, value

    def count(self) -> int:
        """How many backends are not FREE."""
        state, stride = self._state_at, self.stride
        return sum(len(chunk[state::stride]) - chunk[state::stride].count(0) for _, chunk in self._chunks())

    def _chunks(self) -> Iterator[tuple[int, bytes]]:
        """(first id, bytes of the elements from there on): the whole table in copies of moderate size."""
        per_chunk = _CHUNK // self.stride
        with self.words() as words, words.cast("B") as octets:
            for first in range(0, self.map.info.max_entries, per_chunk):
                last = min(first + per_chunk, self.map.info.max_entries)
                yield first, bytes(octets[first * self.stride : last * self.stride])
