"""What is in the tables after a restart, after a write that failed, and when they are full."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulate import CAPACITIES, LEFT, NODE, TCP, USABLE, VIP, WEB, A, B, C, World, key, service, slice_of, unready

from kproxy_ebpf.errors import MapFullError
from kproxy_ebpf.model.services import ServicePort, packed, source_range
from kproxy_ebpf.plan.services.plan import PlanSettings, plan_service
from kproxy_ebpf.plan.tables.ports import BACKEND_REST_SECONDS
from kproxy_ebpf.plan.tables.services import Capacities


class TestRestart:
    @pytest.mark.parametrize("maglev", [False, True])
    def test_nothing_is_written_for_what_has_not_changed(self, world: World, maglev: bool) -> None:
        rich = service(
            ports=(ServicePort("http", TCP, 80, node_port=30080),),
            load_balancer_ips=(packed("192.0.2.1"),),
            source_ranges=(source_range("10.0.0.0/8"),),
            affinity_seconds=3,
        )
        world.set(rich, A, B, C, maglev=maglev)
        world.set(rich, A, unready(B), maglev=maglev)
        world.restart()
        assert not world.set(rich, A, unready(B), maglev=maglev)
        world.tables.remove_unclaimed()
        assert not world.flush()

    def test_changes_while_it_was_down_are_changes(self, world: World) -> None:
        world.set(WEB, A, B)
        world.restart()
        world.set(WEB, B, C)
        assert world.addresses() == {B, C}
        assert world.state(A) == LEFT

    def test_a_service_deleted_while_it_was_down(self, world: World) -> None:
        other = service("other", cluster_ips=(packed("10.96.0.2"),))
        balanced = replace(other, load_balancer_ips=(packed("192.0.2.1"),), source_ranges=(source_range("10.0.0.0/8"),))
        world.set(WEB, A)
        world.set(balanced, B)
        world.restart()
        world.set(WEB, A)
        world.tables.remove_unclaimed()
        world.flush()
        assert set(world.maps.contents.frontends) == {VIP, key("10.96.0.1", 0, 0)}
        assert world.state(B) == LEFT
        assert not world.maps.contents.source_ranges

    def test_a_frontend_that_changed_hands_while_it_was_down(self, world: World) -> None:
        shared = (packed("192.0.2.1"),)
        world.set(WEB, A)
        world.set(service("gone", cluster_ips=(packed("10.96.0.2"),), external_ips=shared), B)
        world.restart()
        world.set(replace(WEB, external_ips=shared), A)
        world.tables.remove_unclaimed()
        world.flush()
        assert world.addresses(key("192.0.2.1")) == {A}
        assert world.addresses(key("10.96.0.2")) is None

    def test_one_that_had_left_is_recognised(self, world: World) -> None:
        world.set(WEB, A, B)
        before = world.maps.row(B)
        world.set(WEB, A)
        world.restart()
        world.set(WEB, A, B)
        assert world.maps.row(B) == before

    def test_rows_written_before_a_crash_are_released(self, world: World) -> None:
        slices = (slice_of(WEB, A, B),)
        world.tables.replace(WEB.key, plan_service(WEB, slices, NODE, PlanSettings()))
        with pytest.raises(OSError, match="memory"):
            world.maps.perform(world.tables.writes, fail_after=2)
        world.restart()
        world.set(WEB, A)
        world.tables.remove_unclaimed()
        world.flush()
        assert sorted(row.state for row in world.maps.contents.backends.values()) == [USABLE, LEFT, LEFT]


class TestFailedWrites:
    def test_a_write_that_failed_anywhere_is_made_good(self) -> None:
        for step in range(1, 12):
            world = World()
            world.set(WEB, A, B)
            slices = (slice_of(WEB, B, C),)
            world.tables.replace(WEB.key, plan_service(WEB, slices, NODE, PlanSettings()))
            try:
                world.maps.perform(world.tables.writes, fail_after=step)
            except OSError:
                world.clock.now += BACKEND_REST_SECONDS
                world.set(WEB, C, A)
                assert world.addresses() == {A, C}
                assert world.state(B) == LEFT
            else:
                assert step > 3
                break
        else:
            pytest.fail("it never succeeded")


class TestFullTables:
    @pytest.mark.parametrize(
        ("capacities", "table"),
        [
            (replace(CAPACITIES, frontends=3), "frontends_v4"),
            (replace(CAPACITIES, backends=3), "backends_v4"),
            (replace(CAPACITIES, slots=3), "slots_v4"),
            (replace(CAPACITIES, source_ranges=0), "source_ranges_v4"),
        ],
    )
    def test_what_does_not_fit_changes_nothing_and_others_go_on(self, capacities: Capacities, table: str) -> None:
        world = World(capacities)
        world.set(WEB, A)
        before = world.maps.read_back()
        big = service(
            "big",
            cluster_ips=(packed("10.96.0.2"),),
            load_balancer_ips=(packed("192.0.2.1"),),
            source_ranges=(source_range("10.0.0.0/8"),),
        )
        with pytest.raises(MapFullError) as error:
            world.set(big, A, B, C)
        assert error.value.table == table
        assert not world.tables.writes
        assert world.maps.read_back() == before
        world.set(WEB, B)
        assert world.addresses() == {B}
        assert world.tables.occupancy()[table][1] == getattr(capacities, table.removesuffix("_v4"))

    def test_it_fits_once_there_is_room(self) -> None:
        world = World(replace(CAPACITIES, slots=3))
        world.set(WEB, A, B)
        other = service("other", cluster_ips=(packed("10.96.0.2"),))
        with pytest.raises(MapFullError):
            world.set(other, A, B)
        world.remove(WEB)
        world.clock.now += 3
        world.set(other, A, B)
        assert world.addresses(key("10.96.0.2")) == {A, B}

    def test_a_restart_with_full_tables_keeps_what_is_there(self) -> None:
        world = World(replace(CAPACITIES, slots=3))
        world.set(WEB, A, B)
        world.restart()
        with pytest.raises(MapFullError):
            world.set(WEB, A, B, C)
        world.tables.remove_unclaimed()
        world.flush()
        assert world.addresses() == {A, B}
