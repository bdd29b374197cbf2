"""``python -m bench``: measure, print the tables, keep them in bench/results/."""

from __future__ import annotations

import argparse
import os
import sys
import time

from bench import freshness, programs, rounds
from bench.load import WORKLOADS
from bench.report import LATEST, Report
from bench.world import LABELS, World, world

TCP = [workload for workload in WORKLOADS if workload.protocol == "tcp"]
MANY_SERVICES = 1000
MEASURED = "tc"  # the path whose programs and daemon are looked at more closely
ONE_CORE, ALL_CORES = "one core for all", "all cores"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Measure Services: direct, kproxy-ebpf, kube-proxy.")
    parser.add_argument("--quick", action="store_true", help="under a minute: few Services, TCP, short rounds")
    parser.add_argument("--paths", default=",".join(LABELS), help=f"of {', '.join(LABELS)} (default: all)")
    parser.add_argument("--rounds", type=int, help="rounds in which each path is measured once")
    parser.add_argument("--seconds", type=float, help="length of one measurement")
    parser.add_argument("--services", type=int, default=MANY_SERVICES, help="Services in the second half; 0: no such")
    parser.add_argument("--changes", type=int, default=300, help="changes of EndpointSlices; 0: none")
    parser.add_argument("--no-save", action="store_true", help="leave bench/results/ as it is")
    parsed = parser.parse_args()
    unknown = set(parsed.paths.split(",")) - LABELS.keys()
    if unknown:
        parser.error(f"unknown paths: {', '.join(sorted(unknown))}")
    if parsed.quick:
        parsed.services = 0
    parsed.rounds = parsed.rounds or (3 if parsed.quick else 5)
    parsed.seconds = parsed.seconds or (0.3 if parsed.quick else 0.6)
    return parsed


def progress(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:4.0f} s] {text}", file=sys.stderr, flush=True)


def traffic(world: World, wanted: argparse.Namespace, report: Report) -> None:
    """Rounds on one core; with few Services also on all cores."""
    few = not report.samples
    workloads = TCP if wanted.quick else WORKLOADS
    settings = [(ONE_CORE, [0], workloads)]
    if few and not wanted.quick:
        settings.append((ALL_CORES, sorted(os.sched_getaffinity(0)), TCP))
    for label, cores, workloads in settings:
        report.samples += rounds.measure(
            world,
            workloads,
            rounds=wanted.rounds,
            seconds=wanted.seconds,
            core_list=cores,
            label=label,
            progress=progress,
        )


def closer_look(world: World, wanted: argparse.Namespace, report: Report) -> None:
    """The measured path's programs and daemon."""
    if MEASURED not in world.daemons:
        return
    if not report.costs:
        report.costs = programs.measure(world, MEASURED, TCP if wanted.quick else WORKLOADS, seconds=wanted.seconds)
    report.memory.append(freshness.memory(world, MEASURED))


def main() -> None:
    wanted = options()
    report = Report(parameters=vars(wanted))
    progress("building the lab, starting the control plane")
    with world(wanted.paths.split(",")) as lab:
        report.seconds_to_start = lab.seconds_to_start
        traffic(lab, wanted, report)
        closer_look(lab, wanted, report)
        if wanted.services:
            progress(f"growing to {wanted.services} Services")
            lab.grow(wanted.services)
            traffic(lab, wanted, report)
            closer_look(lab, wanted, report)
        if wanted.changes and MEASURED in lab.daemons:
            progress(f"changing EndpointSlices {wanted.changes} times")
            report.freshness.append(freshness.measure(lab, MEASURED, changes=wanted.changes))
    print(report.markdown())
    if not wanted.no_save:
        progress(f"kept in {report.save('quick' if wanted.quick else 'full')} and {LATEST}")


STARTED = time.monotonic()
if __name__ == "__main__":
    main()
