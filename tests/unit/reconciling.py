"""A reconciler that runs on simulated maps, and a witness of what it tells."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from simulate import CAPACITIES, NODE, VIP, Clock, Maps

from kproxy_ebpf.errors import MapFullError
from kproxy_ebpf.model.service_tables import TableContents, TableWrites
from kproxy_ebpf.model.services import EndpointSlice, Node, Service, ServiceName
from kproxy_ebpf.model.snapshot import WATCHED_KINDS, Kind, ObjectRef, Removed, Snapshot, Synced, Upserted
from kproxy_ebpf.plan.tables.services import Capacities, Tables
from kproxy_ebpf.reconcile.queue import BatchTiming
from kproxy_ebpf.reconcile.services import Observer, Reconciler, Sync

QUICK = BatchTiming(first_retry=0.01, last_retry=0.05)


def upserted(each: Service | EndpointSlice | Node) -> Upserted:
    match each:
        case Service():
            return Upserted(ObjectRef(Kind.SERVICE, *each.key), each)
        case EndpointSlice():
            return Upserted(ObjectRef(Kind.ENDPOINT_SLICE, each.namespace, each.name), each)
        case Node():
            return Upserted(ObjectRef(Kind.NODE, "", each.name), each)


SYNCED = [Synced(kind) for kind in sorted(WATCHED_KINDS)]


@dataclass
class Witness(Observer):
    """Writes down what it is told."""

    queues: int = 0
    syncs: list[Sync] = field(default_factory=list)
    errors: list[tuple[int, Exception]] = field(default_factory=list)
    full: list[tuple[ServiceName, str]] = field(default_factory=list)
    bugs: list[tuple[ServiceName, Exception]] = field(default_factory=list)

    def queued(self) -> None:
        self.queues += 1

    def synced(self, sync: Sync) -> None:
        self.syncs.append(sync)

    def write_failed(self, family: int, error: Exception) -> None:
        self.errors.append((family, error))

    def table_full(self, name: ServiceName, error: MapFullError) -> None:
        self.full.append((name, error.table))

    def plan_failed(self, name: ServiceName, error: Exception) -> None:
        self.bugs.append((name, error))


class World:
    """A reconciler that runs, and the simulated maps it writes to."""

    def __init__(
        self, capacities: Capacities = CAPACITIES, found: TableContents | None = None, timing: BatchTiming = QUICK
    ) -> None:
        self.maps = Maps(Clock())
        self.witness = Witness()
        self.failures: list[Exception] = []
        self.checked = True
        tables = Tables(4, capacities, time.monotonic)
        if found is not None:
            self.maps.contents = found
            self.maps.cells = {
                base + index: each for base, ids in found.slots.items() for index, each in enumerate(ids)
            }
            tables.adopt(found)
        self.reconciler = Reconciler(Snapshot(), [tables], self, "here", observer=self.witness, timing=timing)

    def apply(self, family: int, writes: TableWrites) -> None:
        assert family == 4
        self.maps.clock.now += 10  # the ranges' rest is not what is tested here
        if self.failures:
            with contextlib.suppress(OSError):
                self.maps.perform(writes, fail_after=1)
            raise self.failures.pop()
        if self.checked:
            self.maps.perform(writes)

    def submit(self, *objects: Service | EndpointSlice | Node) -> None:
        self.reconciler.submit([upserted(each) for each in objects])

    def remove(self, owner: Service) -> None:
        self.reconciler.submit([Removed(ObjectRef(Kind.SERVICE, *owner.key))])

    def targets(self, each: object = VIP) -> set[str] | None:
        found = self.maps.targets(each)  # type: ignore[arg-type]
        return None if found is None else {".".join(map(str, address)) for address, _ in found}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110, the maps have no event to wait for
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def running(world: World, *, synced: bool = True) -> AsyncIterator[World]:
    task = asyncio.create_task(world.reconciler.run())
    try:
        if synced:
            world.reconciler.submit([upserted(NODE), *SYNCED])
            await until(lambda: world.reconciler.first_sync_done)
        yield world
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def idle(world: World) -> None:
    """Long enough for anything that was to happen: the loop has turned many times and nothing is queued."""
    for _ in range(50):
        await asyncio.sleep(0)
