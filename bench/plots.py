"""The report's pictures: small SVG files, the same for the same numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import churn, growth, traffic
from bench.paths import BASELINE, PATHS
from bench.run import Run
from bench.samples import P99, RATE, Key, Samples, Spread
from bench.tables import in_order, label
from bench.workloads import KEEPALIVE, SHORT

FOLDER = Path(__file__).with_name("plots")
COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
KIND_COLORS = {"ours": "#228833", "kube-proxy": "#ee6677", "pod": "#4477aa"}


def draw(run: Run, folder: Path = FOLDER) -> list[Path]:
    """One picture for each table that was measured; returns their paths. Raises ImportError without matplotlib."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 9, "axes.spines.top": False}
    mpl.rcParams |= {"axes.spines.right": False, "figure.constrained_layout.use": True}
    folder.mkdir(exist_ok=True)
    return list(_all(Samples(run.samples), folder))


def _all(samples: Samples, folder: Path) -> Iterator[Path]:
    for name, stem in ((traffic.TABLE, "traffic"), (traffic.TWO_NODES, "nodes")):
        if samples.keys(name):
            yield _bars(samples, name, folder / f"{stem}.svg")
    if samples.keys(growth.SERVICES):
        yield _lines(samples, folder / "services.svg")
    if samples.keys(churn.TABLE):
        yield _churn(samples, folder / "churn.svg")


def _bars(samples: Samples, name: str, path: Path) -> Path:
    """Requests per second, relative to the baseline, with quartiles."""
    figure, panels = _figure(1, 2, height=0.6 + 0.3 * len({key.path for key in samples.keys(name)}))
    for axes, workload in zip(panels, (SHORT, KEEPALIVE), strict=True):
        keys = {
            key.path: key for key in samples.keys(name) if key.workload == workload.name and "all" not in key.setting
        }
        found = {each: samples.relative(keys[each], RATE) for each in in_order(keys)}
        spreads = {each: spread for each, spread in found.items() if spread}
        medians = [spread.median for spread in spreads.values()]
        axes.barh(
            [label(each) for each in spreads],
            medians,
            xerr=_errors(list(spreads.values())),
            color=[_color(each) for each in spreads],
        )
        axes.axvline(1, color="black", linewidth=0.6)
        axes.invert_yaxis()
        axes.set_title(workload.name)
        axes.set_xlabel("requests/s, direct pod IP = 1")
    panels[1].set_yticklabels([])
    return _save(figure, path)


def _lines(samples: Samples, path: Path) -> Path:
    """Rate and p99 by the number of Services."""
    figure, panels = _figure(1, 3, height=3)
    wanted = ((SHORT.name, RATE), (KEEPALIVE.name, RATE), (f"{SHORT.name}, fixed rate", P99))
    for axes, (workload, metric) in zip(panels, wanted, strict=True):
        keys = [key for key in samples.keys(growth.SERVICES) if key.workload == workload and key.path != BASELINE]
        for number, name in enumerate(in_order(key.path for key in keys)):
            found = sorted((int(key.setting), samples.relative(key, metric)) for key in keys if key.path == name)
            points = [(size, spread) for size, spread in found if spread]
            axes.errorbar(
                [size for size, _ in points], [spread.median for _, spread in points],
                yerr=_errors([spread for _, spread in points]), label=label(name), marker="o", markersize=3,
                color=COLORS[number % len(COLORS)],
            )  # fmt: skip
        axes.axhline(1, color="black", linewidth=0.6)
        axes.set_xscale("log")
        axes.set_xlabel("Services")
        axes.set_title(f"{workload}: {'requests/s' if metric == RATE else 'p99'}, direct = 1", fontsize=8)
    panels[0].legend(fontsize=7)
    return _save(figure, path)


def _churn(samples: Samples, path: Path) -> Path:
    """Rate and p99, quiet and while Services change."""
    figure, panels = _figure(1, 2, height=2.2)
    for axes, (workload, metric) in zip(panels, ((SHORT.name, RATE), (f"{SHORT.name}, fixed rate", P99)), strict=True):
        keys = [key for key in samples.keys(churn.TABLE) if key.workload == workload]
        names = [name for name in in_order(key.path for key in keys) if name != BASELINE]
        for offset, setting in ((-0.2, churn.QUIET), (0.2, churn.CHANGING)):
            found = [
                (at, samples.relative(Key(churn.TABLE, setting, workload, name), metric))
                for at, name in enumerate(names)
            ]
            spreads = [(at, spread) for at, spread in found if spread]
            axes.barh(
                [at + offset for at, _ in spreads], [spread.median for _, spread in spreads], 0.38, label=setting,
                xerr=_errors([spread for _, spread in spreads]), color=COLORS[0 if offset < 0 else 1],
            )  # fmt: skip
        axes.axvline(1, color="black", linewidth=0.6)
        axes.set_yticks(range(len(names)), [label(name) for name in names])
        axes.invert_yaxis()
        axes.set_xlabel(f"{'requests/s' if metric == RATE else 'p99'}, direct pod IP = 1")
    panels[1].set_yticklabels([])
    panels[0].legend(fontsize=7)
    return _save(figure, path)


def _figure(rows: int, columns: int, *, height: float) -> tuple[Any, Any]:
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(rows, columns, figsize=(9, height))
    return figure, panels


def _save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def _errors(spreads: Sequence[Spread]) -> list[list[float]]:
    return [[each.median - each.low for each in spreads], [each.high - each.median for each in spreads]]


def _color(path: str) -> str:
    found = PATHS[path]
    return KIND_COLORS["ours" if found.is_ours else "kube-proxy" if found.kube_proxy else "pod"]
