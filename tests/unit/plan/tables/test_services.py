"""SEMANTICS: connections over time, as writes to the tables; restarts, full tables, contradictions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulate import CAPACITIES, NODE, TCP, Clock, Maps, endpoint, key, service, slice_of

from kproxy_ebpf.contract.layouts import BackendFlags, BackendState, FrontendFlags
from kproxy_ebpf.errors import MapFullError
from kproxy_ebpf.model.service_tables import FrontendKey, TableWrites
from kproxy_ebpf.model.services import (
    Endpoint,
    Service,
    ServiceName,
    ServicePort,
    SlicePort,
    TrafficPolicy,
    packed,
    source_range,
)
from kproxy_ebpf.plan.services.plan import PlanSettings, plan_service
from kproxy_ebpf.plan.tables.ports import BACKEND_REST_SECONDS
from kproxy_ebpf.plan.tables.services import Capacities, Tables

USABLE, KEEP, LEFT, GONE = BackendState.USABLE, BackendState.KEEP, BackendState.LEFT, BackendState.GONE
VIP = key("10.96.0.1")
A, B, C = "1.1.1.1", "1.1.1.2", "1.1.1.3"


def unready(address: str) -> Endpoint:
    return endpoint(address, ready=False, serving=False)


def draining(address: str) -> Endpoint:
    return endpoint(address, ready=False, terminating=True)


class World:
    """Tables and the maps they are written to."""

    def __init__(self, capacities: Capacities = CAPACITIES) -> None:
        self.clock = Clock()
        self.capacities = capacities
        self.maps = Maps(self.clock)
        self.tables = Tables(4, capacities, self.clock)

    def set(self, owner: Service, *endpoints: Endpoint | str, maglev: bool = False) -> TableWrites:
        slices = (slice_of(owner, *endpoints),)
        self.tables.replace(owner.key, plan_service(owner, slices, NODE, PlanSettings(maglev)))
        return self.flush()

    def remove(self, owner: Service) -> TableWrites:
        self.tables.replace(owner.key, None)
        return self.flush()

    def flush(self) -> TableWrites:
        writes = self.tables.writes
        self.maps.perform(writes)
        self.tables.commit()
        return writes

    def restart(self) -> None:
        self.tables = Tables(4, self.capacities, self.clock)
        self.tables.adopt(self.maps.read_back())

    def state(self, address: str) -> int:
        return self.maps.row(address)[1].state

    def addresses(self, each: FrontendKey = VIP) -> set[str] | None:
        targets = self.maps.targets(each)
        return None if targets is None else {".".join(map(str, address)) for address, _ in targets}


@pytest.fixture
def world() -> World:
    return World()


WEB = service()


class TestConnectionsOverTime:
    def test_new_connections_avoid_a_terminating_endpoint_and_old_ones_stay(self, world: World) -> None:
        world.set(WEB, A, B)
        world.set(WEB, A, draining(B))
        assert world.addresses() == {A}
        assert world.state(B) == KEEP

    @pytest.mark.parametrize("last", [draining, unready])
    def test_gone_after_it_was_terminating_or_not_ready(self, world: World, last: type) -> None:
        world.set(WEB, A, B)
        world.set(WEB, A, last(B))
        world.set(WEB, A)
        assert world.state(B) == GONE

    def test_gone_while_it_was_ready(self, world: World) -> None:
        world.set(WEB, A, B)
        world.set(WEB, A)
        assert world.addresses() == {A}
        assert world.state(B) == LEFT

    def test_the_last_one_gone_while_terminating_is_rejected(self, world: World) -> None:
        world.set(WEB, A)
        world.set(WEB, draining(A))
        assert world.addresses() == {A}
        world.set(WEB)
        assert world.addresses() == set()
        assert world.state(A) == GONE

    def test_merely_not_ready(self, world: World) -> None:
        world.set(WEB, A, B)
        world.set(WEB, A, unready(B))
        assert world.state(B) == KEEP
        world.set(WEB, A, B)
        assert world.state(B) == USABLE
        assert world.maps.row(B)[1].epoch == 1

    def test_deleted_service(self, world: World) -> None:
        world.set(WEB, A, unready(B))
        world.remove(WEB)
        assert world.maps.contents.frontends == {}
        assert world.state(A) == LEFT

    def test_deleted_port(self, world: World) -> None:
        both = replace(WEB, ports=(ServicePort("http", TCP, 80), ServicePort("more", TCP, 81)))
        ports = (SlicePort("http", TCP, 8080), SlicePort("more", TCP, 9090))
        plan = plan_service(both, (slice_of(both, A, ports=ports),), NODE, PlanSettings())
        world.tables.replace(WEB.key, plan)
        world.flush()
        world.set(WEB, A)
        assert set(world.maps.contents.frontends) == {VIP, key("10.96.0.1", 0, 0)}
        assert world.maps.row(A, 9090)[1].state == LEFT
        assert world.maps.row(A, 8080)[1].state == USABLE

    def test_reordering_and_resyncs_write_nothing(self, world: World) -> None:
        world.set(WEB, A, B, C)
        assert not world.set(WEB, C, A, B)

    def test_an_unused_endpoint_takes_no_row(self, world: World) -> None:
        world.set(WEB, A, unready(B))
        assert len(world.maps.contents.backends) == 1

    def test_flags_alone_change_the_state_only(self, world: World) -> None:
        world.set(WEB, A)
        writes = world.set(WEB, endpoint(A, node_name="here"))
        number, _ = world.maps.row(A)
        flags = BackendFlags.READY | BackendFlags.LOCAL
        assert writes == TableWrites(backend_states={number: (USABLE, flags)})


class TestRows:
    def test_one_that_left_comes_back_under_its_id_and_epoch(self, world: World) -> None:
        world.set(WEB, A, B)
        before = world.maps.row(B)
        world.set(WEB, A)
        world.set(WEB, A, B)
        assert world.maps.row(B) == before

    def test_one_that_came_back_is_not_given_away(self, world: World) -> None:
        for endpoints in ([A, B], [A], [A, B]):
            world.set(WEB, *endpoints)
        world.clock.now += BACKEND_REST_SECONDS
        world.set(WEB, A, B, C)
        assert {world.state(each) for each in (A, B, C)} == {USABLE}
        assert world.addresses() == {A, B, C}

    def test_one_that_left_comes_back_not_ready(self, world: World) -> None:
        world.set(WEB, A, B)
        number, _ = world.maps.row(B)
        world.set(WEB, A)
        world.set(WEB, A, unready(B))
        assert world.maps.contents.backends[number].state == KEEP
        world.set(WEB, A)
        assert world.maps.contents.backends[number].state == GONE

    def test_one_that_was_gone_gets_another_row(self, world: World) -> None:
        world.set(WEB, A, B)
        number, _ = world.maps.row(B)
        world.set(WEB, A, unready(B))
        world.set(WEB, A)
        world.set(WEB, A, B)
        assert world.maps.row(B)[0] != number
        assert world.maps.contents.backends[number].state == GONE

    def test_a_reused_id_has_another_epoch(self, world: World) -> None:
        world.set(WEB, A)
        world.set(WEB)
        world.clock.now += BACKEND_REST_SECONDS
        world.set(WEB, B)
        number, row = world.maps.row(B)
        assert (number, row.epoch) == (1, 2)

    def test_one_that_left_too_long_ago_comes_back_as_new(self, world: World) -> None:
        world.set(WEB, A)
        world.set(WEB)
        world.clock.now += BACKEND_REST_SECONDS
        world.set(WEB, B)
        world.set(WEB, A, B)
        assert world.maps.row(A)[0] == 2

    def test_the_same_endpoint_of_two_services_has_two_rows(self, world: World) -> None:
        world.set(WEB, A)
        other = service("other", cluster_ips=(packed("10.96.0.2"),))
        world.set(other, A)
        rows = list(world.maps.contents.backends.values())
        assert [row.address for row in rows] == [packed(A)] * 2
        assert rows[0].service_id != rows[1].service_id


class TestRanges:
    def test_frontends_with_one_set_share_a_range(self, world: World) -> None:
        world.set(service(external_ips=(packed("192.0.2.1"),)), A, B)
        one, other = (world.maps.contents.frontends[each] for each in (VIP, key("192.0.2.1")))
        assert one.slot_base == other.slot_base

    def test_an_unchanged_set_keeps_its_range(self, world: World) -> None:
        world.set(WEB, A, B)
        writes = world.set(replace(WEB, affinity_seconds=10), A, B)
        assert list(writes.frontends) == [VIP]
        assert not writes.slots

    def test_a_changed_set_gets_a_fresh_one(self, world: World) -> None:
        world.set(WEB, A, B)
        before = world.maps.contents.frontends[VIP]
        world.set(WEB, A)
        assert world.maps.contents.frontends[VIP].slot_base not in range(before.slot_base, before.slot_base + 2)

    def test_maglev_and_back(self, world: World) -> None:
        world.set(WEB, A, B)
        world.set(WEB, A, B, maglev=True)
        frontend = world.maps.contents.frontends[VIP]
        assert (frontend.slot_count, frontend.flags) == (61, FrontendFlags.MAGLEV)
        assert not world.set(WEB, B, A, maglev=True)
        world.set(WEB, A, B)
        assert world.maps.contents.frontends[VIP].slot_count == 2

    def test_source_ranges_follow(self, world: World) -> None:
        balanced = service(load_balancer_ips=(packed("192.0.2.1"),), source_ranges=(source_range("10.0.0.0/8"),))
        world.set(balanced, A)
        (entry,) = world.maps.contents.source_ranges
        frontend = world.maps.contents.frontends[key("192.0.2.1")]
        assert entry == (frontend.service_id, packed("10.0.0.0"), 8)
        world.set(replace(balanced, source_ranges=(source_range("11.0.0.0/8"),)), A)
        assert {entry.network for entry in world.maps.contents.source_ranges} == {packed("11.0.0.0")}
        world.remove(balanced)
        assert not world.maps.contents.source_ranges


class TestLocalPolicy:
    def test_frontends_without_a_local_endpoint_are_counted(self, world: World) -> None:
        local = service(internal_traffic_policy=TrafficPolicy.LOCAL)
        world.set(local, endpoint(A, node_name="there"))
        assert world.tables.without_local_endpoints() == 1
        world.restart()
        assert world.tables.without_local_endpoints() == 1
        world.set(local, endpoint(A, node_name="there"), endpoint(B, node_name="here"))
        assert world.tables.without_local_endpoints() == 0
        world.set(local, endpoint(A, node_name="there"))
        world.remove(local)
        assert world.tables.without_local_endpoints() == 0


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


OLD = service(
    "old", created="2025-01-01T00:00:00Z", cluster_ips=(packed("10.96.0.7"),), external_ips=(packed("9.9.9.9"),)
)
NEW = service(
    "new", created="2026-01-01T00:00:00Z", cluster_ips=(packed("10.96.0.8"),), external_ips=(packed("9.9.9.9"),)
)
CLAIMED = key("9.9.9.9")


class TestContradictions:
    def settle(self, world: World, **endpoints: str) -> None:
        """Plan again what another Service's change disturbed."""
        known = {"old": OLD, "new": NEW}
        for name in world.tables.take_disturbed():
            if name.name in endpoints:
                world.set(known[name.name], endpoints[name.name])

    @pytest.mark.parametrize("order", [(OLD, NEW), (NEW, OLD)])
    def test_the_older_wins_whoever_came_first(self, world: World, order: tuple[Service, Service]) -> None:
        for owner in order:
            world.set(owner, A if owner is OLD else B)
            self.settle(world, old=A, new=B)
        assert world.addresses(CLAIMED) == {A}
        assert world.addresses(key("10.96.0.8")) == {B}
        (conflict,) = world.tables.conflicts()
        assert (conflict.key, conflict.winner, conflict.loser) == (CLAIMED, OLD.key, NEW.key)

    def test_the_loser_takes_over(self, world: World) -> None:
        world.set(OLD, A)
        world.set(NEW, B)
        world.remove(OLD)
        assert world.tables.take_disturbed() == {NEW.key}
        world.set(NEW, B)
        assert world.addresses(CLAIMED) == {B}
        assert world.tables.conflicts() == []

    def test_a_loser_that_goes_away_leaves_the_winner_alone(self, world: World) -> None:
        world.set(OLD, A)
        world.set(NEW, B)
        world.remove(NEW)
        assert world.addresses(CLAIMED) == {A}
        assert world.tables.conflicts() == []
        assert world.tables.take_disturbed() == set()

    def test_a_winner_that_was_created_anew_is_the_younger(self, world: World) -> None:
        world.set(OLD, A)
        world.set(NEW, B)
        world.set(replace(OLD, created="2027-01-01T00:00:00Z"), A)
        assert NEW.key in world.tables.take_disturbed()
        world.set(NEW, B)
        assert world.addresses(CLAIMED) == {B}

    def test_an_unknown_age_is_the_youngest(self, world: World) -> None:
        world.set(replace(OLD, created=""), A)
        world.set(NEW, B)
        assert world.addresses(CLAIMED) == {B}

    def test_unknown_ages_fall_back_to_names(self, world: World) -> None:
        first, second = (replace(each, created="") for each in (OLD, NEW))
        world.set(first, A)
        world.set(second, B)
        assert world.addresses(CLAIMED) == {B}
        assert world.tables.take_disturbed() == {ServiceName("shop", "old")}


def test_names_follow_services_and_ports_and_are_one_object_meanwhile(world: World) -> None:
    world.set(OLD, A)
    names = world.tables.service_names()
    assert {name.partition(":")[0] for name in names.values()} == {"shop/old"}
    world.set(OLD, B)
    assert world.tables.service_names() is names
    world.set(NEW, B)
    assert {name.partition(":")[0] for name in world.tables.service_names().values()} == {"shop/old", "shop/new"}
    world.remove(OLD)
    assert {name.partition(":")[0] for name in world.tables.service_names().values()} == {"shop/new"}
