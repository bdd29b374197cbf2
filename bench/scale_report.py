"""What `bench.scale` found: raw numbers as JSON beside the command that made them, and a table for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.run import RESULTS, Freshness, commit, machine, machine_line
from bench.tables import label, table
from bench.usage import Usage


@dataclass(frozen=True, slots=True)
class Result:
    """One way at one size. Times in seconds where not said, CPU in percent of one core.

    `first_effect` runs from the start of the process to the first answer through the last Service's VIP. `sync_metric`
    is what the process says that its syncs took until then. None: there was no effect in all the time that it got.
    `restart` (ours only): a start beside the tables of the last run, until everything is in force again. Changes are
    measured from the patch sent to the packet.
    """

    way: str
    services: int
    endpoints: int
    load_average: float
    memory: Usage
    memory_after: Usage | None = None
    first_effect: float | None = None
    sync_metric: float | None = None
    idle_cpu_percent: float | None = None
    changes: int = 0
    change_p50_ms: float | None = None
    change_p99_ms: float | None = None
    cpu_ms_per_change: float | None = None
    restart: float | None = None
    fresh: Freshness | None = None


FIRST_SYNC_SECONDS = 240  # how long a proxy may take to its first effect

ROWS: dict[str, Callable[[Result], str]] = {
    "process start to first effect at the packet": lambda it: (
        f"none in {FIRST_SYNC_SECONDS} s" if it.first_effect is None else f"{it.first_effect:.2f} s"
    ),
    "of it in syncs, by its own metric": lambda it: _number(it.sync_metric, "s", 2),
    "memory after the first sync (RSS; PSS; peak RSS)": lambda it: _memory(it.memory),
    "memory after all changes": lambda it: _memory(it.memory_after),
    "CPU while nothing changes": lambda it: _number(it.idle_cpu_percent, "%", 2),
    "PATCH sent to effect at the packet (p50; p99)": lambda it: (
        f"{_number(it.change_p50_ms)}; {_number(it.change_p99_ms)}"
    ),
    "changes of which": lambda it: str(it.changes),
    "CPU for each": lambda it: _number(it.cpu_ms_per_change),
    "EndpointSlice event to map, up to 50 a second (p50; p99; largest)": lambda it: _fresh(it.fresh),
    "start beside full tables, all in force": lambda it: _number(it.restart, "s", 2),
    "load average before": lambda it: f"{it.load_average:.1f}",
}


@dataclass(frozen=True, slots=True)
class Report:
    """One run. `note` says what else the machine did."""

    command: str
    note: str
    seconds_to_fill: float
    results: Sequence[Result]

    @property
    def size(self) -> tuple[int, int]:
        return self.results[0].services, self.results[0].endpoints

    def markdown(self) -> str:
        services, endpoints = self.size
        rows = [[name, *(cell(result) for result in self.results)] for name, cell in ROWS.items()]
        parts = [
            f"**{services:,} Services of {endpoints} endpoints**: `{self.command}`",
            table(["", *(label(result.way) for result in self.results)], rows),
            f"Measured {datetime.now(UTC):%Y-%m-%d} at {commit()} on {machine_line(machine())}. {self.note}".rstrip(),
        ]
        return "\n\n".join(parts) + "\n"

    def save(self) -> Path:
        """Write the raw numbers, and the table beside them; return the path of the latter."""
        services, endpoints = self.size
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d-%H%M}-scale-{services}x{endpoints}.json"
        path.write_text(json.dumps({"commit": commit(), "machine": machine(), **asdict(self)}, indent=1) + "\n")
        latest = RESULTS / f"scale-{services}x{endpoints}.md"
        latest.write_text(self.markdown())
        return latest


def _number(value: float | None, unit: str = "ms", digits: int = 1) -> str:
    return "" if value is None else f"{value:,.{digits}f} {unit}"


def _memory(usage: Usage | None) -> str:
    if usage is None:
        return ""
    return f"{usage.rss:.0f}; {usage.pss:.0f}; {usage.peak_rss:.0f} MiB"


def _fresh(fresh: Freshness | None) -> str:
    if fresh is None:
        return ""
    lost = f", {fresh.lost} of {fresh.changes} lost" if fresh.lost else ""
    times = (fresh.event_to_map_p50_ms, fresh.event_to_map_p99_ms, fresh.event_to_map_max_ms)
    return "; ".join(f"{time:.1f}" for time in times) + f" ms{lost}"
