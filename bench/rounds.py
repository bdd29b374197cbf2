"""Traffic in rounds: every path is measured once a round, one after the other, and compared within its round.

A machine's speed drifts (other tenants, heat, frequencies); paths measured seconds apart see the same machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

from bench import load
from bench.load import Workload
from bench.world import BASELINE, World

ALL_CORES = "all"


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement. `latency_us` and `errors` as load_client.c reports them."""

    services: int
    cores: str
    workload: str
    round: int
    path: str
    rate: float
    latency_us: dict[str, float]
    errors: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    world: World,
    workloads: Sequence[Workload],
    *,
    rounds: int,
    seconds: float,
    core_list: Sequence[int],
    label: str,
    progress: Callable[[str], None],
) -> list[Sample]:
    """In each of `rounds` all workloads over all paths, `seconds` each, on the cores `core_list` (named `label`)."""
    world.pin_servers(core_list)
    cores = ",".join(map(str, core_list))
    samples = []
    for number in range(rounds):
        for workload in workloads:
            for path in _rotated(list(world.routes.values()), number):
                result = load.run(
                    world.program, path.place, workload, path.targets, path.port, seconds=seconds, cores=cores
                )
                samples.append(
                    Sample(
                        world.service_count, label, str(workload), number, path.name,
                        result["rate"], result["latency_us"], result["errors"],
                    )
                )  # fmt: skip
        progress(f"{world.service_count} Services, {label}: round {number + 1} of {rounds}")
    return samples


def _rotated(items: list[Any], by: int) -> list[Any]:
    """Each round begins with another path, so that none always follows the same one."""
    by %= len(items)
    return items[by:] + items[:by]


@dataclass(frozen=True, slots=True)
class Summary:
    """One path under one workload: medians over the rounds, `ratio` to the same round's baseline with its quartiles."""

    services: int
    cores: str
    workload: str
    path: str
    rate: float
    ratio: float
    ratio_low: float
    ratio_high: float
    p50_us: float
    p99_us: float
    errors: int


def summarise(samples: Iterable[Sample]) -> list[Summary]:
    groups: dict[tuple[int, str, str, str], dict[int, Sample]] = {}
    for sample in samples:
        key = (sample.services, sample.cores, sample.workload, sample.path)
        groups.setdefault(key, {})[sample.round] = sample
    return [_summary(key, group, groups[*key[:3], BASELINE]) for key, group in groups.items()]


def _summary(key: tuple[int, str, str, str], group: dict[int, Sample], base: dict[int, Sample]) -> Summary:
    ratios = [sample.rate / base[number].rate for number, sample in group.items()]
    low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    members = group.values()
    return Summary(
        *key,
        rate=median(sample.rate for sample in members),
        ratio=median(ratios),
        ratio_low=low,
        ratio_high=high,
        p50_us=median(sample.latency_us["p50"] for sample in members),
        p99_us=median(sample.latency_us["p99"] for sample in members),
        errors=sum(sum(sample.errors.values()) for sample in members),
    )
