"""Brings the tables to what the cluster says: events mark Services dirty, dirty Services are planned and written.

reconcile/queue.py says which Service is next, and when. Nothing is written before every kind has synced once. A failed
write is repeated with back-off: its entries stay staged in `Tables`, and later changes join them. A full table stops
the Services that do not fit, and no others.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kproxy_ebpf.errors import MapFullError
from kproxy_ebpf.model.service_tables import TableWrites
from kproxy_ebpf.model.services import EndpointSlice, Node, ServiceName
from kproxy_ebpf.model.snapshot import WATCHED_KINDS, Event, Snapshot, Upserted
from kproxy_ebpf.plan.services.claims import Conflict, seniority
from kproxy_ebpf.plan.services.plan import PlanSettings, ServicePlan, plan_service
from kproxy_ebpf.plan.tables.services import Tables
from kproxy_ebpf.reconcile.queue import BatchTiming, Clock, DirtyQueue


class TableWriter(Protocol):
    """Performs writes on the maps of one family."""

    def apply(self, family: int, writes: TableWrites) -> None:
        """In the order of the fields. Raises MapFullError or OSError, possibly with a part of them done."""


@dataclass(frozen=True, slots=True)
class Sync:
    """One batch that is in the maps. `programming_seconds` are counted from each slice's trigger time to now;
    `pending` Services are still to come. `without_local` counts, by family, the frontends that drop for want of an
    endpoint on this node.
    """

    duration_seconds: float
    services: int
    pending: int
    writes: Mapping[int, TableWrites]
    programming_seconds: Sequence[float]
    without_local: Mapping[int, int] = field(default_factory=dict)


class Observer:
    """Told what happens, for logs, metrics and health. This one ignores it."""

    def queued(self) -> None:
        """Some Service is dirty, and every kind has synced: only the reconciler's own work is missing."""

    def synced(self, sync: Sync) -> None:
        """A batch is in the maps."""

    def write_failed(self, family: int, error: Exception) -> None:
        """The maps refused a batch; it will be repeated."""

    def table_full(self, name: ServiceName, error: MapFullError) -> None:
        """A Service does not fit; its entries in the maps stay, and it will be planned again."""

    def plan_failed(self, name: ServiceName, error: Exception) -> None:
        """A Service can't be planned, which is a bug; its entries in the maps stay."""


@dataclass(slots=True)
class Batch:
    """The Services planned since all families' maps last held everything."""

    services: int = 0
    seconds: float = 0.0
    trigger_times: list[float] = field(default_factory=list)
    writes: dict[int, TableWrites] = field(default_factory=dict)


