"""The element of a pod's link in the programs' array: what the programs know of the link.

A `standing` in the element is a flag that the programs read without a lock (struct standing in bpf_src/contract.h). It
says that the link certainly has no entries of a kind; a link that is not settled may have some. To settle a link, read
its standing (`unsettled`), scan for entries, and call `settle` with the standing only if the scan found none.

Entries may appear between the reading and the writing. If a program creates one, it increments `made`, and the number
written is no longer `made + 1`. If another thread of the daemon creates one, it calls `unsettle` once the entry can be
found; then `settled` differs from what was read, and `settle` writes nothing. The number can't have become the same
again: `unsettle` lowers it, and only `settle` raises it, which for each kind one thread alone does, once after each
scan (for flows the sweep, for the others the reading of conntrack). Nobody but this process writes `settled`, so a lock
makes comparing and writing one step.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import NamedTuple, Self

from kproxy_ebpf.contract.layouts import layouts
from kproxy_ebpf.contract.maps import FAMILIES
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.arrays import MappedArray
from kproxy_ebpf.datapath.maps.packing import packer
from kproxy_ebpf.linux.kernel import wait_for_packets_under_way

_WORD = 4
_WRAP = 1 << 32
_WRITING = threading.Lock()


class StandingKind(StrEnum):
    """The kinds of entries that a link may have: the standings in struct pod_link."""

    FLOWS = "flows"
    HOST_FLOWS = "host_flows"
    UNRECORDED = "unrecorded"


class StandingValue(NamedTuple):
    """The value of a struct standing, as `unsettled` read it, for `settle`."""

    made: int
    settled: int

    @property
    def is_settled(self) -> bool:
        return self.settled == (self.made + 1) % _WRAP


class LinkFacts(NamedTuple):
    """What the programs know of a link.

    `pod`: the pod's packed address, b"" where none is known. `bridge`: the ifindex of the bridge that the link is a
    port of, or 0. `router_mac`: the address to which the pod sends what the host shall route. `netns_id`: the number of
    the pod's network namespace in the host's.
    """

    pod: bytes
    bridge: int
    router_mac: bytes
    netns_id: int


class PodLinkTable:
    """The array of one address family. A link whose place another link has taken has no element: its packets take every
    look-up, and are not redirected.
    """

    def __init__(self, generation: Generation, family: int) -> None:
        self._array = MappedArray(generation.map("pod_links", family))
        self._places = self._array.map.info.max_entries
        self._step = self._array.stride // _WORD
        layout = layouts(family).PodLink
        self._standings = {kind: getattr(layout, kind).offset // _WORD for kind in StandingKind}
        self._facts = packer(layout, "bridge", "pod", "router_mac", "netns_id")
        self._words = self._facts.size // _WORD
        self._bridge, self._pod = layout.bridge.offset // _WORD, layout.pod.offset // _WORD

    def links(self) -> dict[int, LinkFacts]:
        """All links that have an element."""
        with self._array.words() as words:
            return {words[base]: self._read(words, base) for base in self._used(words)}

    def tell(self, facts: Mapping[int, LinkFacts]) -> None:
        """Make these the links that have elements. A link whose facts change is no longer settled."""
        with self._writing() as words:
            for base in self._used(words):
                if words[base] not in facts:
                    words[base] = 0
            for ifindex, wanted in facts.items():
                base = self._base(ifindex)
                if words[base] == 0 or (words[base] == ifindex and self._read(words, base) != wanted):
                    self._write(words, base, ifindex, wanted)

    def unsettled(self, kind: StandingKind) -> dict[int, StandingValue]:
        """The standings of the links where the kind is not settled, by ifindex."""
        with self._writing() as words:
            standings = {words[base]: self._standing(words, base, kind) for base in self._used(words)}
        return {ifindex: standing for ifindex, standing in standings.items() if not standing.is_settled}

    def settle(self, kind: StandingKind, read: Mapping[int, StandingValue]) -> None:
        """Settle links where a scan found nothing of the kind. `read`: what `unsettled` returned before the scan."""
        with self._writing() as words:
            for ifindex, standing in read.items():
                base = self._base(ifindex)
                if words[base] == ifindex and self._standing(words, base, kind).settled == standing.settled:
                    words[base + self._standings[kind] + 1] = (standing.made + 1) % _WRAP

    def unsettle(self, kind: StandingKind, ifindexes: Iterable[int] | None = None) -> None:
        """Say that there may be entries of the kind, at these links or at all. Threads other than the one that scans
        call it, once the entries can be found.
        """
        wanted = None if ifindexes is None else frozenset(ifindexes)
        with self._writing() as words:
            for base in self._used(words):
                if wanted is None or words[base] in wanted:
                    self._unsettle(words, base, kind)

    def close(self) -> None:
        self._array.map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _writing(self) -> Iterator[memoryview]:
        """The array, which no other thread uses during the block; programs do."""
        with _WRITING, self._array.words() as words:
            yield words

    def _base(self, ifindex: int) -> int:
        return ifindex % self._places * self._step

    def _used(self, words: memoryview) -> Iterator[int]:
        """The words where the elements of links begin."""
        ifindexes = words[: self._places * self._step : self._step].tolist()
        return (place * self._step for place, ifindex in enumerate(ifindexes) if ifindex)

    def _standing(self, words: memoryview, base: int, kind: StandingKind) -> StandingValue:
        at = base + self._standings[kind]
        return StandingValue(words[at], words[at + 1])

    def _unsettle(self, words: memoryview, base: int, kind: StandingKind) -> None:
        at = base + self._standings[kind] + 1
        words[at] = (words[at] - 1) % _WRAP  # it is never more than `made + 1`: now less, whatever is made meanwhile

    def _read(self, words: memoryview, base: int) -> LinkFacts:
        bridge, pod, mac, netns_id = self._facts.unpack(words[base : base + self._words].tobytes())
        return LinkFacts(pod if any(pod) else b"", bridge, mac, netns_id)

    def _write(self, words: memoryview, base: int, ifindex: int, facts: LinkFacts) -> None:
        for kind in StandingKind:
            self._unsettle(words, base, kind)
        packed = memoryview(self._facts.pack(facts.bridge, facts.pod, facts.router_mac, facts.netns_id)).cast("I")
        words[base + self._bridge] = packed[self._bridge]
        words[base + self._pod : base + self._words] = packed[self._pod :]
        words[base] = ifindex


@contextmanager
def unrecorded(generation: Generation, families: Iterable[int] = FAMILIES) -> Iterator[None]:
    """Wrap every change that lets redirect take more packets. Blocks for some milliseconds.

    Connections that began through the host before the change were not recorded, so all links are marked unrecorded
    before it. They are marked again once packets in flight are done, for conntrack may have been read in between, too
    early to show those packets.
    """
    _unrecord(generation, families)
    yield
    wait_for_packets_under_way()
    _unrecord(generation, families)


def _unrecord(generation: Generation, families: Iterable[int]) -> None:
    for family in families:
        with PodLinkTable(generation, family) as table:
            table.unsettle(StandingKind.UNRECORDED)
