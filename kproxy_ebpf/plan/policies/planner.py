"""Keeps the tables of network policies in step with the snapshot: the smallest ordered writes, subject by subject and
address by address.

A plan has two steps. The first one widens: new traits begin to tell addresses apart, their classes get all grants, the
addresses move to them, and only then pods are led to their new subjects. No subject in use asks for a trait that is
told no longer, so nothing is judged by half a change. The second step narrows: what no subject asks for any longer
stops telling addresses apart, and what nothing leads to is taken back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from kproxy_ebpf.errors import MapFullError
from kproxy_ebpf.model.policies import Direction, Pod, PodName
from kproxy_ebpf.model.policy_snapshot import PolicySnapshot, Touched
from kproxy_ebpf.model.policy_tables import NOTHING, OPEN, UNKNOWN, PolicyWrites, Subjects
from kproxy_ebpf.plan.policies.blocks import Blocks
from kproxy_ebpf.plan.policies.force import Dirty, Force
from kproxy_ebpf.plan.policies.grants import Grants, SubjectNumbers, subject_parts
from kproxy_ebpf.plan.policies.numbers import Numbers, PortSets
from kproxy_ebpf.plan.policies.places import Places
from kproxy_ebpf.plan.policies.population import Population
from kproxy_ebpf.plan.policies.rules import SubjectKey, subject_key
from kproxy_ebpf.plan.policies.traits import Traits
from kproxy_ebpf.plan.tables.allocate import Clock


@dataclass(frozen=True, slots=True)
class PolicyCapacities:
    """max_entries: `classes` and `blocks` of each family, the others of the one table that both share."""

    classes: int = 131_072
    blocks: int = 16_384
    grants: int = 262_144
    port_sets: int = 16_384
    subjects: int = 4096
    class_numbers: int = 131_072


RESERVED = frozenset({UNKNOWN, OPEN, NOTHING})
Keys = tuple[SubjectKey | None, SubjectKey | None]
"""What a pod admits as ingress and as egress, None for a direction in which no policy isolates it."""
Wanted = dict[PodName, Keys | None]
"""None for a pod that is not ours, or no longer."""


class PolicyPlanner:
    """Plans for the pods of `node_name`. `steps` are to be performed in order; `commit` says that they are."""

    def __init__(self, node_name: str, snapshot: PolicySnapshot, capacities: PolicyCapacities, clock: Clock) -> None:
        self._node_name, self._snapshot, self._capacities = node_name, snapshot, capacities
        self._traits = Traits()
        self._population = Population(snapshot, self._traits)
        blocks = {4: Blocks(4), 16: Blocks(16)}
        self._force = Force(self._population, blocks, self._traits, capacities.blocks)
        self._classes: Numbers[frozenset[int]] = Numbers("class_numbers", capacities.class_numbers, clock)
        self._subjects: SubjectNumbers = Numbers("subjects", capacities.subjects, clock, (OPEN, NOTHING))
        self._port_sets = PortSets(capacities.port_sets, clock)
        self._grants = Grants(capacities.grants, self._classes, self._subjects, self._port_sets, self._traits)
        self._places = Places(self._population, blocks, self._classes, self._grants, self._traits, capacities.classes)
        self._local: dict[str, dict[PodName, Subjects]] = {}  # by namespace
        self._closed: dict[PodName, str] = {}
        self._steps: list[PolicyWrites] = []

    @property
    def steps(self) -> Sequence[PolicyWrites]:
        """What is planned and not yet committed. A step that failed may be repeated."""
        return self._steps

    @property
    def closed(self) -> Mapping[PodName, str]:
        """Local pods that admit nothing in some direction because a table has no room, and the table."""
        return self._closed

    @property
    def full(self) -> Set[str]:
        """The tables that have no room for something. Who it concerns admits less than it should, never more."""
        return {*self._closed.values(), *self._places.full(), *({"blocks"} if self._force.starved else ())}

    @property
    def subjects(self) -> Mapping[PodName, Subjects]:
        return {key: found for pods in self._local.values() for key, found in pods.items()}

    def plan(self) -> None:
        """Stage what brings the tables to the snapshot. Where a table is full, room may come with the rest of others:
        to be called again after a moment, as long as there is something in `full`.
        """
        touched = self._snapshot.take_touched()
        if (touched or self.full) and self._round(touched) and self.full:
            self._round(Touched())

    def _round(self, touched: Touched) -> bool:
        """Both steps. True if something was taken back."""
        widen, narrow, dirty = PolicyWrites(), PolicyWrites(), self._places.homeless()
        for pod in touched.pods:
            dirty.addresses |= self._population.put(pod)
        for namespace in touched.namespaces:
            dirty.addresses |= self._population.relabel(namespace)
        self._force.feed(dirty)
        wanted = {key: self._wanted(self._snapshot.pods.get(key)) for key in self._affected(touched)}
        fresh = self._add_subjects(wanted, dirty)
        self._places.place(dirty, widen)
        self._lead(wanted, self._grant(fresh, widen), widen)
        self._narrow(narrow)
        self._forget_traits(wanted)
        self._steps += [step for step in (widen, narrow) if step]
        return bool(narrow)

    def commit(self) -> None:
        """Everything in `steps` is in the maps: numbers that were given back begin to rest."""
        self._steps = []
        for numbers in (self._classes, self._subjects, self._port_sets):
            numbers.commit()

    def occupancy(self) -> dict[str, tuple[int, int]]:
        """Entries in use and capacity, by table."""
        limits = self._capacities
        return {
            "classes_v4": (self._places.count(4), limits.classes),
            "classes_v6": (self._places.count(16), limits.classes),
            "blocks": (self._places.edge_count(), 2 * limits.blocks),
            "grants": (len(self._grants), limits.grants),
            "port_sets": (len(self._port_sets), limits.port_sets),
            "subjects": (len(self._subjects), limits.subjects),
            "class_numbers": (len(self._classes), limits.class_numbers),
        }

    def _affected(self, touched: Touched) -> set[PodName]:
        """Local pods whose subjects may be others now."""
        found = touched.pods | set(self._closed)
        for policy in touched.policies:
            found.update(self._local.get(policy.namespace, ()))
        return found

    def _wanted(self, pod: Pod | None) -> Keys | None:
        if pod is None or not pod.counts or pod.node_name != self._node_name:
            return None
        policies = self._snapshot.policies_of(pod)
        number_of = self._traits.number_of
        return (
            subject_key(pod, policies, Direction.INGRESS, number_of),
            subject_key(pod, policies, Direction.EGRESS, number_of),
        )

    def _add_subjects(self, wanted: Wanted, dirty: Dirty) -> list[int]:
        """Numbers for subjects that are new, and their traits put in force. One without room stays without number."""
        fresh = []
        for key in _keys(wanted):
            if key.is_open or not key.rules or self._subjects.find(key) is not None:
                continue
            try:
                fresh.append(self._subjects.add(key, list(subject_parts(key))))
            except MapFullError:
                continue
            self._force.use(key, dirty)
        return fresh

    def _grant(self, fresh: Iterable[int], writes: PolicyWrites) -> dict[int, str]:
        """Stage the grants of new subjects. Returns those whose grants have no room, and the table."""
        without = {}
        for number in fresh:
            try:
                self._grants.add_subject(number, writes)
            except MapFullError as error:
                without[number] = error.table
        self._places.unserved -= {number for number in self._places.unserved if self._grants.complete(number, writes)}
        return without

    def _lead(self, wanted: Wanted, without: Mapping[int, str], writes: PolicyWrites) -> None:
        """Stage what the links of pods are told."""
        for pod, keys in wanted.items():
            local = self._local.setdefault(pod.namespace, {})
            old = local.pop(pod, None)
            self._closed.pop(pod, None)
            if keys is not None:
                new = Subjects(*(self._subject(pod, key, without) for key in keys))
                local[pod] = new
                self._use(new)
                if new != old:
                    writes.subjects[pod] = new
            elif old is not None:
                writes.removed_subjects.add(pod)
            if old is not None:
                self._leave(old)
            if not local:
                del self._local[pod.namespace]

    def _subject(self, pod: PodName, key: SubjectKey | None, without: Mapping[int, str]) -> int:
        if key is None or key.is_open:
            return OPEN
        if not key.rules:
            return NOTHING
        number = self._subjects.find(key)
        if number is None or number in without:
            self._closed[pod] = "subjects" if number is None else without[number]
            return NOTHING
        return number

    def _narrow(self, writes: PolicyWrites) -> None:
        """Stage the end of all that no pod is led to any longer."""
        dirty, gone = Dirty(), {number: self._subjects.key(number) for number in self._subjects.idle()}
        unused: list[int] = []
        for number, key in gone.items():
            self._grants.remove_subject(number, writes)
            unused += self._force.leave(key, dirty)
        self._places.place(dirty, writes)
        self._places.remove_idle(writes)
        for number, key in gone.items():
            self._subjects.remove(number, list(subject_parts(key)))
        self._places.unserved -= gone.keys()
        self._port_sets.remove_idle()
        for number in unused:
            self._traits.forget(number)

    def _forget_traits(self, wanted: Wanted) -> None:
        """Rules of open pods, and of those without room, asked for a number that is in no use."""
        for number in {number for key in _keys(wanted) for number in key.traits()}:
            if not self._force.is_asked_for(number):
                self._traits.forget(number)

    def _use(self, subjects: Subjects) -> None:
        for number in subjects:
            if number not in RESERVED:
                self._subjects.use(number)

    def _leave(self, subjects: Subjects) -> None:
        for number in subjects:
            if number not in RESERVED:
                self._subjects.leave(number)


def _keys(wanted: Wanted) -> Iterator[SubjectKey]:
    for keys in wanted.values():
        yield from (key for key in keys or () if key is not None)
