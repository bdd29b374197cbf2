"""Slots that are full: sets shrink and change where they lie, and Maglev gives way."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from simulate import CAPACITIES, NODE, VIP, WEB, A, B, C, World, endpoint, key, service, slice_of

from kproxy_ebpf.contract.layouts import FrontendFlags
from kproxy_ebpf.errors import MapFullError
from kproxy_ebpf.model.services import TrafficPolicy, packed
from kproxy_ebpf.plan.services.plan import PlanSettings, plan_service
from kproxy_ebpf.plan.tables.allocate import QUARANTINE_SECONDS

D = "1.1.1.4"
OTHER = service("other", cluster_ips=(packed("10.96.0.2"),))
THIRD = service("third", cluster_ips=(packed("10.96.0.3"),))


def full_world(slots: int) -> World:
    world = World(replace(CAPACITIES, slots=slots))
    world.maps.in_place = True
    return world


def test_a_set_shrinks_although_no_slot_is_free() -> None:
    world = full_world(4)
    world.set(WEB, A, B, C, D)
    for left in ([A, C, D], [C, D], [D], []):
        world.set(WEB, *left)
        assert world.addresses() == set(left)
    world.clock.now += QUARANTINE_SECONDS
    world.set(OTHER, A, B, C, D)
    assert world.addresses(key("10.96.0.2")) == {A, B, C, D}


def test_what_a_set_gives_up_rests_and_is_used_again() -> None:
    world = full_world(4)
    world.set(WEB, A, B, C, D)
    world.set(WEB, A, B)
    with pytest.raises(MapFullError):
        world.set(OTHER, C, D)
    world.maps.in_place = False
    world.clock.now += QUARANTINE_SECONDS
    world.set(OTHER, C, D)
    assert world.addresses(key("10.96.0.2")) == {C, D}
    assert world.addresses() == {A, B}


def test_a_member_is_exchanged_although_no_slot_is_free() -> None:
    world = full_world(3)
    world.set(WEB, A, B, C)
    world.set(WEB, A, D, C)
    assert world.addresses() == {A, C, D}


def test_a_set_that_grows_beyond_the_room_stays_as_it_was() -> None:
    world = full_world(3)
    world.set(WEB, A, B, C)
    with pytest.raises(MapFullError, match="slots_v4"):
        world.set(WEB, A, B, C, D)
    assert world.addresses() == {A, B, C}
    world.set(WEB, B, C, D)
    assert world.addresses() == {B, C, D}


def test_two_sets_of_a_port_never_see_each_others_members() -> None:
    """The ClusterIP leads to this node's endpoint alone, the externalIP to all."""
    world = full_world(4)
    local = service(external_ips=(packed("192.0.2.1"),), internal_traffic_policy=TrafficPolicy.LOCAL)
    here, there = endpoint(A, node_name="here"), [endpoint(each, node_name="there") for each in (B, C)]
    world.set(local, here, *there)
    with pytest.raises(MapFullError):
        world.set(local, here, there[0], endpoint(D, node_name="there"))
    world.set(local, here, there[0])
    assert world.addresses() == {A}
    assert world.addresses(key("192.0.2.1")) == {A, B}


@pytest.mark.parametrize("left", [[A, C, D], [B], [A, "1.1.1.9"]])
def test_a_write_that_fails_half_way_is_made_good(left: list[str]) -> None:
    for fail_after in range(1, 9):
        world = full_world(4)
        world.set(WEB, A, B, C, D)
        world.tables.replace(WEB.key, plan_service(WEB, (slice_of(WEB, *left),), NODE, PlanSettings()))
        with contextlib.suppress(OSError):
            world.maps.perform(world.tables.writes, fail_after)
        assert world.addresses() is not None
        world.flush()
        assert world.addresses() == set(left)


def test_maglev_gives_way_to_random_and_comes_back() -> None:
    world = full_world(200)
    world.maps.in_place = False
    for owner in (WEB, OTHER, THIRD):
        world.set(owner, A, B, maglev=True)
    third = world.maps.contents.frontends[key("10.96.0.3")]
    assert (third.slot_count, third.flags) == (2, 0)
    assert world.tables.at_random == {THIRD.key}
    assert not world.set(THIRD, A, B, maglev=True)
    world.remove(WEB)
    world.clock.now += QUARANTINE_SECONDS
    world.set(THIRD, A, B, maglev=True)
    third = world.maps.contents.frontends[key("10.96.0.3")]
    assert (third.slot_count, third.flags) == (61, FrontendFlags.MAGLEV)
    assert world.tables.at_random == set()


def test_a_service_that_is_gone_is_no_longer_at_random() -> None:
    world = full_world(60)
    world.set(WEB, A, B, maglev=True)
    assert world.tables.at_random == {WEB.key}
    world.remove(WEB)
    assert world.tables.at_random == set()


def test_a_table_is_written_anew_where_it_lies_before_it_gives_way() -> None:
    world = full_world(100)
    world.set(WEB, A, B, maglev=True)
    world.set(WEB, A, C, maglev=True)
    assert world.maps.contents.frontends[VIP].flags == FrontendFlags.MAGLEV
    assert world.addresses() == {A, C}


def test_services_with_maglev_fit_by_the_hundred() -> None:
    """In the proportion of 10,000 Services of 20 endpoints to the default of 1,048,576 slots."""
    world = World(replace(CAPACITIES, slots=10_485, frontends=10_000, backends=10_000))
    owners = [service(f"s{number}", cluster_ips=(packed(f"10.97.0.{number + 1}"),)) for number in range(100)]
    for owner in owners:
        slices = (slice_of(owner, *[f"1.1.1.{each + 1}" for each in range(20)]),)
        world.tables.replace(owner.key, plan_service(owner, slices, NODE, PlanSettings(maglev=True)))
    world.maps.contents.frontends.update(world.tables.writes.frontends)
    assert 50 < len(world.tables.at_random) < 100
    assert sum(entry.slot_count > 0 for entry in world.maps.contents.frontends.values()) == 100
