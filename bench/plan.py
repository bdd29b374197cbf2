"""How much is measured: `make bench` and `make bench-full` are two plans of one bench."""

from __future__ import annotations

from dataclasses import dataclass

from bench.paths import BASELINE, BESIDE, BEST, IPTABLES, LOOPBACK, NFTABLES, PATHS, PLAIN, our_name
from bench.workloads import AB_SHORT, ALL, BULK, TCP, UDP, Workload


@dataclass(frozen=True, slots=True)
class Plan:
    """`seconds` is the length of one measurement, `rounds` how often each is made. A table that would begin after
    `minutes` is left out, and the report says so; so is one of no sizes.
    """

    name: str
    minutes: float
    rounds: int
    seconds: float
    paths: tuple[str, ...]
    workloads: tuple[Workload, ...]
    two_node_paths: tuple[str, ...]
    two_node_workloads: tuple[Workload, ...]
    grown_paths: tuple[str, ...]  # beside the baseline
    services: tuple[int, ...]
    starts: tuple[int, ...]  # with how many Services
    pods: tuple[int, ...]
    backends: tuple[int, ...]
    all_cores: bool
    churn_services: int
    churn_rounds: int
    fresh_changes: int
    effect_seconds: float  # how long a proxy may take to its first effect


SHORT_LIST = (LOOPBACK, BASELINE, PLAIN, BEST, NFTABLES, IPTABLES)

QUICK = Plan(
    name="quick",
    minutes=8,
    rounds=3,
    seconds=0.4,
    paths=SHORT_LIST,
    workloads=(*TCP, UDP[1], AB_SHORT, BULK),
    two_node_paths=(BASELINE, our_name("hybrid", "stack"), BEST, NFTABLES),
    two_node_workloads=TCP,
    grown_paths=(BEST, NFTABLES, IPTABLES),
    services=(1, 5000),
    starts=(1, 10_000),
    pods=(),
    backends=(),
    all_cores=False,
    churn_services=1000,
    churn_rounds=2,
    fresh_changes=200,
    effect_seconds=90,
)
FULL = Plan(
    name="full",
    minutes=45,
    rounds=5,
    seconds=0.6,
    paths=tuple(PATHS),
    workloads=ALL,
    two_node_paths=(BASELINE, PLAIN, our_name("socket", "stack"), BEST, BESIDE, NFTABLES, IPTABLES),
    two_node_workloads=(*TCP, *UDP, BULK),
    grown_paths=(PLAIN, BEST, NFTABLES, IPTABLES),
    services=(1, 1000, 5000, 50_000),
    starts=(1, 10_000),
    pods=(1, 30, 156),
    backends=(1, 30, 1000),
    all_cores=True,
    churn_services=5000,
    churn_rounds=5,
    fresh_changes=500,
    effect_seconds=120,
)
