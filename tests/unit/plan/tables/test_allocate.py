"""Ids and ranges: order, rest, exhaustion, and that nothing is ever handed out twice."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulate import Clock

from kproxy_ebpf.errors import MapFullError
from kproxy_ebpf.plan.tables.allocate import QUARANTINE_SECONDS, IdPool, RangeAllocator


@pytest.fixture
def clock() -> Clock:
    return Clock()


class TestIds:
    def test_zero_is_never_used_and_low_ids_come_first(self, clock: Clock) -> None:
        pool = IdPool("backends_v4", 10, clock)
        assert [pool.take() for _ in range(3)] == [1, 2, 3]

    def test_the_one_that_rested_longest_is_reused(self, clock: Clock) -> None:
        pool = IdPool("backends_v4", 10, clock)
        for _ in range(3):
            pool.take()
        pool.release(2)
        clock.now += 1
        pool.release(1)
        clock.now += QUARANTINE_SECONDS
        assert [pool.take() for _ in range(3)] == [2, 1, 4]

    def test_nothing_is_reused_before_its_rest(self, clock: Clock) -> None:
        pool = IdPool("backends_v4", 10, clock)
        pool.release(pool.take())
        clock.now += QUARANTINE_SECONDS - 0.1
        assert pool.take() == 2

    def test_full(self, clock: Clock) -> None:
        pool = IdPool("backends_v4", 3, clock)
        pool.take()
        pool.release(pool.take())
        with pytest.raises(MapFullError, match="backends_v4"):
            pool.take()
        clock.now += QUARANTINE_SECONDS
        assert pool.take() == 2

    def test_a_long_rest_is_cut_short_in_need_only(self, clock: Clock) -> None:
        pool = IdPool("backends_v4", 4, clock, rest_seconds=120)
        pool.release(pool.take())
        clock.now += QUARANTINE_SECONDS
        assert [pool.take(), pool.take(), pool.take()] == [2, 3, 1]

    def test_reclaim(self, clock: Clock) -> None:
        pool = IdPool("backends_v4", 10, clock)
        number = pool.take()
        assert not pool.reclaim(number)
        pool.release(number)
        assert pool.reclaim(number)
        clock.now += QUARANTINE_SECONDS
        assert pool.take() != number

    def test_adopt_fills_holes_and_lets_released_ids_rest(self, clock: Clock) -> None:
        pool = IdPool("backends_v4", 10, clock)
        pool.adopt([1, 5], [3])
        assert pool.used() == 2
        assert [pool.take() for _ in range(3)] == [2, 4, 6]
        clock.now += QUARANTINE_SECONDS
        assert pool.take() == 3


class TestRanges:
    def test_exhaustion_names_the_table(self, clock: Clock) -> None:
        ranges = RangeAllocator("slots_v6", 10, clock)
        ranges.take(8)
        with pytest.raises(MapFullError, match="slots_v6"):
            ranges.take(3)
        assert ranges.take(2) == 8

    def test_neighbours_are_joined_after_their_rest(self, clock: Clock) -> None:
        ranges = RangeAllocator("slots_v4", 9, clock)
        bases = [ranges.take(3) for _ in range(3)]
        for base in (bases[0], bases[2], bases[1]):
            ranges.release(base, 3)
        with pytest.raises(MapFullError):
            ranges.take(1)
        clock.now += QUARANTINE_SECONDS
        assert ranges.take(9) == 0

    def test_the_tightest_fit_is_taken(self, clock: Clock) -> None:
        ranges = RangeAllocator("slots_v4", 100, clock)
        ranges.adopt([(10, 5), (18, 2)])
        assert ranges.take(3) == 15

    def test_adopt_takes_shared_ranges_once(self, clock: Clock) -> None:
        ranges = RangeAllocator("slots_v4", 10, clock)
        ranges.adopt([(2, 3), (2, 3)])
        assert ranges.used() == 3

    @given(st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.floats(0, 3)), max_size=60))
    @settings(deadline=None)
    def test_ranges_never_overlap_nor_get_lost(self, steps: list[tuple[int, bool, float]]) -> None:
        clock = Clock()
        ranges = RangeAllocator("slots_v4", 64, clock)
        held: list[tuple[int, int]] = []
        for count, take, seconds in steps:
            clock.now += seconds
            if take or not held:
                try:
                    held.append((ranges.take(count), count))
                except MapFullError:
                    continue
                cells = [cell for base, length in held for cell in range(base, base + length)]
                assert len(cells) == len(set(cells))
                assert max(cells) < 64
            else:
                ranges.release(*held.pop(count % len(held)))
        for base, count in held:
            ranges.release(base, count)
        clock.now += QUARANTINE_SECONDS + 3
        assert ranges.take(64) == 0
