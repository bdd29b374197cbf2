"""Maglev tables: shares, disruption, and that every node makes the same one."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy_ebpf.model.services import packed
from kproxy_ebpf.plan.services.endpoints import Target
from kproxy_ebpf.plan.services.maglev import SIZES, lookup_table, table_size


def targets(count: int) -> list[Target]:
    return [(bytes((10, 244, number // 256, number % 256)), 8080) for number in range(count)]


def is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def test_sizes_are_primes() -> None:
    assert all(map(is_prime, SIZES))


@pytest.mark.parametrize(("count", "size"), [(0, 0), (1, 1), (2, 61), (6, 61), (7, 251), (20, 251), (1000, 16381)])
def test_table_size(count: int, size: int) -> None:
    assert table_size(count) == size


@given(st.integers(0, 120))
@settings(deadline=None)
def test_shares_differ_by_one_slot_at_most(count: int) -> None:
    table = lookup_table(targets(count))
    shares = Counter(table)
    assert len(table) == table_size(count)
    assert set(shares) == set(range(count))
    if count:
        assert max(shares.values()) - min(shares.values()) <= 1


@pytest.mark.parametrize("count", [8, 20, 90])
def test_one_target_less_moves_little_more_than_its_share(count: int) -> None:
    before = targets(count)
    moved = []
    for absent in range(count):
        after = before[:absent] + before[absent + 1 :]
        old = [before[index] for index in lookup_table(before)]
        new = [after[index] for index in lookup_table(after)]
        moved.append(
            sum(one != other and one != before[absent] for one, other in zip(old, new, strict=True)) / len(old)
        )
    assert sum(moved) / len(moved) < 0.12


def test_the_table_is_pinned() -> None:
    """Another hash would deal every node's connections anew at an upgrade."""
    table = lookup_table([(packed("10.0.0.1"), 80), (packed("10.0.0.2"), 80), (packed("10.0.0.3"), 80)])
    assert "".join(map(str, table)) == PINNED


PINNED = "1011210212010112020102000111201221001021022010012212220201220"
