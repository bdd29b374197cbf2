"""Ratios within a round, their medians and quartiles."""

from __future__ import annotations

import pytest

from bench.paths import BASELINE
from bench.samples import RATE, SHARED, Key, Sample, Samples, Spread

DIRECT = Key("traffic", "one core", "tcp short", BASELINE)
OURS = DIRECT._replace(path="tc-stack")


def samples(rates: dict[Key, list[float]]) -> Samples:
    return Samples(
        Sample(key, number, {RATE: rate}, {}) for key, series in rates.items() for number, rate in enumerate(series)
    )


def test_a_ratio_is_taken_within_its_round_so_a_machine_that_slows_down_slows_both() -> None:
    slowing = samples({DIRECT: [100, 50, 10], OURS: [120, 60, 12]})
    assert slowing.relative(OURS, RATE) == Spread(1.2, pytest.approx(1.2), pytest.approx(1.2))


def test_the_median_round_counts_not_the_mean() -> None:
    assert samples({DIRECT: [1, 1, 1], OURS: [1, 1.1, 9]}).relative(OURS, RATE) == Spread(
        1.1, 1.05, pytest.approx(5.05)
    )


def test_rounds_that_only_one_of_both_has_are_left_out() -> None:
    found = samples({DIRECT: [2, 2], OURS: [3, 3, 100]})
    assert found.ratio(OURS, DIRECT, RATE) == Spread(1.5, 1.5, 1.5)


def test_what_was_not_measured_has_no_ratio() -> None:
    found = samples({OURS: [1]})
    assert found.relative(OURS, RATE) is None
    assert found.value(DIRECT, RATE) is None
    assert found.value(OURS, "p99_us") is None


def test_a_baseline_of_zero_is_no_baseline() -> None:
    assert samples({DIRECT: [0], OURS: [1]}).relative(OURS, RATE) is None


def test_a_table_may_share_one_baseline_among_its_settings() -> None:
    shared = Key("services", SHARED, "tcp short", BASELINE)
    many = Key("services", "5000", "tcp short", "nftables")
    assert samples({shared: [4], many: [3]}).relative(many, RATE) == Spread(0.75, 0.75, 0.75)


def test_an_own_baseline_goes_before_the_shared_one() -> None:
    shared, own = (Key("pods", setting, "tcp short", BASELINE) for setting in (SHARED, "156"))
    ours = own._replace(path="tc-stack")
    assert samples({shared: [1], own: [4], ours: [2]}).relative(ours, RATE) == Spread(0.5, 0.5, 0.5)


def test_errors_are_those_of_all_rounds() -> None:
    failed = Samples([Sample(OURS, 0, {}, {"ECONNREFUSED": 2}), Sample(OURS, 1, {}, {"ETIMEDOUT": 1, "EPIPE": 1})])
    assert failed.errors(OURS) == 4
