"""Which ipBlocks hold an address: the edges of all CIDRs and excepts, each with the blocks that hold what lies in it.

The longest edge that holds an address decides, as in the trie that the programs ask. Each CIDR and each except is an
edge, so all that lies between an edge and the longer ones within it is held by the same blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from kproxy_ebpf.model.policies import IpBlock, Prefix

NOBODY: frozenset[int] = frozenset()


@dataclass(slots=True)
class Edge:
    """`begin` and `end` are the numbers of the blocks whose CIDR, or one of whose excepts, this is. `traits` is None
    until it is told.
    """

    prefix: Prefix
    begin: set[int] = field(default_factory=set)
    end: set[int] = field(default_factory=set)
    traits: frozenset[int] | None = None


class EdgeChanges(NamedTuple):
    """Edges whose blocks are others now, and edges that are gone."""

    changed: dict[Prefix, frozenset[int]]
    removed: set[Prefix]


class Blocks:
    """The blocks of one family."""

    def __init__(self, address_bytes: int) -> None:
        self._width = 8 * address_bytes
        self._edges: dict[int, dict[int, Edge]] = {}  # by length, then by the bits of the network
        self._lengths: list[int] = []  # the longest first

    def __len__(self) -> int:
        return sum(map(len, self._edges.values()))

    def new_edges(self, block: IpBlock) -> int:
        """How many edges more there would be with `block`."""
        return sum(self._find(prefix) is None for prefix in {block.block, *block.excepts})

    def add(self, number: int, block: IpBlock) -> EdgeChanges:
        self._edge(block.block).begin.add(number)
        for prefix in block.excepts:
            self._edge(prefix).end.add(number)
        return self._retell(block.block)

    def remove(self, number: int, block: IpBlock) -> EdgeChanges:
        removed = set()
        for prefix in {block.block, *block.excepts}:
            edge = self._edge(prefix)
            edge.begin.discard(number)
            edge.end.discard(number)
            if not edge.begin and not edge.end:
                self._drop(prefix)
                removed.add(prefix)
        return EdgeChanges(self._retell(block.block).changed, removed)

    def traits_of(self, address: bytes) -> frozenset[int]:
        """The numbers of the blocks that hold `address`."""
        value = int.from_bytes(address)
        for length in self._lengths:
            edge = self._edges[length].get(value >> self._width - length)
            if edge is not None:
                return edge.traits or NOBODY
        return NOBODY

    def _retell(self, within: Prefix) -> EdgeChanges:
        changed = {}
        for edge in list(self._within(within)):
            traits = self._told(edge.prefix)
            if traits != edge.traits:
                edge.traits = traits
                changed[edge.prefix] = traits
        return EdgeChanges(changed, set())

    def _told(self, prefix: Prefix) -> frozenset[int]:
        begin: set[int] = set()
        end: set[int] = set()
        value = int.from_bytes(prefix.network)
        for length in self._lengths:
            if length <= prefix.bits and (edge := self._edges[length].get(value >> self._width - length)) is not None:
                begin |= edge.begin
                end |= edge.end
        return frozenset(begin - end)

    def _within(self, prefix: Prefix) -> Iterator[Edge]:
        wanted = int.from_bytes(prefix.network) >> self._width - prefix.bits
        for length, edges in self._edges.items():
            if length >= prefix.bits:
                yield from (edge for bits, edge in edges.items() if bits >> length - prefix.bits == wanted)

    def _find(self, prefix: Prefix) -> Edge | None:
        return self._edges.get(prefix.bits, {}).get(int.from_bytes(prefix.network) >> self._width - prefix.bits)

    def _edge(self, prefix: Prefix) -> Edge:
        found = self._find(prefix)
        if found is None:
            found = Edge(prefix)
            bits = int.from_bytes(prefix.network) >> self._width - prefix.bits
            self._edges.setdefault(prefix.bits, {})[bits] = found
            self._lengths = sorted(self._edges, reverse=True)
        return found

    def _drop(self, prefix: Prefix) -> None:
        edges = self._edges[prefix.bits]
        del edges[int.from_bytes(prefix.network) >> self._width - prefix.bits]
        if not edges:
            del self._edges[prefix.bits]
            self._lengths = sorted(self._edges, reverse=True)
