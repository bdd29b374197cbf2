"""Which traits and names of ports the subjects in use ask for, and so tell addresses apart."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from kproxy_ebpf.model.policies import IpBlock, PortName, Prefix
from kproxy_ebpf.plan.policies.blocks import Blocks, EdgeChanges
from kproxy_ebpf.plan.policies.population import Population
from kproxy_ebpf.plan.policies.rules import SubjectKey
from kproxy_ebpf.plan.policies.traits import Traits


@dataclass(slots=True)
class Dirty:
    """Addresses whose class may be another now, and the edges that changed."""

    addresses: set[bytes] = field(default_factory=set)
    edges: dict[Prefix, frozenset[int]] = field(default_factory=dict)
    removed_edges: set[Prefix] = field(default_factory=set)

    def note(self, changes: EdgeChanges) -> None:
        for prefix, traits in changes.changed.items():
            self.removed_edges.discard(prefix)
            self.edges[prefix] = traits
        for prefix in changes.removed:
            self.edges.pop(prefix, None)
            self.removed_edges.add(prefix)


class Force:
    """Counts who asks for what. A block whose edges have no room is `starved`: nobody counts as held by it."""

    def __init__(self, population: Population, blocks: dict[int, Blocks], traits: Traits, edges: int) -> None:
        self._population, self._blocks, self._traits = population, blocks, traits
        self._max_edges = edges
        self._users: Counter[int] = Counter()
        self._names: Counter[PortName] = Counter()
        self.starved: set[int] = set()

    def use(self, key: SubjectKey, dirty: Dirty) -> None:
        """A new subject asks for what its rules name."""
        for number in key.traits():
            self._users[number] += 1
            if self._users[number] == 1:
                self._begin(number, dirty)
        for name in key.names():
            self._names[name] += 1
            if self._names[name] == 1:
                dirty.addresses |= self._population.add_name(name)

    def leave(self, key: SubjectKey, dirty: Dirty) -> list[int]:
        """The subject is gone. Returns the traits that nobody asks for any longer."""
        unused = []
        for number in key.traits():
            self._users[number] -= 1
            if not self._users[number]:
                del self._users[number]
                self._end(number, dirty)
                unused.append(number)
        for name in key.names():
            self._names[name] -= 1
            if not self._names[name]:
                del self._names[name]
                dirty.addresses |= self._population.remove_name(name)
        return unused

    def feed(self, dirty: Dirty) -> None:
        """Try again with the starved blocks."""
        starved, self.starved = self.starved, set()
        for number in sorted(starved):
            self._begin(number, dirty)

    def is_asked_for(self, number: int) -> bool:
        return number in self._users

    def _begin(self, number: int, dirty: Dirty) -> None:
        trait = self._traits[number]
        if not isinstance(trait, IpBlock):
            dirty.addresses |= self._population.add_trait(number)
            return
        blocks = self._blocks[len(trait.block.network)]
        if len(blocks) + blocks.new_edges(trait) > self._max_edges:
            self.starved.add(number)
            return
        dirty.note(blocks.add(number, trait))
        dirty.addresses.update(self._population.within(trait.block))

    def _end(self, number: int, dirty: Dirty) -> None:
        trait = self._traits[number]
        if not isinstance(trait, IpBlock):
            dirty.addresses |= self._population.remove_trait(number)
        elif number in self.starved:
            self.starved.discard(number)
        else:
            dirty.note(self._blocks[len(trait.block.network)].remove(number, trait))
            dirty.addresses.update(self._population.within(trait.block))
