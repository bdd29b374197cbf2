"""Two Services claim one frontend: the older one has it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulate import A, B, World, key, service

from kproxy_ebpf.model.services import Service, ServiceName, packed

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
