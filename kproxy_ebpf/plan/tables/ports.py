"""The part of a Service port that lies behind its frontends: backends, slot ranges and source ranges.

Life of a backend: USABLE while a set holds it, KEEP while it is an endpoint that no set holds, then LEFT or GONE, and
its id is released. The row stays as it is until another backend gets the id (epoch + 1). A backend that had LEFT and
returns before that keeps its id and epoch. A backend that was GONE gets a fresh id, since its flows have been reset.
"""

from __future__ import annotations

from array import array
from itertools import count
from typing import NamedTuple

from kproxy_ebpf.contract.layouts import BackendFlags, BackendState, FrontendFlags
from kproxy_ebpf.model.service_tables import Backend, Frontend, FrontendKey, SourceRangeKey, TableContents
from kproxy_ebpf.plan.services.endpoints import Target
from kproxy_ebpf.plan.services.plan import FrontendPlan, PortPlan
from kproxy_ebpf.plan.tables.allocate import Clock, IdPool, RangeAllocator
from kproxy_ebpf.plan.tables.columns import BackendColumns, SlotColumn
from kproxy_ebpf.plan.tables.placement import BalancedSet, Placement
from kproxy_ebpf.plan.tables.records import LIVE, Leftover, PortRecord
from kproxy_ebpf.plan.tables.staged_writes import Reservation, StagedWrites

BACKEND_REST_SECONDS = 120.0

_USABLE = int(BackendState.USABLE)


class PortChange(NamedTuple):
    """The ids and ranges that a port needs: taken from the pools, but not staged yet."""

    port: PortPlan
    old: PortRecord | None
    service_id: int
    remembered: dict[Target, int]  # rows that are the port's, by their target
    left: list[int]  # rows that have left and are not back
    usable: dict[Target, int]
    placement: Placement
    source_ranges: frozenset[SourceRangeKey]

    def frontend(self, planned: FrontendPlan) -> Frontend:
        """The entry of one of the port's frontends."""
        base, count = self.placement.ranges.get(planned.targets, (0, 0))
        at_random = planned.targets in self.placement.at_random
        flags = planned.flags & ~FrontendFlags.MAGLEV if at_random else planned.flags
        return Frontend(self.service_id, base, count, flags, planned.affinity_seconds)

    def new_source_ranges(self) -> frozenset[SourceRangeKey]:
        return self.source_ranges - self.old.source_ranges if self.old is not None else self.source_ranges


