"""What each BPF program costs: runs and nanoseconds as the kernel counts them (sysctl kernel.bpf_stats_enabled).

The statistics cost time themselves (two clock reads a run, about 20 to 40 ns), so traffic is never compared
while they are on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import load
from bench.load import Workload
from bench.world import World
from kproxy_ebpf.datapath.bpf import Program

SWITCH = Path("/proc/sys/kernel/bpf_stats_enabled")


@dataclass(frozen=True, slots=True)
class Cost:
    """One program under one workload. A tail-called program's time is its caller's."""

    workload: str
    program: str
    runs_per_request: float
    ns_per_run: float


def measure(world: World, path: str, workloads: Sequence[Workload], *, seconds: float) -> list[Cost]:
    """The cost of the programs on the node of `path`, one core for all."""
    route = world.routes[path]
    pins = world.daemons[path].bpffs / "kproxy-ebpf" / "current" / "programs"
    world.pin_servers([0])
    costs = []
    with _statistics():
        for workload in workloads:
            before = _read(pins)
            result = load.run(
                world.program, route.place, workload, route.targets, route.port, seconds=seconds, cores="0", warm_up=0
            )
            after = _read(pins)
            for name, (runs, nanoseconds) in after.items():
                ran = runs - before[name][0]
                if ran > result["requests"] / 100:
                    costs.append(
                        Cost(str(workload), name, ran / result["requests"], (nanoseconds - before[name][1]) / ran)
                    )
    return costs


@contextmanager
def _statistics() -> Iterator[None]:
    was = SWITCH.read_text()
    SWITCH.write_text("1")
    try:
        yield
    finally:
        SWITCH.write_text(was)


def _read(pins: Path) -> dict[str, tuple[int, int]]:
    """(runs, nanoseconds) by program."""
    return {path.name: _read_one(path) for path in sorted(pins.iterdir())}


def _read_one(path: Path) -> tuple[int, int]:
    with Program.open(path) as program:
        told = Path(f"/proc/self/fdinfo/{program.fd}").read_text()
    values = dict(re.findall(r"^(run_\w+):\s+(\d+)$", told, re.MULTILINE))
    return int(values["run_cnt"]), int(values["run_time_ns"])
