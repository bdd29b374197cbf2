"""The words and tables that the report is made of. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tabulate import tabulate

from bench.paths import PATHS
from bench.samples import BITS, CPU_PER_GB, P50, P99, P999, RATE, Key, Samples, Spread

LATENCIES = {P50: "p50", P99: "p99", P999: "p99.9"}


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Nothing where there are no rows."""
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True) if rows else ""


def label(path: str) -> str:
    return PATHS[path].label if path in PATHS else path


def in_order(paths: Iterable[str]) -> list[str]:
    order = list(PATHS)
    return sorted(set(paths), key=lambda name: order.index(name) if name in order else len(order))


def ratio(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f})"


def absolute(spread: Spread | None, metric: str) -> str:
    if spread is None:
        return ""
    if metric == BITS:
        return f"{spread.median / 1e9:.1f} Gbit/s"
    if metric == CPU_PER_GB:
        return f"{spread.median:.2f} s/GB"
    if metric == RATE:
        return f"{spread.median:,.0f}/s"
    return f"{spread.median:,.0f} µs"


def cell(samples: Samples, key: Key, metric: str) -> str:
    """The ratio to the baseline; of the baseline itself what 1 stands for."""
    failed = f", {samples.errors(key):,} failed" if samples.errors(key) else ""
    value = samples.value(key, metric)
    if value is None:
        return ""
    if key == samples.baseline(key):
        return f"1 = {absolute(value, metric)}{failed}"
    return (ratio(samples.relative(key, metric)) or absolute(value, metric)) + failed


def by_path(samples: Samples, name: str, setting: str) -> str:
    """Paths by workloads (bulk: by throughput and CPU) of one table and setting; "" where nothing was measured."""
    keys = [key for key in samples.keys(name) if key.setting == setting]
    columns = []
    for workload in dict.fromkeys(key.workload for key in keys):
        first = next(key for key in keys if key.workload == workload)
        metrics = (RATE,) if samples.value(first, RATE) else (BITS, CPU_PER_GB)
        columns += [(workload, metric) for metric in metrics]
    rows = [
        [label(path), *(cell(samples, Key(name, setting, workload, path), metric) for workload, metric in columns)]
        for path in in_order(key.path for key in keys)
    ]
    headers = [workload + (", CPU per GB" if metric == CPU_PER_GB else "") for workload, metric in columns]
    return table(["path", *headers], rows)


def by_setting(samples: Samples, name: str, workload: str) -> str:
    """Paths by settings of one table and workload."""
    keys = [key for key in samples.keys(name) if key.workload == workload]
    settings = list(dict.fromkeys(key.setting for key in keys if key.setting))
    rows = []
    for path in in_order(key.path for key in keys):
        shared = Key(name, "", workload, path)
        if shared in keys:
            rows.append([label(path), cell(samples, shared, RATE), *[""] * (len(settings) - 1)])
        else:
            rows.append([label(path), *(cell(samples, Key(name, each, workload, path), RATE) for each in settings)])
    return table(["path", *(number(each) for each in settings)], rows)


def latencies(samples: Samples, name: str) -> str:
    """All that was measured at a fixed rate: a row for each workload, path and setting."""
    rows = []
    for key in samples.keys(name):
        value = samples.value(key, "offered")
        if value is None:
            continue
        cells = [cell(samples, key, metric) for metric in LATENCIES]
        rows.append(
            [f"{key.workload.split(',')[0]}, {value.median:,.0f}/s", label(key.path), number(key.setting), *cells]
        )
    rows.sort(key=lambda row: row[0])
    return table(["load", "path", "with", *LATENCIES.values()], rows)


def number(text: str) -> str:
    return f"{int(text):,}" if text.isdigit() else text
