"""Memory does not grow with what was seen: 50,000 changes, from the API server's bytes to what would be written."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fake_api import NODES, SERVICES, SLICES, FakeApi, service, slice_

from kproxy_ebpf.daemon.reports import Reports
from kproxy_ebpf.kube.client import Client
from kproxy_ebpf.kube.kinds.common import Scope
from kproxy_ebpf.kube.source import ApiSource
from kproxy_ebpf.model.service_tables import TableWrites
from kproxy_ebpf.model.snapshot import Event, Snapshot
from kproxy_ebpf.observe.health import Health
from kproxy_ebpf.observe.metrics import Metrics
from kproxy_ebpf.plan.tables.services import Capacities, Tables
from kproxy_ebpf.reconcile.services import Reconciler

CHANGES, WARM_UP, BURST = 50_000, 10_000, 500
SERVICES_COUNT = 20
# One byte of each change would be 0.04 MB, the smallest Python object 0.6 MB, an EndpointSlice some 40 MB. What the
# allocators round up to between two readings stays below a megabyte.
GROWTH_MAX_MIB = 4


class Writer:
    def apply(self, family: int, writes: TableWrites) -> None: ...


def rss_mib() -> float:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.001)


async def test_fifty_thousand_changes_leave_nothing_behind(tmp_path: Path) -> None:
    api = await FakeApi().start()
    for number in range(SERVICES_COUNT):
        api.put(SERVICES, service(f"web{number}", clusterIP=f"10.96.0.{number + 1}"))
    api.put(NODES, {"metadata": {"name": "node1"}})
    client = await Client.from_kubeconfig(api.kubeconfig(tmp_path))
    metrics, seen = Metrics(), 0
    reports = Reports(metrics, Health(60), lambda: None, lambda _: None)
    tables = Tables(4, Capacities(1000, 100_000, 10_000, 1000), time.monotonic)
    reconciler = Reconciler(Snapshot(), [tables], Writer(), "node1", observer=reports)

    def emit(events: Sequence[Event]) -> None:
        nonlocal seen
        reconciler.submit(events)
        reports.events(events, reconciler.snapshot)
        seen += len(events)

    async with asyncio.timeout(240), asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(ApiSource(client, Scope("node1")).run(emit)), tasks.create_task(reconciler.run())]
        await until(lambda: reconciler.first_sync_done and bool(api.watching(SLICES)))
        at_first = 0.0
        for first in range(0, CHANGES, BURST):
            goal = seen + BURST
            for number in range(first, first + BURST):
                owner, turn = number % SERVICES_COUNT, number // SERVICES_COUNT % 10
                endpoints = [{"addresses": [f"10.1.{owner}.{turn * 4 + each}"]} for each in range(4)]
                api.put(SLICES, slice_(f"web{owner}-1", f"web{owner}", endpoints=endpoints))
            await until(lambda goal=goal: seen >= goal and reconciler.queued_since is None)  # type: ignore[misc]
            if first + BURST == WARM_UP:
                at_first = rss_mib()
        growth = rss_mib() - at_first
        for task in running:
            task.cancel()
    await client.aclose()
    await api.stop()
    assert not reconciler.snapshot.refused
    assert metrics.registry.get_sample_value("kubeproxy_sync_proxy_rules_endpoint_changes_total") == CHANGES
    assert growth < GROWTH_MAX_MIB, f"{growth:.1f} MiB more"
