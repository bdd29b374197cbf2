"""What a run found: raw numbers as JSON beside the command that made them, and tables for people."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench.freshness import Freshness, Memory
from bench.programs import Cost
from bench.rounds import Sample, Summary, summarise
from bench.world import BASELINE, LABELS

RESULTS = Path(__file__).with_name("results")
LATEST = RESULTS / "latest.md"


@dataclass(slots=True)
class Report:
    """Everything that one run measured."""

    parameters: dict[str, Any]
    samples: list[Sample] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    freshness: list[Freshness] = field(default_factory=list)
    seconds_to_start: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "machine": machine(),
            **asdict(self),
            "summaries": [asdict(summary) for summary in summarise(self.samples)],
        }

    def markdown(self) -> str:
        parts = [f"Measured {datetime.now(UTC):%Y-%m-%d} at commit {commit()} on {machine_line()}."]
        parts += [_traffic_table(*key, group) for key, group in _by_setting(summarise(self.samples)).items()]
        parts += [part for part in (self._costs(), self._daemon()) if part]
        return "\n\n".join(parts) + "\n"

    def _costs(self) -> str:
        if not self.costs:
            return ""
        rows = [
            [cost.workload, f"`{cost.program}`", f"{cost.runs_per_request:.1f}", f"{cost.ns_per_run:.0f}"]
            for cost in self.costs
        ]
        return "**Programs** (`bpf_stats`, its own cost included)\n\n" + table(
            ["workload", "program", "runs per request", "ns per run"], rows
        )

    def _daemon(self) -> str:
        rows = [
            [f"memory with {item.services:,} Services (RSS; PSS; private)",
             f"{item.rss:.0f}; {item.pss:.0f}; {item.private:.0f} MiB"]
            for item in self.memory
        ]  # fmt: skip
        for item in self.freshness:
            what = f"{item.changes} changes"
            rows += [
                [f"EndpointSlice event to map, {what} (p50; p99; largest)",
                 f"{item.event_to_map_p50_ms:.1f}; {item.event_to_map_p99_ms:.1f}; {item.event_to_map_max_ms:.1f} ms"],
                [f"PATCH sent to map, {what} (p50; p99)",
                 f"{item.patch_to_map_p50_ms:.1f}; {item.patch_to_map_p99_ms:.1f} ms"],
            ]  # fmt: skip
            if item.lost:
                rows.append(["changes that never reached the map", str(item.lost)])
        rows += [[f"start, {what}", f"{seconds:.1f} s"] for what, seconds in self.seconds_to_start.items()]
        return "**Daemon**\n\n" + table(["", ""], rows) if rows else ""

    def save(self, what: str) -> Path:
        """Write the raw numbers, and the tables as the latest ones; return the path of the former."""
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d-%H%M}-{what}.json"
        path.write_text(json.dumps(self.as_json(), indent=1) + "\n")
        LATEST.write_text(self.markdown())
        return path


def _by_setting(summaries: Iterable[Summary]) -> dict[tuple[int, str], list[Summary]]:
    groups: dict[tuple[int, str], list[Summary]] = {}
    for summary in summaries:
        groups.setdefault((summary.services, summary.cores), []).append(summary)
    return groups


def _traffic_table(services: int, cores: str, group: Sequence[Summary]) -> str:
    """Paths by workloads: the ratio to the baseline and its quartiles; the baseline's own rate in its row."""
    workloads = list(dict.fromkeys(summary.workload for summary in group))
    cells: dict[str, dict[str, str]] = {}
    for summary in group:
        cells.setdefault(summary.path, {})[summary.workload] = _cell(summary)
    ordered = sorted(cells, key=lambda name: list(LABELS).index(name) if name in LABELS else len(LABELS))
    rows = [[LABELS.get(name, name), *(cells[name].get(workload, "") for workload in workloads)] for name in ordered]
    heading = f"**{services:,} Services, {cores}**: requests per second relative to `{BASELINE}` (quartiles)\n\n"
    return heading + table(["path", *workloads], rows)


def _cell(summary: Summary) -> str:
    failed = f", {summary.errors} failed" if summary.errors else ""
    if summary.path == BASELINE:
        return f"1 = {summary.rate:,.0f}/s{failed}"
    return f"{summary.ratio:.2f} ({summary.ratio_low:.2f} to {summary.ratio_high:.2f}){failed}"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def machine() -> dict[str, Any]:
    cpu = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory_kib = re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "kernel": platform.release(),
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "memory_mib": int(memory_kib[1]) // 1024 if memory_kib else 0,
        "load_average": os.getloadavg(),
    }


def machine_line() -> str:
    facts = machine()
    return f"Linux {facts['kernel']}, {facts['cores']} cores ({facts['cpu']}), {facts['memory_mib'] // 1024} GiB"


def commit() -> str:
    def git(*words: str) -> str:
        where = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=where, capture_output=True, text=True, check=False).stdout.strip()

    changed = "+" if git("status", "--porcelain", "--", "../bpf_src", "../kproxy_ebpf") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed
