"""What the report says about the figures that were to be reached."""

from __future__ import annotations

import pytest

from bench import growth, reach, traffic
from bench.paths import BASELINE, BEST, IPTABLES, LOOPBACK
from bench.reach import GOALS, Goal, Verdict
from bench.run import Run, Weight
from bench.samples import RATE, Key, Sample, Spread


def goal(at_most: bool = False) -> Goal:
    return Goal("a figure", 1.25, lambda _: None, at_most=at_most)


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (None, Verdict.UNKNOWN),
        (Spread(1.30, 1.26, 1.33), Verdict.REACHED),
        (Spread(1.25, 1.25, 1.25), Verdict.REACHED),
        (Spread(1.26, 1.20, 1.30), Verdict.BARELY),
        (Spread(1.24, 1.20, 1.30), Verdict.BARELY_MISSED),
        (Spread(1.20, 1.18, 1.22), Verdict.MISSED),
    ],
)
def test_at_least(measured: Spread | None, verdict: Verdict) -> None:
    assert goal().verdict(measured) is verdict


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (Spread(1.20, 1.18, 1.22), Verdict.REACHED),
        (Spread(1.24, 1.20, 1.30), Verdict.BARELY),
        (Spread(1.26, 1.20, 1.30), Verdict.BARELY_MISSED),
        (Spread(1.30, 1.26, 1.33), Verdict.MISSED),
    ],
)
def test_at_most(measured: Spread, verdict: Verdict) -> None:
    assert goal(at_most=True).verdict(measured) is verdict


def run_with(rates: dict[Key, float], weights: list[Weight] | None = None) -> Run:
    return Run(samples=[Sample(key, 0, {RATE: rate}, {}) for key, rate in rates.items()], weights=weights or [])


def found(run: Run) -> dict[str, float]:
    measured = {each.what: each.found(run) for each in GOALS}
    return {what: spread.median for what, spread in measured.items() if spread}


def test_traffic_is_compared_on_one_core() -> None:
    keys = [Key(traffic.TABLE, traffic.ON_ONE_CORE, "tcp short", path) for path in (BASELINE, LOOPBACK, BEST)]
    run = run_with(dict(zip(keys, (10, 15, 13), strict=True)))
    run.samples += run_with({keys[2]._replace(setting=traffic.ON_ALL_CORES): 99}).samples
    assert found(run) == {
        "hybrid, redirect to direct pod IP, short connections": pytest.approx(1.3),
        "hybrid, redirect to loopback, short connections": pytest.approx(13 / 15),
    }


def test_kube_proxy_is_compared_with_as_many_services() -> None:
    keys = [Key(growth.SERVICES, size, "tcp short", path) for size in ("1000", "5000") for path in (BEST, IPTABLES)]
    run = run_with(dict(zip(keys, (1, 1, 5, 2), strict=True)))
    assert found(run) == {"hybrid, redirect to kube-proxy iptables, short, 5,000 Services": pytest.approx(2.5)}


def test_what_is_kept_is_told_of_both_kinds_of_connections() -> None:
    few, most = (Key(growth.SERVICES, size, "tcp keepalive", BEST) for size in ("1", "50000"))
    assert found(run_with({few: 200, most: 197})) == {"kept from 1 to 50,000 Services, keepalive": pytest.approx(0.985)}


def test_memory_is_that_of_the_daemon_in_the_traffic_table_in_millions_of_octets() -> None:
    weights = [
        Weight(traffic.TABLE, "", BEST, 6, rss=70, pss=50),
        Weight(traffic.TABLE, "", IPTABLES, 6, rss=500, pss=500),
        Weight(growth.SERVICES, "50000", BEST, 50_000, rss=300, pss=300),
    ]
    assert found(run_with({}, weights)) == {
        "memory of the daemon with few Services (RSS)": pytest.approx(70 * 1.048576)
    }


def test_every_goal_of_an_empty_run_is_unknown() -> None:
    assert {each.verdict(each.found(Run())) for each in reach.GOALS} == {Verdict.UNKNOWN}
