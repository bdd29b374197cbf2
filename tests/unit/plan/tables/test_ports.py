"""SEMANTICS: which row an endpoint has, under which id and epoch."""

from __future__ import annotations

from simulate import GONE, KEEP, USABLE, WEB, A, B, C, World, service, unready

from kproxy_ebpf.model.services import packed
from kproxy_ebpf.plan.tables.ports import BACKEND_REST_SECONDS


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
