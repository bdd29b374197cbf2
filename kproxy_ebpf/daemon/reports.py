"""What the reconciler does, as logs, metrics and health; what the programs count, as metrics."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import structlog

from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.counters import Counters, Occupancy, Ways
from kproxy_ebpf.errors import MapFullError
from kproxy_ebpf.model.service_tables import TableWrites
from kproxy_ebpf.model.services import ServiceName
from kproxy_ebpf.model.snapshot import Event, Kind, Refused, Removed, Snapshot, Synced, Upserted
from kproxy_ebpf.observe.health import Health
from kproxy_ebpf.observe.metrics import DatapathReading, Metrics
from kproxy_ebpf.reconcile.services import Observer, Sync

log = structlog.get_logger(__name__)

NAMED_IN_HEALTH = 3
NO_NODE = (
    "there is no Node object of this node, or no right to read it: NodePorts are kube-proxy's alone, and topology hints"
    " of nodes and zones lead as if this node were in none; check --node-name"
)


@dataclass(slots=True)
class Reports(Observer):
    """Observes a reconciler, and the events on their way to it.

    `changed` is called when the status file is out of date, `warn` with each refusal (for a Kubernetes Event).
    """

    metrics: Metrics
    health: Health
    changed: Callable[[], None]
    warn: Callable[[Refused], None]
    _synced_once: bool = False

    def events(self, events: Sequence[Event], snapshot: Snapshot) -> None:
        """Count `events`, which `snapshot` has taken in already."""
        slices = sum(event.ref.kind is Kind.ENDPOINT_SLICE for event in _changes(events))
        services = sum(event.ref.kind is Kind.SERVICE for event in _changes(events))
        self.metrics.endpoint_changes.inc(slices)
        self.metrics.endpoint_pending.inc(slices)
        self.metrics.service_changes.inc(services)
        self.metrics.service_pending.inc(services)
        if snapshot.node is not None:
            self.health.node_eligible = snapshot.node.eligible
        for event in events:
            self._node(event, snapshot)
            if isinstance(event, Refused):
                log.warning(event.means.value, object=str(event.ref), reason=event.reason)
                self.warn(event)
        self._refused(snapshot)

    def _node(self, event: Event, snapshot: Snapshot) -> None:
        """Without its Node nothing fails, and all that depends on it is silently missing."""
        match event:
            case Upserted(ref) if ref.kind is Kind.NODE:
                self.health.problem("node", None)
            case Removed(ref) if ref.kind is Kind.NODE:
                self.health.problem("node", NO_NODE)
            case Synced(Kind.NODE) if snapshot.node is None:
                self.health.problem("node", NO_NODE)

    def queued(self) -> None:
        self.metrics.last_queued.set(time.time())

    def synced(self, sync: Sync) -> None:
        self.metrics.sync_duration.observe(sync.duration_seconds)
        self.metrics.last_sync.set(time.time())
        for seconds in sync.programming_seconds:
            self.metrics.network_programming.observe(max(seconds, 0.0))
        for family, writes in sync.writes.items():
            for table, count in write_counts(writes).items():
                self.metrics.map_writes.labels(table=f"{table}_v{family}").inc(count)
        for family, count in sync.without_local.items():
            self.metrics.without_local.labels(traffic_policy="internal", ip_family=f"IPv{family}").set(count)
        if not sync.pending:
            self.metrics.endpoint_pending.set(0)
            self.metrics.service_pending.set(0)
        self.health.updated()
        self._synced_once = True
        self.health.error("first-sync", None)
        if sync.services or sync.writes:
            log.debug("synced", services=sync.services, pending=sync.pending, seconds=round(sync.duration_seconds, 6))
        self.changed()

    def write_failed(self, family: int, error: Exception) -> None:
        self.metrics.sync_failures.inc()
        if isinstance(error, MapFullError):
            self.metrics.table_full.labels(table=error.table).inc()
        if not self._synced_once:
            self.health.error("first-sync", f"the first sync failed: {error}")
        log.error("the tables refused a write, it will be repeated", family=family, error=str(error))

    def table_full(self, name: ServiceName, error: MapFullError) -> None:
        self.metrics.table_full.labels(table=error.table).inc()
        log.error("a Service does not fit, others are served", service=str(name), table=error.table, error=str(error))

    def plan_failed(self, name: ServiceName, error: Exception) -> None:
        self.metrics.sync_failures.inc()
        log.error("a Service can't be planned, it stays as it is", service=str(name), error=repr(error), exc_info=error)

    def _refused(self, snapshot: Snapshot) -> None:
        counts = Counter(kind for kind, _, _ in snapshot.refused)
        for kind in Kind:
            self.metrics.refused_objects.labels(kind=kind.value).set(counts[kind])
        named = [f"{refused.ref}: {refused.reason}" for refused in islice(snapshot.refused.values(), NAMED_IN_HEALTH)]
        sentence = f"{len(snapshot.refused)} refused, such as {'; '.join(named)}" if named else None
        self.health.problem("refused", sentence)


class DatapathReports:
    """What the maps of one generation say, for metrics. Keeps the counters open; `close` when done."""

    def __init__(self, generation: Generation) -> None:
        self._counters, self._ways, self._occupancy = Counters(generation), Ways(generation), Occupancy(generation)

    def read(self) -> DatapathReading:
        """Raises OSError."""
        verdicts = {verdict.name.lower(): count for verdict, count in self._counters.read().items()}
        ways = {way.name.lower(): count for way, count in self._ways.read().items()}
        return DatapathReading(verdicts, self._occupancy.read(), ways)

    def close(self) -> None:
        self._counters.close()
        self._ways.close()


def full_sentence(tables: Counter[str]) -> str | None:
    """Names each table that lacks room, and for how many Services; None if all fit."""
    full = [f"table {table} has no room for {count} Services" for table, count in sorted(tables.items())]
    return "; ".join(full) or None


def at_random_sentence(services: int) -> str | None:
    """How many Services have no Maglev table for want of room; None where all have what they want."""
    if not services:
        return None
    return f"{services} Services are balanced at random: the slots have no room for their Maglev tables (--max-slots)"


def write_counts(writes: TableWrites) -> dict[str, int]:
    """How many entries of each table `writes` touches, for tables with any."""
    counts = {
        "frontends": len(writes.frontends) + len(writes.removed_frontends),
        "slots": sum(len(ids) for ids in writes.slots.values()),
        "backends": len(writes.backends) + len(writes.backend_states),
        "source_ranges": len(writes.source_ranges) + len(writes.removed_source_ranges),
    }
    return {table: count for table, count in counts.items() if count}


def _changes(events: Iterable[Event]) -> list[Upserted | Removed]:
    return [event for event in events if isinstance(event, (Upserted, Removed))]
