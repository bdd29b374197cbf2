"""Traffic in rounds: every route is measured once a round, one after the other, and compared within its round.

A machine's speed drifts (other tenants, heat, frequencies); paths measured seconds apart see the same machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

from bench.run import Run
from bench.samples import Key, Sample
from bench.workloads import Workload
from bench.world import Route, World

T = TypeVar("T")

ONE_CORE = (0,)


def all_cores() -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0)))


def measure(
    run: Run,
    world: World,
    routes: Sequence[Route],
    workloads: Iterable[Workload],
    *,
    table: str,
    rounds: int,
    seconds: float,
    cores: Sequence[int] = ONE_CORE,
    setting: str | None = None,
    first_round: int = 0,
) -> None:
    """In each of `rounds` all workloads over all routes, `seconds` each. `setting` replaces the routes' own."""
    world.pin_servers(cores)
    workloads = list(workloads)
    for number in range(first_round, first_round + rounds):
        for workload in workloads:
            for route in rotated(routes, number):
                key = Key(table, route.setting if setting is None else setting, workload.name, route.path)
                measured = workload.run(world.program, route, seconds=seconds, cores=cores)
                run.samples.append(Sample(key, number, measured.metrics, measured.errors))
        run.progress(f"{table}{f' ({setting})' if setting else ''}: round {number + 1} of {first_round + rounds}")


def rotated(items: Sequence[T], by: int) -> list[T]:
    """Each round begins with another one, so that none always follows the same one."""
    by %= len(items)
    return [*items[by:], *items[:by]]
