"""The tables of network policies as the programs will ask them, and a planner that fills them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kproxy_ebpf.kube.addresses import Refusal
from kproxy_ebpf.kube.kinds import POLICY_KINDS
from kproxy_ebpf.model.policies import Direction, PodName, Prefix
from kproxy_ebpf.model.policy_snapshot import PolicySnapshot
from kproxy_ebpf.model.policy_tables import (
    ALL_PORTS,
    ANYBODY,
    OPEN,
    UNKNOWN,
    GrantKey,
    PolicyWrites,
    PortSetRow,
    Subjects,
)
from kproxy_ebpf.model.services import packed
from kproxy_ebpf.model.snapshot import Event, Kind, ObjectRef, Removed, Upserted
from kproxy_ebpf.plan.policies.planner import PolicyCapacities, PolicyPlanner

Json = dict[str, Any]
NODE = "here"
PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1}


class Program:
    """The maps, and the look-ups of a packet that begins a connection."""

    def __init__(self) -> None:
        self.port_sets: dict[int, PortSetRow] = {}
        self.grants: dict[GrantKey, int] = {}
        self.classes: dict[bytes, int] = {}
        self.blocks: dict[Prefix, int] = {}
        self.subjects: dict[PodName, Subjects] = {}

    def apply(self, writes: PolicyWrites, after_each: Callable[[], None] = lambda: None) -> None:
        """Perform `writes` in order, one by one."""
        for table, entries, removed in (
            (self.port_sets, writes.port_sets, ()),
            (self.grants, writes.grants, ()),
            (self.classes, writes.classes, ()),
            (self.blocks, writes.blocks, ()),
            (self.classes, {}, writes.removed_classes),
            (self.blocks, {}, writes.removed_blocks),
            (self.subjects, writes.subjects, ()),
            (self.subjects, {}, writes.removed_subjects),
            (self.grants, {}, writes.removed_grants),
        ):
            for key, value in entries.items():  # type: ignore[attr-defined]
                table[key] = value  # type: ignore[index]
                after_each()
            for key in removed:
                del table[key]  # type: ignore[attr-defined]
                after_each()

    def admits(self, pod: PodName, direction: Direction, address: str, protocol: str, port: int) -> bool:
        subjects = self.subjects.get(pod, Subjects(UNKNOWN, UNKNOWN))
        subject = subjects.ingress if direction is Direction.INGRESS else subjects.egress
        if subject == OPEN:
            return True
        class_ = self.class_of(packed(address))
        number = self.grants.get(GrantKey(subject, class_))
        if number is None:
            number = self.grants.get(GrantKey(subject, ANYBODY))
        if number is None:
            return False
        return number == ALL_PORTS or self._holds(number, PROTOCOLS[protocol], port)

    def class_of(self, address: bytes) -> int:
        if address in self.classes:
            return self.classes[address]
        holding = [prefix for prefix in self.blocks if prefix.holds(address)]
        return self.blocks[max(holding, key=lambda prefix: prefix.bits)] if holding else ANYBODY

    def _holds(self, number: int, protocol: int, port: int) -> bool:
        while number:
            row = self.port_sets[number]
            if any(each.protocol == protocol and each.first <= port <= each.last for each in row.ranges):
                return True
            number = row.next_row
        return False

    def sizes(self) -> dict[str, int]:
        return {name: len(getattr(self, name)) for name in ("grants", "classes", "blocks", "subjects")}


class Node:
    """A snapshot, its planner and its maps."""

    def __init__(
        self, objects: Iterable[Json] = (), capacities: PolicyCapacities | None = None, name: str = NODE
    ) -> None:
        self.now = 0.0
        self.snapshot = PolicySnapshot()
        self.planner = PolicyPlanner(name, self.snapshot, capacities or PolicyCapacities(), lambda: self.now)
        self.program = Program()
        self.put(*objects)

    def put(self, *objects: Json, after_each: Callable[[], None] = lambda: None) -> None:
        """Objects appear or change, all at once."""
        for obj in objects:
            for event in events_of(obj):
                self.snapshot.apply(event)
        self.settle(after_each)

    def remove(self, obj: Json, after_each: Callable[[], None] = lambda: None) -> None:
        self.snapshot.apply(Removed(ref_of(obj)))
        self.settle(after_each)

    def settle(self, after_each: Callable[[], None] = lambda: None) -> None:
        """Plan, write and commit; then the clock moves on, so that numbers have rested."""
        self.planner.plan()
        for step in self.planner.steps:
            self.program.apply(step, after_each)
        self.planner.commit()
        self.now += 10


def events_of(obj: Json) -> Iterator[Event]:
    kind, ref = POLICY_KINDS[Kind(obj["kind"])], ref_of(obj)
    try:
        yield Upserted(ref, kind.parse({key: value for key, value in obj.items() if key != "kind"}))
    except Refusal as refusal:
        yield from kind.refusal(ref, refusal)


def ref_of(obj: Json) -> ObjectRef:
    metadata = obj["metadata"]
    return ObjectRef(Kind(obj["kind"]), metadata.get("namespace", ""), metadata["name"])


def name_of(pod: Json) -> PodName:
    return PodName(pod["metadata"]["namespace"], pod["metadata"]["name"])
