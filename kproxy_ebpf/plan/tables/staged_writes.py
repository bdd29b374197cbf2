"""The writes that are decided but not yet known to be in the maps, and what may be reused once they are."""

from __future__ import annotations

from collections.abc import Iterable

from kproxy_ebpf.errors import MapFullError
from kproxy_ebpf.model.service_tables import Backend, Frontend, FrontendKey, SourceRangeKey, TableWrites
from kproxy_ebpf.plan.tables.allocate import IdPool, RangeAllocator


class StagedWrites:
    """Folds the writes for any number of Services, in any order, into one TableWrites.

    A write that takes the place of an earlier one removes it, so that the fixed order of TableWrites' fields stays
    right. Every write is idempotent: after a failure the whole is applied once more, with what was added since.
    """

    def __init__(self) -> None:
        self._clear()

    def frontend(self, key: FrontendKey, frontend: Frontend) -> None:
        self.writes.removed_frontends.discard(key)
        self.writes.frontends[key] = frontend

    def remove_frontend(self, key: FrontendKey) -> None:
        self.writes.frontends.pop(key, None)
        self.writes.removed_frontends.add(key)

    def backend(self, number: int, backend: Backend) -> None:
        """A row that is about to be pointed at."""
        self.writes.backend_states.pop(number, None)
        self.writes.backends[number] = backend

    def condition(self, number: int, state: int, flags: int) -> None:
        """A row that nothing points at any longer, or whose flags alone change."""
        self.writes.backend_states[number] = (state, flags)

    def slots(self, base: int, ids: Iterable[int]) -> None:
        self.writes.slots[base] = tuple(ids)

    def source_ranges(self, added: Iterable[SourceRangeKey], removed: Iterable[SourceRangeKey]) -> None:
        for key in added:
            self.writes.removed_source_ranges.discard(key)
            self.writes.source_ranges.add(key)
        for key in removed:
            self.writes.source_ranges.discard(key)
            self.writes.removed_source_ranges.add(key)

    def release_backend(self, number: int) -> None:
        self._backend_ids[number] = None

    def keep_backend(self, number: int) -> bool:
        """Take a release back. False where there is none."""
        if number not in self._backend_ids:
            return False
        del self._backend_ids[number]
        return True

    def release_range(self, base: int, count: int) -> None:
        self._ranges.append((base, count))

    def commit(self, backend_ids: IdPool, slots: RangeAllocator) -> None:
        """The writes are in the maps: what they no longer use begins its rest."""
        for number in self._backend_ids:
            backend_ids.release(number)
        for base, count in self._ranges:
            slots.release(base, count)
        self._clear()

    def _clear(self) -> None:
        self.writes = TableWrites()
        self._backend_ids: dict[int, None] = {}
        self._ranges: list[tuple[int, int]] = []


class Reservation:
    """What was taken from the pools for one Service, to be given back should a table turn out to be full."""

    def __init__(self, backend_ids: IdPool, slots: RangeAllocator, staged: StagedWrites) -> None:
        self._pool = backend_ids
        self._slots = slots
        self._staged = staged
        self._taken: list[int] = []
        self._ranges: list[tuple[int, int]] = []
        self._reclaimed: list[tuple[int, bool]] = []

    def backend_id(self) -> int:
        number = self._pool.take()
        self._taken.append(number)
        return number

    def range(self, count: int, share: float = 1.0) -> int:
        """The base of a fresh range, within this share of all slots. Raises MapFullError."""
        if self._slots.used() + count > share * self._slots.capacity:
            raise MapFullError(self._slots.table, self._slots.capacity)
        base = self._slots.take(count)
        self._ranges.append((base, count))
        return base

    def reclaim_backend(self, number: int) -> bool:
        """Take back an id that was released. False where it has been handed out since."""
        was_staged = self._staged.keep_backend(number)
        if not was_staged and not self._pool.reclaim(number):
            return False
        self._reclaimed.append((number, was_staged))
        return True

    def undo(self) -> None:
        for number in reversed(self._taken):
            self._pool.undo(number)
        for base, count in self._ranges:
            self._slots.undo(base, count)
        for number, was_staged in self._reclaimed:
            (self._staged.release_backend if was_staged else self._pool.release)(number)
