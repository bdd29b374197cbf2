"""The reconciler: what it waits for, what it repeats, and what it never loses."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from reconciling import SYNCED, World, idle, running, until, upserted
from simulate import CAPACITIES, NODE, VIP, WEB, A, B, key, service, slice_of

import kproxy_ebpf.reconcile.services as module
from kproxy_ebpf.errors import MapFullError
from kproxy_ebpf.model.services import Service, ServiceName, packed
from kproxy_ebpf.plan.services.plan import PlanSettings, ServicePlan
from kproxy_ebpf.plan.tables.services import Capacities
from kproxy_ebpf.reconcile.queue import BatchTiming


async def test_nothing_is_written_before_every_kind_has_synced() -> None:
    async with running(World(), synced=False) as world:
        world.submit(NODE, WEB, slice_of(WEB, A))
        for event in SYNCED:
            await idle(world)
            assert world.reconciler.queued_since is None
            assert not world.witness.queues
            assert not world.maps.contents.frontends
            assert not world.reconciler.first_sync_done
            world.reconciler.submit([event])
        await until(lambda: world.reconciler.first_sync_done)
        assert world.targets() == {A}
        assert world.witness.queues == 1
        assert world.reconciler.last_sync == pytest.approx(time.time(), abs=5)


async def test_a_change_is_in_the_maps_at_once() -> None:
    async with running(World()) as world:
        world.submit(WEB, slice_of(WEB, A))
        assert world.reconciler.queued_since is not None
        await until(lambda: world.targets() == {A})
        assert world.reconciler.queued_since is None
        world.submit(slice_of(WEB, A, B))
        await until(lambda: world.targets() == {A, B})
        world.remove(WEB)
        await until(lambda: world.targets() is None)


async def test_events_about_one_service_cost_one_plan() -> None:
    async with running(World()) as world:
        before = len(world.witness.syncs)
        for count in range(1, 20):
            world.submit(WEB, slice_of(WEB, *[f"1.1.1.{each}" for each in range(count)]))
        await until(lambda: len(world.targets() or ()) == 19)
        assert sum(sync.services for sync in world.witness.syncs[before:]) == 1


async def test_a_restart_writes_nothing_and_removes_what_is_no_more() -> None:
    async with running(World()) as first:
        gone = service("gone", cluster_ips=(packed("10.96.0.9"),))
        first.submit(WEB, slice_of(WEB, A), gone)
        await until(lambda: first.targets() == {A} and first.targets(key("10.96.0.9")) == set())
    world = World(found=first.maps.read_back())
    async with running(world, synced=False):
        world.submit(NODE, WEB, slice_of(WEB, A))
        await idle(world)
        assert world.targets(key("10.96.0.9")) == set()
        world.reconciler.submit(SYNCED)
        await until(lambda: world.reconciler.first_sync_done)
        assert world.targets(key("10.96.0.9")) is None
        assert world.targets() == {A}
        written = [writes for sync in world.witness.syncs for writes in sync.writes.values()]
        assert [(bool(each.frontends), bool(each.slots), bool(each.backends)) for each in written] == [(False,) * 3]


@pytest.mark.parametrize("error", [OSError("no memory"), MapFullError("frontends_v4", 1)])
async def test_a_failed_write_is_repeated(error: Exception) -> None:
    async with running(World()) as world:
        world.failures = [error] * 3
        world.submit(WEB, slice_of(WEB, A))
        await until(lambda: bool(world.witness.errors))
        assert world.reconciler.queued_since is not None
        assert dict(world.reconciler.full_tables) == ({"frontends_v4": 1} if isinstance(error, MapFullError) else {})
        world.submit(slice_of(WEB, A, B))
        await until(lambda: world.targets() == {A, B})
        assert len(world.witness.errors) == 3
        await until(lambda: world.reconciler.queued_since is None)
        assert not world.reconciler.full_tables


async def test_changes_do_not_hasten_what_is_to_be_repeated() -> None:
    async with running(World(timing=BatchTiming(first_retry=60, last_retry=60))) as world:
        world.failures = [OSError("no memory")] * 9
        for count in range(1, 6):
            world.submit(WEB, slice_of(WEB, *[f"1.1.1.{each}" for each in range(count)]))
            await idle(world)
        assert len(world.witness.errors) == 1


async def test_a_failure_of_the_first_sync_is_made_good() -> None:
    world = World()
    world.failures = [OSError("no memory")] * 2
    async with running(world, synced=False):
        world.submit(NODE, WEB, slice_of(WEB, A))
        world.reconciler.submit(SYNCED)
        await until(lambda: bool(world.witness.errors))
        assert not world.reconciler.first_sync_done
        await until(lambda: world.reconciler.first_sync_done)
        assert world.targets() == {A}


async def test_a_full_table_stops_only_what_does_not_fit() -> None:
    other = service("other", cluster_ips=(packed("10.96.0.2"),))
    async with running(World(replace(CAPACITIES, backends=3))) as world:
        world.submit(WEB, slice_of(WEB, A))
        await until(lambda: world.targets() == {A})
        world.submit(other, slice_of(other, A, B, name="other-1"))
        await until(lambda: world.reconciler.full_tables == {"backends_v4": 1})
        assert (other.key, "backends_v4") in world.witness.full
        await until(lambda: world.reconciler.queued_since is None)
        world.submit(slice_of(WEB, B))
        await until(lambda: world.targets() == {B})
        world.submit(slice_of(other, name="other-1"))
        await until(lambda: world.targets(key("10.96.0.2")) == set())
        assert not world.reconciler.full_tables


async def test_what_did_not_fit_is_tried_again() -> None:
    other = service("other", cluster_ips=(packed("10.96.0.2"),))
    async with running(World(replace(CAPACITIES, frontends=3))) as world:
        world.submit(WEB, slice_of(WEB, A))
        await until(lambda: world.targets() == {A})
        world.submit(other, slice_of(other, name="other-1"))
        await until(lambda: bool(world.reconciler.full_tables))
        world.remove(WEB)
        await until(lambda: world.targets(key("10.96.0.2")) == set())
        assert not world.reconciler.full_tables


async def test_a_loser_takes_over_without_an_event_of_its_own() -> None:
    old, new = (
        service(name, created=created, cluster_ips=(), external_ips=(packed("9.9.9.9"),))
        for name, created in (("old", "2025"), ("new", "2026"))
    )
    async with running(World()) as world:
        world.submit(new, slice_of(new, B, name="new-1"), old, slice_of(old, A, name="old-1"))
        await until(lambda: world.targets(key("9.9.9.9")) == {A} and world.reconciler.queued_since is None)
        (conflict,) = world.reconciler.conflicts
        assert (conflict.winner, conflict.loser) == (old.key, new.key)
        world.remove(old)
        await until(lambda: world.targets(key("9.9.9.9")) == {B})
        assert world.reconciler.conflicts == []


async def test_settings_plan_everything_anew() -> None:
    async with running(World()) as world:
        world.submit(WEB, slice_of(WEB, A, B))
        await until(lambda: world.targets() == {A, B})
        world.reconciler.update_settings(PlanSettings(maglev=True))
        await until(lambda: world.maps.contents.frontends[VIP].slot_count == 61)


async def test_a_change_of_the_node_plans_everything_anew() -> None:
    async with running(World()) as world:
        owner = service(ports=(replace(WEB.ports[0], node_port=30080),))
        world.submit(owner, slice_of(owner, A))
        await until(lambda: world.targets(key("10.0.0.1", 30080)) == {A})
        world.submit(replace(NODE, addresses=(packed("10.0.0.5"),)))
        await until(lambda: world.targets(key("10.0.0.5", 30080)) == {A})
        assert world.targets(key("10.0.0.1", 30080)) is None


async def test_programming_latency_is_told_once_per_trigger() -> None:
    def told() -> list[float]:
        return [seconds for sync in world.witness.syncs for seconds in sync.programming_seconds]

    early = slice_of(WEB, A, trigger_time=time.time() - 1000)
    world = World()
    world.submit(WEB, early)
    async with running(world):
        assert told() == []
        world.submit(early, slice_of(WEB, A, B, trigger_time=time.time() - 2))
        await until(lambda: world.targets() == {A, B})
        assert told() == [pytest.approx(2, abs=1)]
        world.submit(replace(WEB, affinity_seconds=3), slice_of(WEB, A, B, trigger_time=early.trigger_time))
        await until(lambda: world.maps.contents.frontends[VIP].affinity_seconds == 3)
        assert len(told()) == 2


async def test_one_service_that_can_not_be_planned_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fragile(owner: Service, *arguments: object) -> ServicePlan:
        if owner.key.name == "odd":
            raise ValueError(owner.key)
        return plan_service(owner, *arguments)  # type: ignore[arg-type]

    plan_service = module.plan_service
    monkeypatch.setattr(module, "plan_service", fragile)
    async with running(World()) as world:
        world.submit(service("odd"), WEB, slice_of(WEB, A))
        await until(lambda: world.targets() == {A})
        ((name, error),) = world.witness.bugs
        assert name == ServiceName("shop", "odd")
        assert isinstance(error, ValueError)


async def test_many_services_do_not_hold_the_loop() -> None:
    world = World(Capacities(10_000, 50_000, 50_000, 10))
    services = [
        service(f"s{number}", cluster_ips=(packed(f"10.97.{number // 250}.{number % 250 + 1}"),))
        for number in range(2000)
    ]
    world.checked = False
    for owner in services:
        world.submit(owner, slice_of(owner, A, B, name=f"{owner.key.name}-1"))
    async with running(world, synced=False):
        world.reconciler.submit([upserted(NODE), *SYNCED])
        turns = 0
        while not world.reconciler.first_sync_done:
            await asyncio.sleep(0)
            turns += 1
        batches = [sync for sync in world.witness.syncs if sync.services]
        assert len(batches) > 5
        assert turns >= len(batches)
        assert sum(sync.services for sync in batches) == len(services)


async def test_maglev_that_finds_no_room_is_told_and_tried_again() -> None:
    other = service("other", cluster_ips=(packed("10.96.0.2"),))
    async with running(World(replace(CAPACITIES, slots=100))) as world:
        world.maps.in_place = True
        world.reconciler.update_settings(PlanSettings(maglev=True))
        world.submit(WEB, slice_of(WEB, A, B))
        world.submit(other, slice_of(other, A, B, name="other-1"))
        await until(lambda: world.reconciler.at_random == {other.key})
        assert world.maps.contents.frontends[key("10.96.0.2")].slot_count == 2
        assert not world.reconciler.full_tables
        world.remove(WEB)
        await until(lambda: not world.reconciler.at_random)
        await until(lambda: world.maps.contents.frontends[key("10.96.0.2")].slot_count == 61)


async def test_a_queue_that_is_never_empty_does_not_make_old_what_is_young() -> None:
    world = World(timing=BatchTiming(batch=0))
    other = service("other", cluster_ips=(packed("10.96.0.2"),))
    async with running(world):
        ages, started = [], time.monotonic()
        for number in range(50):
            each, name = ((WEB, "web-1"), (other, "other-1"))[number % 2]
            world.submit(each, slice_of(each, f"1.1.1.{number + 1}", name=name))
            since = world.reconciler.queued_since
            assert since is not None  # there is always something
            ages.append(time.monotonic() - since)
            await asyncio.sleep(0.01)
        assert max(ages) < (time.monotonic() - started) / 3


async def test_a_removal_that_is_refused_at_the_end_of_the_first_sync_counts_as_waiting() -> None:
    async with running(World()) as first:
        first.submit(WEB, slice_of(WEB, A))
        await until(lambda: first.targets() == {A})
    world = World(found=first.maps.read_back(), timing=BatchTiming(first_retry=60, last_retry=60))
    world.failures = [OSError("no memory")]
    async with running(world, synced=False):
        world.reconciler.submit(SYNCED)
        await until(lambda: bool(world.witness.errors))
        await idle(world)
        assert world.reconciler.queued_since is not None
