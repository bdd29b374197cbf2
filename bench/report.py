"""bench/REPORT.md, from a run: all of it computed, none of it written by hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import median

from bench import churn, growth, reach, start, tables, traffic
from bench.run import Run, machine_line
from bench.samples import RATE, Samples
from bench.tables import label, number, ratio, table
from bench.workloads import TCP

REPORT = Path(__file__).with_name("REPORT.md")


def markdown(run: Run, plots: Iterable[str] = ()) -> str:
    """`plots` are paths of pictures relative to the report, named as their section."""
    samples = Samples(run.samples)
    pictures = {Path(plot).stem: f"![{Path(plot).stem}]({plot})" for plot in plots}
    parts = [
        "# What was measured",
        _origin(run),
        "## Reach",
        _reach(run),
        *_section("Service traffic", _traffic(samples), pictures.get("traffic")),
        *_section("Programs", _programs(run), None),
        *_section(
            "Two nodes", [tables.by_path(samples, traffic.TWO_NODES, traffic.ON_ONE_CORE)], pictures.get("nodes")
        ),
        *_section("Growth: Services", _growth(samples, growth.SERVICES), pictures.get("services")),
        *_section("Growth: pods on the node", _growth(samples, growth.PODS), None),
        *_section("Growth: backends of the Service", _growth(samples, growth.BACKENDS), None),
        *_section("While Services change", _churn(samples, run), pictures.get("churn")),
        *_section("From start to first effect", [_starts(run)], None),
        *_section("Proxies", [_weights(run), _freshness(run)], None),
        *_section("This run", [_durations(run), *(f"- {note}" for note in run.notes)], None),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, parts: Iterable[str], picture: str | None) -> list[str]:
    found = [part for part in parts if part]
    return [f"## {title}", *([picture] if picture else []), *found] if found else []


def _origin(run: Run) -> str:
    facts = run.machine
    return (
        f"`{run.command}` ({run.plan.get('name', '')}, {run.plan.get('rounds', '')} rounds) on {run.date[:10]}, commit "
        f"{run.commit}, {machine_line(facts)}, load average {facts['load_average']:.1f} at the start. Figures are "
        "ratios to the pod's own address with the host's connection tracking on, within one round: the median of the "
        "rounds (and their quartiles). [README.md](README.md) says how it is measured."
    )


def _reach(run: Run) -> str:
    rows = []
    for goal in reach.GOALS:
        measured = goal.found(run)
        bound = f"{'at most' if goal.at_most else 'at least'} {goal.bound:g} {goal.unit}"
        rows.append([goal.what, bound, ratio(measured) or "-", goal.verdict(measured)])
    return table(["figure", "wanted", "measured", "verdict"], rows)


def _captioned(caption: str, found: str) -> list[str]:
    """A table under its caption; nothing where there is no table."""
    return [caption, found] if found else []


def _traffic(samples: Samples) -> list[str]:
    one, every = (tables.by_path(samples, traffic.TABLE, each) for each in (traffic.ON_ONE_CORE, traffic.ON_ALL_CORES))
    return [
        *_captioned("Requests per second (bulk: bits per second, CPU seconds for each GB), one core for all:", one),
        *_captioned("The same on all cores, unpinned:", every),
    ]


def _programs(run: Run) -> list[str]:
    costs = [
        [label(cost.path), cost.workload, f"`{cost.program}`", f"{cost.runs_per_request:.1f}", f"{cost.ns_per_run:.0f}"]
        for cost in run.costs
    ]
    steps = [
        [step.packet, f"`{step.program}`", f"{step.ns:.0f}", *map(number, map(str, (step.instructions, step.verified)))]
        for step in run.steps
    ]
    return [
        *_captioned(
            "Under traffic (`bpf_stats`, whose own cost is in it):",
            table(["path", "workload", "program", "runs per request", "ns per run"], costs),
        ),
        *_captioned(
            "One packet again and again (`BPF_PROG_TEST_RUN`), caches warm:",
            table(["packet", "program", "ns", "instructions", "of them walked by the verifier"], steps),
        ),
    ]


def _growth(samples: Samples, name: str) -> list[str]:
    parts = []
    for workload in TCP:
        grown = tables.by_setting(samples, name, workload.name)
        parts += _captioned(f"{workload.name}, requests per second:", grown)
    return [
        *parts,
        *_captioned("Latency at a fixed rate, from when each request was due:", tables.latencies(samples, name)),
    ]


def _churn(samples: Samples, run: Run) -> list[str]:
    rows = [
        [label(key.path), setting, tables.cell(samples, key, RATE)]
        for setting in (churn.QUIET, churn.CHANGING)
        for key in samples.keys(churn.TABLE)
        if key.setting == setting and key.workload == TCP[0].name
    ]
    prices = [
        [label(each.path), f"{each.services:,}", each.note, f"{each.cpu_ms_per_change or 0:.1f} ms"]
        for each in run.weights
        if each.table == churn.TABLE
    ]
    return [
        *_captioned("Requests per second, tcp short:", table(["path", "Services", "rate"], rows)),
        *_captioned("Latency at a fixed rate:", tables.latencies(samples, churn.TABLE)),
        *_captioned(
            "What a change costs the proxy:",
            table(["proxy", "Services", "rate reached", "CPU for each change"], prices),
        ),
    ]


def _starts(run: Run) -> str:
    """The median of all starts of a kind; None where one had no effect."""
    starts = [each for each in run.weights if each.table == start.TABLE]
    rows = []
    for services, way in dict.fromkeys((each.services, each.setting) for each in starts):
        these = [each for each in starts if (each.services, each.setting) == (services, way)]
        seconds = [each.seconds_to_effect for each in these if each.seconds_to_effect]
        rows.append(
            [
                way,
                f"{services:,}",
                f"{median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})" if seconds else these[0].note,
                f"{max(each.peak or 0 for each in these) * reach.MIB:.0f} MB",
                f"{median(each.rss for each in these) * reach.MIB:.0f} MB",
            ]
        )
    headers = ["start", "Services", "to the first effect (all)", "peak, children included (PSS)", "then (RSS)"]
    return table(headers, rows)


def _weights(run: Run) -> str:
    rows = [
        [
            label(each.path),
            f"{each.services:,}",
            each.table,
            f"{each.rss * reach.MIB:.0f}; {each.pss * reach.MIB:.0f} MB",
            f"{each.seconds_to_effect:.1f} s" if each.seconds_to_effect else each.note,
        ]
        for each in run.weights
        if each.table != start.TABLE
    ]
    headers = ["proxy", "Services", "table", "memory (RSS; PSS)", "start to first effect"]
    return table(headers, rows)


def _freshness(run: Run) -> str:
    rows = []
    for item in run.freshness:
        times = (item.event_to_map_p50_ms, item.event_to_map_p99_ms, item.event_to_map_max_ms)
        outer = (item.patch_to_map_p50_ms, item.patch_to_map_p99_ms)
        rows.append(
            [
                str(item.changes),
                str(item.lost),
                *("; ".join(f"{ms:.1f}" for ms in each) + " ms" for each in (times, outer)),
            ]
        )
    headers = ["changes of our tables", "lost", "event to map (p50; p99; largest)", "PATCH sent to map (p50; p99)"]
    return table(headers, rows)


def _durations(run: Run) -> str:
    total = sum(run.seconds.values())
    each = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in run.seconds.items())
    return f"Took {total / 60:.1f} minutes: {each}." if run.seconds else ""