class Reconciler:
    """Owns the snapshot and the tables; everything runs in one event loop."""

    def __init__(
        self,
        snapshot: Snapshot,
        tables: Sequence[Tables],
        writer: TableWriter,
        node_name: str,
        settings: PlanSettings | None = None,
        *,
        observer: Observer | None = None,
        timing: BatchTiming | None = None,
        clock: Clock = time.monotonic,
        wall_clock: Clock = time.time,
    ) -> None:
        self.snapshot = snapshot
        self.settings = settings or PlanSettings()
        self.last_sync: float | None = None
        """When the last batch was in the maps (wall clock)."""
        self.first_sync_done = False
        self._tables = tuple(tables)
        self._writer = writer
        self._node_name = node_name
        self._observer = observer or Observer()
        self._clock = clock
        self._wall_clock = wall_clock
        self._queue: DirtyQueue[ServiceName] = DirtyQueue(timing, clock)
        self._trigger_times: dict[ServiceName, set[float]] = {}
        self._full: dict[tuple[int, ServiceName], str] = {}  # the table that has no room for the Service
        self._full_in_kernel: dict[int, str] = {}  # the table that refused a family's writes
        self._failed: dict[int, float] = {}  # families whose writes are to be repeated, since when
        self._batch = Batch()
        self._swept = False

    def submit(self, events: Iterable[Event]) -> None:
        """Fold events in."""
        for event in events:
            if isinstance(event, Upserted) and isinstance(event.object, EndpointSlice):
                self._note_trigger(event.object)
            self._queue.mark(self.snapshot.apply(event))
        self._wake()

    def update_settings(self, settings: PlanSettings) -> None:
        """Plan every Service anew if the settings differ."""
        if settings != self.settings:
            self.settings = settings
            self._queue.mark(self.snapshot.services)
            self._wake()

    @property
    def queued_since(self) -> float | None:
        """When the oldest change that is not in the maps came (by `clock`). Services that do not fit do not count, nor
        does anything before every kind has synced.
        """
        if not self._queue.is_started:
            return None
        oldest = self._queue.oldest
        return min([*self._failed.values(), *([] if oldest is None else [oldest])], default=None)

    @property
    def full_tables(self) -> Counter[str]:
        """How many Services do not fit into which table; a table that refused writes counts as one."""
        return Counter([*self._full.values(), *self._full_in_kernel.values()])

    def full_tables_of(self, name: ServiceName) -> list[str]:
        """The tables that have no room for this Service."""
        return [table for (_, each), table in self._full.items() if each == name]

    @property
    def at_random(self) -> set[ServiceName]:
        """Services that are balanced at random because the slots have no room for their Maglev tables."""
        return {name for tables in self._tables for name in tables.at_random}

    @property
    def conflicts(self) -> list[Conflict]:
        return [conflict for tables in self._tables for conflict in tables.conflicts()]

    def service_names(self) -> dict[int, dict[int, str]]:
        """By family, the names by service id; for people."""
        return {tables.family: tables.service_names() for tables in self._tables}

    @property
    def occupancy(self) -> dict[str, tuple[int, int]]:
        """Entries in use and capacity, by table."""
        return {table: used for tables in self._tables for table, used in tables.occupancy().items()}

    async def run(self) -> None:
        """Plan and write until cancelled."""
        await self._queue.run(self)

    # --- the queue's worker

    def is_ready(self) -> bool:
        """True once every kind has synced."""
        return self.snapshot.synced >= WATCHED_KINDS

    def start(self) -> list[ServiceName]:
        """Every Service, the oldest first, since they win what others claim too."""
        self._observer.queued()
        services = self.snapshot.services.values()
        return [service.key for service in sorted(services, key=lambda each: seniority(each.created, each.key))]

    def work(self, names: Iterator[ServiceName]) -> None:
        """Plan one batch of Services and write them."""
        started = self._clock()
        for name in names:
            self._plan(name)
            self._batch.services += 1
            self._batch.trigger_times += self._trigger_times.pop(name, ())
        self._write()
        self._batch.seconds += self._clock() - started
        self._report()

    def retry(self) -> None:
        """Write anew what the maps refused, and plan anew the Services that did not fit, tables of Maglev included."""
        failed, self._failed = self._failed, {}
        self._queue.mark({name for _, name in self._full} | self.at_random)
        started = self._clock()
        self._write()
        self._failed |= {family: failed[family] for family in self._failed if family in failed}
        self._batch.seconds += self._clock() - started
        if failed:
            self._report()

    def drained(self) -> None:
        """Everything is planned: after the first time what no Service claimed goes."""
        if not self._swept:
            self._swept = True
            for tables in self._tables:
                tables.remove_unclaimed()
            self._write()
        if not self.first_sync_done and not self._failed:
            self.first_sync_done = True
            self._report()

    # --- planning and writing

    def _plan(self, name: ServiceName) -> None:
        try:
            plan = self.plan(name)
        except Exception as error:  # one Service that we can't plan must not take the others down
            self._observer.plan_failed(name, error)
            return
        for tables in self._tables:
            try:
                tables.replace(name, plan)
                self._full.pop((tables.family, name), None)
            except MapFullError as error:
                self._full[tables.family, name] = error.table
                self._observer.table_full(name, error)
                self._queue.retry_later()
            if name in tables.at_random:
                self._queue.retry_later()
            self._queue.mark(tables.take_disturbed())

    def plan(self, name: ServiceName) -> ServicePlan | None:
        """The plan of a Service as the snapshot has it now; None where there is no such Service."""
        service = self.snapshot.services.get(name)
        if service is None:
            return None
        slices = self.snapshot.slices.get(name, {}).values()
        return plan_service(service, slices, self.snapshot.node or Node(self._node_name), self.settings)

    def _write(self) -> None:
        for tables in self._tables:
            writes = tables.writes
            if not writes or tables.family in self._failed:
                continue
            try:
                self._writer.apply(tables.family, writes)
            except (MapFullError, OSError) as error:
                self._failed[tables.family] = self._clock()
                if isinstance(error, MapFullError):
                    self._full_in_kernel[tables.family] = error.table
                self._observer.write_failed(tables.family, error)
                self._queue.retry_later()
            else:
                self._full_in_kernel.pop(tables.family, None)
                self._batch.writes[tables.family] = writes
                tables.commit()

    def _report(self) -> None:
        if self._failed:
            return
        batch, self._batch = self._batch, Batch()
        self.last_sync = self._wall_clock()
        latencies = [self.last_sync - trigger for trigger in batch.trigger_times]
        without = {tables.family: tables.without_local_endpoints() for tables in self._tables}
        self._observer.synced(Sync(batch.seconds, batch.services, len(self._queue), batch.writes, latencies, without))
        if not self._full and not self.at_random:
            self._queue.reset_back_off()

    def _wake(self) -> None:
        if self._queue and self._queue.is_started:
            self._observer.queued()
        self._queue.wake()

    def _note_trigger(self, slice_: EndpointSlice) -> None:
        """Only changes that come after the first sync say how long programming takes; a relist repeats old ones."""
        if not self.first_sync_done or not slice_.trigger_time:
            return
        known = self.snapshot.slices.get(slice_.service, {}).get(slice_.name)
        if known is None or known.trigger_time != slice_.trigger_time:
            self._trigger_times.setdefault(slice_.service, set()).add(slice_.trigger_time)
