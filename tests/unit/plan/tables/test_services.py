"""SEMANTICS: connections over time, as writes to the tables; ranges of slots; names."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulate import (
    GONE,
    KEEP,
    LEFT,
    NODE,
    TCP,
    USABLE,
    VIP,
    WEB,
    A,
    B,
    C,
    World,
    draining,
    endpoint,
    key,
    service,
    slice_of,
    unready,
)

from kproxy_ebpf.contract.layouts import BackendFlags, FrontendFlags
from kproxy_ebpf.model.service_tables import TableWrites
from kproxy_ebpf.model.services import ServicePort, SlicePort, TrafficPolicy, packed, source_range
from kproxy_ebpf.plan.services.plan import PlanSettings, plan_service


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


def test_names_follow_services_and_ports_and_are_one_object_meanwhile(world: World) -> None:
    old, new = service("old", cluster_ips=(packed("10.96.0.7"),)), service("new", cluster_ips=(packed("10.96.0.8"),))
    world.set(old, A)
    names = world.tables.service_names()
    assert {name.partition(":")[0] for name in names.values()} == {"shop/old"}
    world.set(old, B)
    assert world.tables.service_names() is names
    world.set(new, B)
    assert {name.partition(":")[0] for name in world.tables.service_names().values()} == {"shop/old", "shop/new"}
    world.remove(old)
    assert {name.partition(":")[0] for name in world.tables.service_names().values()} == {"shop/new"}
