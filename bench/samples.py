"""What is measured and how it is summarised. Pure: no clock, no machine.

Everything is compared within its round: a ratio is taken between two samples of one round, and what is told is the
median of the rounds' ratios with its quartiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import NamedTuple

from bench.paths import BASELINE

SHARED = ""  # the setting of a baseline that stands for all settings of its table

RATE, P50, P99, P999 = "rate", "p50_us", "p99_us", "p999_us"
OFFERED = "offered"  # requests due each second, at a fixed rate
BITS, CPU_PER_GB = "bits_per_second", "cpu_seconds_per_gb"


class Key(NamedTuple):
    """What was measured: `setting` is the table's variable (cores, a number of Services, quiet or not)."""

    table: str
    setting: str
    workload: str
    path: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement; `errors` counts failed requests by their errno's name."""

    key: Key
    round: int
    metrics: Mapping[str, float]
    errors: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Spread:
    """The median and the quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
        return cls(median(values), low, high)


class Samples:
    """All samples of a run, by what was measured and by round."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._by_key: dict[Key, dict[int, Sample]] = {}
        for sample in samples:
            self._by_key.setdefault(sample.key, {})[sample.round] = sample

    def keys(self, table: str) -> list[Key]:
        return [key for key in self._by_key if key.table == table]

    def value(self, key: Key, metric: str) -> Spread | None:
        """None where it was not measured."""
        values = [sample.metrics[metric] for sample in self._rounds(key) if metric in sample.metrics]
        return Spread.of(values) if values else None

    def ratio(self, top: Key, bottom: Key, metric: str) -> Spread | None:
        """`top` to `bottom`, within each round that has both; None where there is none."""
        below = self._by_key.get(bottom, {})
        ratios = [
            sample.metrics[metric] / below[sample.round].metrics[metric]
            for sample in self._rounds(top)
            if sample.round in below and metric in sample.metrics and below[sample.round].metrics.get(metric)
        ]
        return Spread.of(ratios) if ratios else None

    def relative(self, key: Key, metric: str) -> Spread | None:
        """To the baseline of its table and setting."""
        return self.ratio(key, self.baseline(key), metric)

    def baseline(self, key: Key) -> Key:
        own = key._replace(path=BASELINE)
        return own if own in self._by_key else own._replace(setting=SHARED)

    def errors(self, key: Key) -> int:
        return sum(sum(sample.errors.values()) for sample in self._rounds(key))

    def _rounds(self, key: Key) -> Iterable[Sample]:
        return self._by_key.get(key, {}).values()
