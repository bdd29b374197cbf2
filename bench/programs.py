"""What each BPF program costs: runs and nanoseconds as the kernel counts them (sysctl kernel.bpf_stats_enabled).

The statistics cost time themselves (two clock reads a run, about 20 to 40 ns), so traffic is never compared
while they are on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import load
from bench.rounds import ONE_CORE
from bench.run import Cost, Run
from bench.workloads import Echo
from bench.world import Route, World
from kproxy_ebpf.linux.bpf import Program

Counts = dict[str, tuple[int, int]]  # (runs, nanoseconds) by program
SWITCH = Path("/proc/sys/kernel/bpf_stats_enabled")


def measure(
    run: Run, world: World, measured: Sequence[tuple[Route, Path]], workloads: Sequence[Echo], *, seconds: float
) -> None:
    """The cost of the programs on each route's node, whose bpffs comes with it; one core for all."""
    world.pin_servers(ONE_CORE)
    with _statistics():
        for route, bpffs in measured:
            pins = bpffs / "kproxy-ebpf" / "current" / "programs"
            for workload in workloads:
                before = _read(pins)
                words = workload.words(route)
                told = load.run(world.program, route.place, words, seconds=seconds, cores=ONE_CORE, warm_up=0)
                run.costs += _costs(route.path, workload.name, before, _read(pins), told["requests"])


def _costs(path: str, workload: str, before: Counts, after: Counts, requests: int) -> Iterator[Cost]:
    for name, (runs, nanoseconds) in after.items():
        ran = runs - before[name][0]
        if requests and ran > requests / 100:
            yield Cost(path, workload, name, ran / requests, (nanoseconds - before[name][1]) / ran)


@contextmanager
def _statistics() -> Iterator[None]:
    was = SWITCH.read_text()
    SWITCH.write_text("1")
    try:
        yield
    finally:
        SWITCH.write_text(was)


def _read(pins: Path) -> Counts:
    return {path.name: _read_one(path) for path in sorted(pins.iterdir())}


def _read_one(path: Path) -> tuple[int, int]:
    with Program.open(path) as program:
        told = Path(f"/proc/self/fdinfo/{program.fd}").read_text()
    values = dict(re.findall(r"^(run_\w+):\s+(\d+)$", told, re.MULTILINE))
    return int(values["run_cnt"]), int(values["run_time_ns"])
