"""The report is made of the numbers alone."""

from __future__ import annotations

from pathlib import Path

from bench import churn, growth, plots, report, start, traffic
from bench.paths import BASELINE, BEST, IPTABLES, LOOPBACK, NFTABLES, PATHS
from bench.run import Cost, Freshness, Run, Step, Weight, rounded
from bench.samples import BITS, CPU_PER_GB, OFFERED, P50, P99, P999, RATE, Key, Sample
from bench.tables import in_order

MACHINE = {"kernel": "6.18", "cpu": "a CPU", "cores": 2, "memory_mib": 2048, "load_average": 0.1}


def run() -> Run:
    """Two rounds of a little of everything."""
    made = Run("python -m bench", "2026-01-02T03:04:05+00:00", "abc1234", MACHINE, {"name": "quick", "rounds": 2})
    latency = {P50: 10.0, P99: 20.0, P999: 30.0}
    for number in range(2):
        for path, factor in ((LOOPBACK, 1.5), (BASELINE, 1.0), (BEST, 1.25), (IPTABLES, 0.5)):
            for workload in ("tcp short", "tcp keepalive"):
                rates = {RATE: 1000 * factor, **latency}
                add(made, traffic.TABLE, traffic.ON_ONE_CORE, workload, path, number, rates)
                add(made, churn.TABLE, churn.QUIET, workload, path, number, rates)
                size = "" if path == BASELINE else "5000"
                add(made, growth.SERVICES, size, workload, path, number, rates)
                fixed = {name: value * factor for name, value in latency.items()} | {RATE: 400.0, OFFERED: 400.0}
                add(made, growth.SERVICES, size, f"{workload}, fixed rate", path, number, fixed)
            add(made, traffic.TABLE, traffic.ON_ONE_CORE, "bulk", path, number, {BITS: 1e10 * factor, CPU_PER_GB: 0.8})
    made.weights = [
        Weight(traffic.TABLE, "", BEST, 6, 60, 50),
        Weight(growth.SERVICES, "5000", IPTABLES, 5000, 80, 80, 2),
        *(Weight(start.TABLE, start.KEPT, BEST, 1, 60, 50, seconds, peak=70) for seconds in (0.5, 0.9, 0.7)),
        Weight(start.TABLE, start.KUBE_PROXY, NFTABLES, 1, 80, 80, note="no effect in 90 s", peak=80),
    ]
    made.costs = [Cost(BEST, "tcp short", "from_pod_v4", 10, 150)]
    made.steps = [Step("known flow", "from_pod_v4", 70, 2153, 10426)]
    made.freshness = [Freshness(200, 0, 1.5, 6.2, 9.2, 5.9, 13.3)]
    made.seconds, made.notes = {"traffic": 61.0}, ["churn: not measured"]
    return made


def add(run: Run, table: str, setting: str, workload: str, path: str, number: int, metrics: dict[str, float]) -> None:
    run.samples.append(Sample(Key(table, setting, workload, path), number, metrics, {}))


def row(text: str, *words: str) -> list[str]:
    """The cells of the first table row that begins with these."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[: len(words)] == list(words):
            return cells[len(words) :]
    raise AssertionError(f"no row {words} in\n{text}")


def test_starts_of_a_kind_are_one_row() -> None:
    text = report.markdown(run())
    assert row(text, start.KEPT) == ["1", "0.70 s (0.50 to 0.90)", "73 MB", "63 MB"]
    assert row(text, start.KUBE_PROXY)[1] == "no effect in 90 s"


def test_a_path_is_told_by_its_ratio_and_the_baseline_by_what_1_stands_for() -> None:
    text = report.markdown(run())
    ours = row(text, PATHS[BEST].label)
    assert ours == ["1.25 (1.25 to 1.25)"] * 3 + ["1.00 (1.00 to 1.00)"]
    assert row(text, PATHS[BASELINE].label) == ["1 = 1,000/s", "1 = 1,000/s", "1 = 10.0 Gbit/s", "1 = 0.80 s/GB"]


def test_the_reach_is_told_from_the_numbers() -> None:
    text = report.markdown(run())
    assert row(text, "hybrid, redirect to direct pod IP, short connections")[1:] == ["1.25 (1.25 to 1.25)", "reached"]
    assert row(text, "hybrid, redirect to loopback, keepalive")[2] == "**not reached**"
    assert row(text, "kept from 1 to 50,000 Services, keepalive")[1:] == ["-", "not measured"]
    assert row(text, "memory of the daemon with few Services (RSS)") == [
        "at most 75 MB",
        "62.91 (62.91 to 62.91)",
        "reached",
    ]


def test_a_latency_is_told_with_the_load_that_it_was_measured_at() -> None:
    cells = row(report.markdown(run()), "tcp short, 400/s", PATHS[IPTABLES].label, "5,000")
    assert cells == ["0.50 (0.50 to 0.50)"] * 3


def test_failed_requests_are_told() -> None:
    failing = run()
    key = Key(traffic.TABLE, traffic.ON_ONE_CORE, "tcp short", BEST)
    failing.samples.append(Sample(key, 1, {RATE: 1250.0}, {"ETIMEDOUT": 1234}))
    assert row(report.markdown(failing), PATHS[BEST].label)[0] == "1.25 (1.25 to 1.25), 1,234 failed"


def test_tables_that_were_not_measured_leave_no_heading() -> None:
    empty = report.markdown(Run(machine=MACHINE))
    assert [line for line in empty.splitlines() if line.startswith("## ")] == ["## Reach"]


def test_a_run_that_is_read_again_makes_the_same_report(tmp_path: Path) -> None:
    made = run()
    made.save(tmp_path / "run.json")
    assert report.markdown(Run.load(tmp_path / "run.json")) == report.markdown(made)


def test_raw_numbers_are_kept_to_six_digits() -> None:
    assert rounded({"a": [1234567.8, 0.000123456789, 3]}) == {"a": [1234570.0, 0.000123457, 3]}


def test_paths_are_told_in_one_order_and_strangers_last() -> None:
    assert in_order(["other", IPTABLES, BASELINE, LOOPBACK]) == [LOOPBACK, BASELINE, IPTABLES, "other"]


def test_every_table_has_a_small_picture(tmp_path: Path) -> None:
    drawn = plots.draw(run(), tmp_path)
    assert [path.name for path in drawn] == ["traffic.svg", "services.svg", "churn.svg"]
    for path in drawn:
        assert path.read_text().rstrip().endswith("</svg>")
        assert path.stat().st_size < 100_000
    text = report.markdown(run(), (f"plots/{path.name}" for path in drawn))
    assert "![services](plots/services.svg)" in text
