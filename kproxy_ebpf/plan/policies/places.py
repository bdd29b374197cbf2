"""Which class each address and each edge has, as the maps are to say it."""

from __future__ import annotations

from kproxy_ebpf.errors import MapFullError
from kproxy_ebpf.model.policies import Prefix
from kproxy_ebpf.model.policy_tables import ANYBODY, PolicyWrites
from kproxy_ebpf.plan.policies.blocks import Blocks
from kproxy_ebpf.plan.policies.force import Dirty
from kproxy_ebpf.plan.policies.grants import Classes, Grants, class_parts
from kproxy_ebpf.plan.policies.population import Population
from kproxy_ebpf.plan.policies.traits import PortTrait, Traits


class Places:
    """An address whose class has no room stays out of `classes`: it counts as what `blocks` says, so it has fewer
    traits than it should, and is never admitted where it should not be. It is `homeless` until there is room.
    """

    def __init__(
        self,
        population: Population,
        blocks: dict[int, Blocks],
        classes: Classes,
        grants: Grants,
        traits: Traits,
        addresses: int,
    ) -> None:
        self._population, self._blocks, self._classes = population, blocks, classes
        self._grants, self._traits = grants, traits
        self._max_addresses = addresses
        self._of_address: dict[bytes, int] = {}
        self._of_edge: dict[Prefix, int] = {}
        self._counts = {4: 0, 16: 0}
        self._homeless: dict[bytes, str] = {}  # the table that has no room
        self._homeless_edges: dict[Prefix, frozenset[int]] = {}
        self.unserved: set[int] = set()
        """Subjects that do not admit some class, since `grants` has no room."""

    def count(self, address_bytes: int) -> int:
        return self._counts[address_bytes]

    def edge_count(self) -> int:
        return len(self._of_edge)

    def full(self) -> set[str]:
        """The tables that have no room for something."""
        edges = {"class_numbers"} if self._homeless_edges else set()
        return {*self._homeless.values(), *edges, *({"grants"} if self.unserved else ())}

    def homeless(self) -> Dirty:
        """What had no room, to be placed again."""
        return Dirty(set(self._homeless), dict(self._homeless_edges))

    def place(self, dirty: Dirty, writes: PolicyWrites) -> None:
        for address in dirty.addresses:
            self._place(address, writes)
        for prefix, traits in dirty.edges.items():
            self._place_edge(prefix, traits, writes)
        for prefix in dirty.removed_edges:
            self._homeless_edges.pop(prefix, None)
            old = self._of_edge.pop(prefix, None)
            if old is not None:
                self._leave(old)
                writes.removed_blocks.add(prefix)

    def remove_idle(self, writes: PolicyWrites) -> None:
        """Classes that no address and no edge has any longer go, with their grants."""
        for number in self._classes.idle():
            key = self._classes.key(number)
            self._grants.remove_class(number, writes)
            self._classes.remove(number, list(class_parts(key, self._traits)))
            for trait in key:
                if isinstance(self._traits[trait], PortTrait) and not self._classes.with_part(trait):
                    self._traits.forget(trait)

    def _place(self, address: bytes, writes: PolicyWrites) -> None:
        self._homeless.pop(address, None)
        own = self._population.traits_of(address)
        if not own:
            self._forget(address, writes)
            return
        old = self._of_address.get(address)
        try:
            self._check_room(address)
            number = self._number(own | self._blocks[len(address)].traits_of(address), writes)
        except MapFullError as error:
            self._homeless[address] = error.table
            self._forget(address, writes)
            return
        if number != old:
            self._enter(number)
            self._of_address[address] = number
            writes.removed_classes.discard(address)
            writes.classes[address] = number
            if old is None:
                self._counts[len(address)] += 1
            else:
                self._leave(old)

    def _check_room(self, address: bytes) -> None:
        if address not in self._of_address and self._counts[len(address)] >= self._max_addresses:
            raise MapFullError("classes", self._max_addresses)

    def _forget(self, address: bytes, writes: PolicyWrites) -> None:
        old = self._of_address.pop(address, None)
        if old is not None:
            self._counts[len(address)] -= 1
            self._leave(old)
            writes.classes.pop(address, None)
            writes.removed_classes.add(address)

    def _place_edge(self, prefix: Prefix, traits: frozenset[int], writes: PolicyWrites) -> None:
        """An edge whose class has no room is ANYBODY's: an edge left out would count as the one around it."""
        self._homeless_edges.pop(prefix, None)
        try:
            number = self._number(traits, writes)
        except MapFullError:
            self._homeless_edges[prefix] = traits
            number = ANYBODY
        old = self._of_edge.get(prefix)
        if number != old:
            self._enter(number)
            self._of_edge[prefix] = number
            writes.removed_blocks.discard(prefix)
            writes.blocks[prefix] = number
            if old is not None:
                self._leave(old)

    def _number(self, key: frozenset[int], writes: PolicyWrites) -> int:
        """The class of these traits, a new one with all its grants staged. Raises MapFullError."""
        if not key:
            return ANYBODY
        number = self._classes.find(key)
        if number is None:
            number = self._classes.add(key, list(class_parts(key, self._traits)))
            self.unserved |= self._grants.add_class(number, writes)
        return number

    def _enter(self, number: int) -> None:
        if number != ANYBODY:
            self._classes.use(number)

    def _leave(self, number: int) -> None:
        if number != ANYBODY:
            self._classes.leave(number)
