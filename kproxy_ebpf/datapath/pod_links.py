"""The element that a pod's link has in the programs' array, and what the daemon may say about it there.

A `standing` in it is a flag without a lock (struct standing in bpf_src/contract.h): read `made` before looking for the
things that it stands for, and write what was read only if none was found. What is not settled counts as there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple, Self

from kproxy_ebpf.datapath.arrays import MappedArray
from kproxy_ebpf.datapath.contract import address_bytes, layouts
from kproxy_ebpf.datapath.generation import Generation

_WORD = 4
_WRAP = 1 << 32


class Kind(StrEnum):
    """What a standing stands for: the fields of struct pod_link."""

    FLOWS = "flows"
    HOST_FLOWS = "host_flows"
    UNRECORDED = "unrecorded"


class LinkFacts(NamedTuple):
    """What the programs are told of a link. `pod`: the pod's address, packed; b"" where none is known. `bridge`: the
    ifindex of the bridge that the link is a port of, or 0. `router_mac`: what the pod addresses for the host to route.
    `netns_id`: the pod's network namespace, as the host's numbers it.
    """

    pod: bytes
    bridge: int
    router_mac: bytes
    netns_id: int


class PodLinkTable:
    """The array of one address family. A link whose place is another's has no element: it goes the slow way."""

    def __init__(self, generation: Generation, family: int) -> None:
        self._array = MappedArray(generation.map("pod_links", family))
        self._places = self._array.map.info.max_entries
        self._step = self._array.stride // _WORD
        layout, size = layouts(family).PodLink, address_bytes(family)
        self._standings = {kind: getattr(layout, kind).offset // _WORD for kind in Kind}
        self._facts = struct.Struct(f"={size}s6sxxI")
        self._facts_at = layout.pod.offset // _WORD

    def links(self) -> dict[int, LinkFacts]:
        """All links that have an element."""
        with self._array.words() as words:
            return {words[base]: self._read(words, base) for base in self._used(words)}

    def tell(self, facts: Mapping[int, LinkFacts]) -> None:
        """Make these the links that have elements. What was settled of one whose facts change is so no more."""
        with self._array.words() as words:
            for base in self._used(words):
                if words[base] not in facts:
                    words[base] = 0
            for ifindex, wanted in facts.items():
                base = self._base(ifindex)
                if words[base] == 0 or (words[base] == ifindex and self._read(words, base) != wanted):
                    self._write(words, base, ifindex, wanted)

    def made(self, kind: Kind) -> dict[int, int]:
        """The counts of the links where the kind is not settled, by ifindex."""
        with self._array.words() as words:
            standings = {words[base]: self._standing(words, base, kind) for base in self._used(words)}
        return {ifindex: made for ifindex, (made, settled) in standings.items() if settled != (made + 1) % _WRAP}

    def settle(self, kind: Kind, made: Mapping[int, int]) -> None:
        """At these links nothing of the kind was found; `made` is what `made()` said before it was looked for."""
        with self._array.words() as words:
            for ifindex, count in made.items():
                base = self._base(ifindex)
                if words[base] == ifindex:
                    words[base + self._standings[kind] + 1] = (count + 1) % _WRAP

    def unsettle(self, kind: Kind, ifindexes: Iterable[int] | None = None) -> None:
        """Something of the kind may be there: at these links, or at all."""
        wanted = None if ifindexes is None else frozenset(ifindexes)
        with self._array.words() as words:
            for base in self._used(words):
                if wanted is None or words[base] in wanted:
                    self._unsettle(words, base, kind)

    def close(self) -> None:
        self._array.map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _base(self, ifindex: int) -> int:
        return ifindex % self._places * self._step

    def _used(self, words: memoryview) -> Iterator[int]:
        """Where elements begin that are some link's."""
        ifindexes = words[: self._places * self._step : self._step].tolist()
        return (place * self._step for place, ifindex in enumerate(ifindexes) if ifindex)

    def _standing(self, words: memoryview, base: int, kind: Kind) -> tuple[int, int]:
        at = base + self._standings[kind]
        return words[at], words[at + 1]

    def _unsettle(self, words: memoryview, base: int, kind: Kind) -> None:
        at = base + self._standings[kind]
        words[at + 1] = words[at]  # what is made meanwhile moves away from `made + 1` even further

    def _read(self, words: memoryview, base: int) -> LinkFacts:
        at = base + self._facts_at
        pod, mac, netns_id = self._facts.unpack(words[at : at + self._facts.size // _WORD].tobytes())
        return LinkFacts(pod if any(pod) else b"", words[base + 1], mac, netns_id)

    def _write(self, words: memoryview, base: int, ifindex: int, facts: LinkFacts) -> None:
        for kind in Kind:
            self._unsettle(words, base, kind)
        words[base + 1] = facts.bridge
        at = base + self._facts_at
        packed = memoryview(self._facts.pack(facts.pod, facts.router_mac, facts.netns_id)).cast("I")
        words[at : at + len(packed)] = packed
        words[base] = ifindex


def unrecord(generation: Generation, family: int) -> None:
    """Connections of any pod may have begun the host's way unnoticed."""
    with PodLinkTable(generation, family) as table:
        table.unsettle(Kind.UNRECORDED)
