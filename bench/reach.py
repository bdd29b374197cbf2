"""The figures that this project set out to reach, and what a run says about each. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from bench import growth, traffic
from bench.paths import BASELINE, BEST, IPTABLES, LOOPBACK, NFTABLES
from bench.run import Run
from bench.samples import RATE, Key, Samples, Spread
from bench.workloads import KEEPALIVE, SHORT, Echo

MANY, MOST, FEW = "5000", "50000", "1"  # Services
MIB = 1024 * 1024 / 1e6  # in MB


class Verdict(StrEnum):
    REACHED = "reached"
    BARELY = "reached, within the spread"
    MISSED = "**not reached**"
    BARELY_MISSED = "**not reached**, within the spread"
    UNKNOWN = "not measured"


@dataclass(frozen=True, slots=True)
class Goal:
    """`bound` is the least, or with `at_most` the most, that `found` may say."""

    what: str
    bound: float
    found: Callable[[Run], Spread | None]
    at_most: bool = False
    unit: str = "times"

    def verdict(self, measured: Spread | None) -> Verdict:
        """By the median; "within the spread" where the quartiles lie on both sides of the bound."""
        if measured is None:
            return Verdict.UNKNOWN
        sign = -1 if self.at_most else 1
        good, all_good, any_good = (
            sign * value >= sign * self.bound
            for value in (
                measured.median,
                measured.high if self.at_most else measured.low,
                measured.low if self.at_most else measured.high,
            )
        )
        if good:
            return Verdict.REACHED if all_good else Verdict.BARELY
        return Verdict.BARELY_MISSED if any_good else Verdict.MISSED


def _against(workload: Echo, other: str) -> Callable[[Run], Spread | None]:
    """The best of ours to another path, on one node and one core."""

    def found(run: Run) -> Spread | None:
        best = Key(traffic.TABLE, traffic.ON_ONE_CORE, workload.name, BEST)
        return Samples(run.samples).ratio(best, best._replace(path=other), RATE)

    return found


def _with_many_services(other: str) -> Callable[[Run], Spread | None]:
    def found(run: Run) -> Spread | None:
        best = Key(growth.SERVICES, MANY, SHORT.name, BEST)
        return Samples(run.samples).ratio(best, best._replace(path=other), RATE)

    return found


def _kept(workload: Echo) -> Callable[[Run], Spread | None]:
    """What is left with most Services of what there was with few."""

    def found(run: Run) -> Spread | None:
        most = Key(growth.SERVICES, MOST, workload.name, BEST)
        return Samples(run.samples).ratio(most, most._replace(setting=FEW), RATE)

    return found


def _memory(run: Run) -> Spread | None:
    found = [each.rss * MIB for each in run.weights if each.table == traffic.TABLE and each.path == BEST]
    return Spread.of(found) if found else None


GOALS = (
    Goal("hybrid, redirect to direct pod IP, short connections", 1.25, _against(SHORT, BASELINE)),
    Goal("hybrid, redirect to direct pod IP, keepalive", 1.20, _against(KEEPALIVE, BASELINE)),
    Goal("hybrid, redirect to loopback, short connections", 0.86, _against(SHORT, LOOPBACK)),
    Goal("hybrid, redirect to loopback, keepalive", 0.95, _against(KEEPALIVE, LOOPBACK)),
    Goal("hybrid, redirect to kube-proxy iptables, short, 5,000 Services", 2.4, _with_many_services(IPTABLES)),
    Goal("hybrid, redirect to kube-proxy nftables, short, 5,000 Services", 1.3, _with_many_services(NFTABLES)),
    Goal("kept from 1 to 50,000 Services, short connections", 0.99, _kept(SHORT)),
    Goal("kept from 1 to 50,000 Services, keepalive", 0.99, _kept(KEEPALIVE)),
    Goal("memory of the daemon with few Services (RSS)", 75, _memory, at_most=True, unit="MB"),
)