class Ports:
    """Backends, slots and source ranges of one family.

    A service id is never used twice: after a restart the row of a backend that has left must not pass for the row of
    another Service.
    """

    def __init__(self, family: int, backends: int, slots: int, clock: Clock, staged: StagedWrites) -> None:
        self.backend_ids = IdPool(f"backends_v{family}", backends, clock, BACKEND_REST_SECONDS)
        self.ranges = RangeAllocator(f"slots_v{family}", slots, clock)
        self.source_range_count = 0
        self._backends = BackendColumns(4 if family == 4 else 16)
        self._slots = SlotColumn()
        self._staged = staged
        self._service_ids = count(1)

    def adopt(self, contents: TableContents, leftovers: dict[int, Leftover]) -> None:
        """Start from what was found in the maps."""
        live = set()
        for number, backend in contents.backends.items():
            self._backends[number] = backend
            if backend.state in LIVE:
                live.add(number)
        for base, ids in contents.slots.items():
            self._slots.write(base, ids)
        self.source_range_count = len(contents.source_ranges)
        self.backend_ids.adopt(live, contents.backends.keys() - live)
        seen = {backend.service_id for backend in contents.backends.values()}
        self._service_ids = count(max(seen.union(leftovers), default=0) + 1)
        self.ranges.adopt(range_ for leftover in leftovers.values() for range_ in leftover.ranges)

    def reserve(self) -> Reservation:
        """Take from these pools for one Service."""
        return Reservation(self.backend_ids, self.ranges, self._staged)

    def commit(self) -> None:
        """What is staged is in the maps."""
        self._staged.commit(self.backend_ids, self.ranges)

    def prepare(
        self, old: PortRecord | None, port: PortPlan, lost: set[FrontendKey], reservation: Reservation
    ) -> PortChange:
        """Take what the port needs; `lost` frontends are another Service's. Raises MapFullError."""
        service_id = old.service_id if old is not None else next(self._service_ids)
        remembered, left = self._remembered(old, port, reservation) if old is not None else ({}, [])
        usable: dict[Target, int] = {}
        sets: dict[tuple[Target, ...], BalancedSet] = {}
        flags_of = {planned.targets: planned.flags for planned in port.frontends if planned.key not in lost}
        flags_of.pop((), None)
        for targets, flags in flags_of.items():
            for target in targets:
                if target not in usable:
                    number = remembered.get(target)
                    usable[target] = reservation.backend_id() if number is None else number
            sets[targets] = BalancedSet([usable[target] for target in targets], bool(flags & FrontendFlags.MAGLEV))
        placement = Placement(self._slots, old.ranges if old is not None else (), reservation, sets)
        keys = (SourceRangeKey(service_id, entry.network, entry.prefix_bits) for entry in port.source_ranges)
        return PortChange(port, old, service_id, remembered, left, usable, placement, frozenset(keys))

    def stage(self, change: PortChange) -> PortRecord:
        """Stage a change, the frontends excepted."""
        kept = {*change.usable.values(), *change.left}
        for target, number in change.usable.items():
            self._use(target, number, change)
        for target, number in change.remembered.items():
            if target not in change.usable and self._retire(number, change.port.known.get(target)):
                kept.add(number)
        for base, ids in change.placement.new_slots.items():
            self._slots.write(base, ids)
            self._staged.slots(base, ids)
        ranges = tuple(change.placement.ranges.values())
        for range_ in change.placement.released:
            self._staged.release_range(*range_)
        self._replace_source_ranges(change.old.source_ranges if change.old else frozenset(), change.source_ranges)
        return PortRecord(change.service_id, array("I", sorted(kept)), ranges, change.source_ranges)

    def remove(self, record: PortRecord) -> None:
        """The Service or its port is gone: its connections go on while their endpoints live."""
        for number in self._backends.remembered(record.backends, record.service_id).values():
            state, flags = self._backends.condition(number)
            if state in LIVE:
                self._set_condition(number, BackendState.LEFT, flags)
                self._staged.release_backend(number)
        for range_ in record.ranges:
            self._staged.release_range(*range_)
        self._replace_source_ranges(record.source_ranges, frozenset())

    def _remembered(
        self, old: PortRecord, port: PortPlan, reservation: Reservation
    ) -> tuple[dict[Target, int], list[int]]:
        """The port's rows, with backends that had left and are back; and the rows of backends that may yet return."""
        rows = self._backends.remembered(old.backends, old.service_id)
        left = []
        for target, number in list(rows.items()):
            if self._backends.condition(number)[0] == BackendState.LEFT:
                if target not in port.known:
                    left.append(number)
                    del rows[target]
                elif not reservation.reclaim_backend(number):
                    del rows[target]
        return rows, left

    def _use(self, target: Target, number: int, change: PortChange) -> None:
        flags = change.port.known[target]
        if target not in change.remembered:
            epoch = self._backends.next_epoch(number)
        else:
            state, _ = self._backends.condition(number)
            if state == BackendState.USABLE:
                self._set_condition(number, state, flags)
                return
            epoch = self._backends[number].epoch
        backend = Backend(*target, _USABLE, flags, epoch, change.service_id)
        self._backends[number] = backend
        self._staged.backend(number, backend)

    def _retire(self, number: int, known_flags: int | None) -> bool:
        """Take a row out of use that no set holds; an endpoint's flags are known. True if the row may be used again."""
        if known_flags is not None:
            self._set_condition(number, BackendState.KEEP, known_flags)
            return True
        _, flags = self._backends.condition(number)
        left = bool(flags & BackendFlags.READY)
        self._set_condition(number, BackendState.LEFT if left else BackendState.GONE, flags)
        self._staged.release_backend(number)
        return left

    def _set_condition(self, number: int, state: int, flags: int) -> None:
        if self._backends.condition(number) != (state, flags):
            self._backends.set_condition(number, state, flags)
            self._staged.condition(number, int(state), flags)

    def _replace_source_ranges(self, old: frozenset[SourceRangeKey], new: frozenset[SourceRangeKey]) -> None:
        if old != new:
            self._staged.source_ranges(new - old, old - new)
            self.source_range_count += len(new) - len(old)
