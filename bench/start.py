"""From a proxy's start to its first effect at a packet, and what it weighs meanwhile and then.

Ours starts with compiled programs at hand, and once without: with an empty folder for them. Each start is a node of its
own, on which nothing is pinned yet. One proxy runs at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.paths import BEST, NFTABLES
from bench.plan import Plan
from bench.proxies import weight
from bench.run import Run, Weight
from bench.usage import usage
from bench.world import Site, World, world

TABLE = "start"
KEPT, COMPILING, KUBE_PROXY = "compiled programs kept", "compiling", "kube-proxy"
LOOK_SECONDS = 0.02


def measure(run: Run, plan: Plan) -> None:
    with world() as lab, TemporaryDirectory(prefix="kproxy-bench-") as folder:
        _start(run, plan, lab, KEPT, save=False)  # compiles, if that has not been done on this machine
        for size in plan.starts:
            if size > lab.service_count:
                run.progress(f"start: making {size} Services")
                lab.fill(size)
            for number in range(plan.rounds):
                _start(run, plan, lab, KEPT)
                _start(run, plan, lab, KUBE_PROXY)
                if size == plan.starts[0]:
                    _start(run, plan, lab, COMPILING, empty=Path(folder) / str(number))


def _start(run: Run, plan: Plan, lab: World, way: str, *, empty: Path | None = None, save: bool = True) -> None:
    site = lab.site(NFTABLES if way == KUBE_PROXY else BEST, setting=way)
    services, note = lab.service_count, ""
    site.launch({"KPROXY_CACHE_DIR": str(empty)} if empty else {})
    with _peak(site) as peak:
        try:
            site.wait(plan.effect_seconds)
        except TimeoutError:
            note = f"no effect in {plan.effect_seconds:.0f} s"
    found = weight(site.proxies[0])
    effect = None if note else site.seconds_to_effect
    if save:
        run.weights.append(
            Weight(TABLE, way, site.path.name, services, found.rss, found.pss, effect, note=note, peak=peak[0])
        )
        run.progress(f"start: {way}, {services} Services: {note or f'first effect after {effect:.2f} s'}")
    site.stop()


@contextmanager
def _peak(site: Site) -> Iterator[list[float]]:
    """The most that the site's proxy and its children held together in the block, MiB of PSS."""
    peak, done = [0.0], threading.Event()
    process = site.proxies[0].process
    assert process is not None
    pid = process.pid

    def look() -> None:
        while not done.is_set():
            with suppress(OSError):
                peak[0] = max(peak[0], sum(usage(each).pss for each in _family(pid)))
            time.sleep(LOOK_SECONDS)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _family(pid: int) -> list[int]:
    """A process and its children."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [pid, *(int(child) for task in tasks for child in (task / "children").read_text().split())]
