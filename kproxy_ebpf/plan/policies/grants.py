"""What each subject admits for each class, as numbers of port sets: written once, removed with its subject or class."""

from __future__ import annotations

from collections.abc import Iterator

from kproxy_ebpf.errors import MapFullError
from kproxy_ebpf.model.policy_tables import ALL_PORTS, ANYBODY, GrantKey, PolicyWrites
from kproxy_ebpf.plan.policies.numbers import Numbers, PortSets
from kproxy_ebpf.plan.policies.rules import Ranges, SubjectKey, admitted
from kproxy_ebpf.plan.policies.traits import PortTrait, Traits

Classes = Numbers[frozenset[int]]
SubjectNumbers = Numbers[SubjectKey]
NO_TRAITS: frozenset[int] = frozenset()


class Grants:
    """The pairs that differ from what the subject admits for ANYBODY, and that one."""

    def __init__(
        self, capacity: int, classes: Classes, subjects: SubjectNumbers, port_sets: PortSets, traits: Traits
    ) -> None:
        self.capacity = capacity
        self._classes, self._subjects, self._port_sets, self._traits = classes, subjects, port_sets, traits
        self._pairs: dict[int, dict[int, int]] = {}  # subject -> class -> port set
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add_subject(self, subject: int, writes: PolicyWrites) -> None:
        """Stage all pairs of a new subject. Raises MapFullError with none of them staged."""
        key = self._subjects.key(subject)
        self._pairs[subject] = {}
        anybody = admitted(key.rules, NO_TRAITS, self._traits)
        try:
            self._add(subject, ANYBODY, anybody, writes)
            for class_ in self._concerned(key):
                self._add_pair(subject, class_, anybody, writes)
        except MapFullError:
            self.remove_subject(subject, writes)
            raise

    def add_class(self, class_: int, writes: PolicyWrites) -> set[int]:
        """Stage all pairs of a new class. Returns the subjects that have no room for theirs: they do not admit it."""
        without = set()
        for subject in self._asking(self._classes.key(class_)):
            if (pairs := self._pairs.get(subject)) is None:
                continue
            try:
                anybody = admitted(self._subjects.key(subject).rules, NO_TRAITS, self._traits)
                if class_ not in pairs:
                    self._add_pair(subject, class_, anybody, writes)
            except MapFullError:
                without.add(subject)
        return without

    def complete(self, subject: int, writes: PolicyWrites) -> bool:
        """Stage the pairs that had no room. False while they have none."""
        pairs = self._pairs.get(subject)
        if pairs is None:
            return True
        key = self._subjects.key(subject)
        anybody = admitted(key.rules, NO_TRAITS, self._traits)
        try:
            for class_ in self._concerned(key) - pairs.keys():
                self._add_pair(subject, class_, anybody, writes)
        except MapFullError:
            return False
        return True

    def remove_subject(self, subject: int, writes: PolicyWrites) -> None:
        for class_ in list(self._pairs.get(subject, ())):
            self._remove(subject, class_, writes)
        self._pairs.pop(subject, None)

    def remove_class(self, class_: int, writes: PolicyWrites) -> None:
        for subject in self._asking(self._classes.key(class_)):
            if class_ in self._pairs.get(subject, ()):
                self._remove(subject, class_, writes)

    def _concerned(self, key: SubjectKey) -> set[int]:
        """The classes of which a rule says more than of anybody."""
        parts = [*key.traits(), *key.names_of_anybody()]
        return set().union(*(self._classes.with_part(part) for part in parts))

    def _asking(self, class_traits: frozenset[int]) -> set[int]:
        """The subjects with a rule that asks for any of these traits."""
        return set().union(*(self._subjects.with_part(part) for part in class_parts(class_traits, self._traits)))

    def _add_pair(self, subject: int, class_: int, anybody: Ranges, writes: PolicyWrites) -> None:
        ranges = admitted(self._subjects.key(subject).rules, self._classes.key(class_), self._traits)
        if ranges != anybody:
            self._add(subject, class_, ranges, writes)

    def _add(self, subject: int, class_: int, ranges: Ranges, writes: PolicyWrites) -> None:
        if ranges == ():
            return
        if self._count + len(writes.removed_grants) >= self.capacity:
            raise MapFullError("grants", self.capacity)
        number = ALL_PORTS if ranges is None else self._port_sets.use(ranges, writes.port_sets)
        self._pairs[subject][class_] = number
        self._count += 1
        writes.grants[GrantKey(subject, class_)] = number

    def _remove(self, subject: int, class_: int, writes: PolicyWrites) -> None:
        number = self._pairs[subject].pop(class_)
        self._count -= 1
        if number != ALL_PORTS:
            self._port_sets.leave(number)
        key = GrantKey(subject, class_)
        if writes.grants.pop(key, None) is None:
            writes.removed_grants.add(key)


def class_parts(class_traits: frozenset[int], traits: Traits) -> Iterator[object]:
    """What a class is found by: its traits, and the names of ports whose numbers they tell."""
    for number in class_traits:
        yield number
        trait = traits[number]
        if isinstance(trait, PortTrait):
            yield trait.port_name


def subject_parts(key: SubjectKey) -> Iterator[object]:
    """What a subject is found by."""
    yield from key.traits()
    yield from key.names_of_anybody()
