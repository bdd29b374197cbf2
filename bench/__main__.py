"""``python -m bench``: measure, keep the numbers in bench/results/, write bench/REPORT.md and its plots."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from bench import budget, churn, growth, plots, report, start, traffic
from bench.paths import PATHS
from bench.plan import FULL, QUICK, Plan
from bench.run import RESULTS, Run

TABLES: dict[str, Callable[[Run, Plan], None]] = {
    "traffic": traffic.measure,
    "programs": budget.measure,
    "start": start.measure,
    "services": growth.measure_services,
    "churn": churn.measure,
    "two-nodes": traffic.measure_two_nodes,
    "pods": growth.measure_pods,
    "backends": growth.measure_backends,
}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Measure Services: direct, kproxy-ebpf, kube-proxy.")
    parser.add_argument("--full", action="store_true", help=f"up to {FULL.minutes:.0f} minutes instead of about 6")
    parser.add_argument("--tables", default=",".join(TABLES), help=f"of {', '.join(TABLES)} (default: all)")
    parser.add_argument("--paths", help=f"of {', '.join(PATHS)}")
    parser.add_argument("--rounds", type=int, help="rounds in which each path is measured once")
    parser.add_argument("--seconds", type=float, help="length of one measurement")
    parser.add_argument("--services", help="sizes of the cluster, separated by commas")
    parser.add_argument("--from", dest="results", type=Path, help="measure nothing: report these raw numbers again")
    parser.add_argument("--no-save", action="store_true", help="print the report, leave bench/ as it is")
    parsed = parser.parse_args()
    for given, known in ((parsed.tables, TABLES), (parsed.paths or "", PATHS)):
        unknown = set(filter(None, given.split(","))) - known.keys()
        if unknown:
            parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return parsed


def plan_of(wanted: argparse.Namespace) -> Plan:
    plan = FULL if wanted.full else QUICK
    if wanted.paths:
        chosen = tuple(wanted.paths.split(","))
        balancing = tuple(name for name in chosen if PATHS[name].balances)
        plan = replace(plan, paths=chosen, two_node_paths=chosen, grown_paths=balancing)
    if wanted.rounds:
        plan = replace(plan, rounds=wanted.rounds, churn_rounds=wanted.rounds)
    if wanted.services:
        sizes = tuple(int(size) for size in wanted.services.split(","))
        plan = replace(plan, services=sizes, churn_services=min(sizes[-1], plan.churn_services))
    return replace(plan, seconds=wanted.seconds or plan.seconds)


def measure(run: Run, plan: Plan, names: list[str], keep: Callable[[], None]) -> None:
    """One table after the other; what one of them can't do is noted, and the others go on."""
    began = time.monotonic()
    for name in names:
        if time.monotonic() - began > plan.minutes * 60:
            run.note(f"{name}: not measured, the {plan.minutes:.0f} minutes of this plan were over")
            continue
        table_began = time.monotonic()
        try:
            TABLES[name](run, plan)
        except (OSError, RuntimeError) as error:
            run.note(f"{name}: broken off: {error!r}")
        run.seconds[name] = time.monotonic() - table_began
        keep()


def main() -> None:
    wanted = options()
    if wanted.results:
        run = Run.load(wanted.results)
    else:
        plan = plan_of(wanted)
        run = Run.begin({name: value for name, value in asdict(plan).items() if "workloads" not in name})
        path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d-%H%M}-{plan.name}.json"
        measure(run, plan, wanted.tables.split(","), lambda: None if wanted.no_save else run.save(path))
    if wanted.no_save:
        print(report.markdown(run))
        return
    drawn = plots.draw(run)
    report.REPORT.write_text(report.markdown(run, (str(plot.relative_to(report.REPORT.parent)) for plot in drawn)))
    run.progress(f"written: {report.REPORT}")


if __name__ == "__main__":
    main()
