"""The settings that the programs read while they run."""

from __future__ import annotations

import sys
from typing import Self

from kproxy_ebpf.contract.layouts import EventsLevel, Settings, Switches
from kproxy_ebpf.contract.scalars import U32
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.arrays import MappedArray


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
    return offset // U32.size
