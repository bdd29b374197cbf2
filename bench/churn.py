"""Traffic while Services change, RATE of them a second: beside ours and beside kube-proxy doing the same work.

One proxy runs at a time. In each round the baseline and the path are measured twice: while nothing changes, and while a
thread moves endpoints of Services that nobody asks. The baseline meets the same changes and the same proxy's work.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bench import freshness, rounds
from bench.growth import fixed_rate
from bench.paths import BASELINE, BEST, IPTABLES, NFTABLES
from bench.plan import Plan
from bench.population import absent_endpoint, endpoint, name_of
from bench.proxies import Proxy, weight
from bench.run import Run, Weight
from bench.samples import SHARED
from bench.workloads import SHORT, Echo
from bench.world import Site, World, world
from kproxy_ebpf.lab.control_plane import MERGE_PATCH, ApiError, ControlPlane, object_path

TABLE = "churn"
RATE = 50
QUIET, CHANGING = "quiet", f"{RATE} changes a second"
PATHS = (BEST, NFTABLES, IPTABLES)
HEAD_START_SECONDS = 1.0  # of changes before the traffic is measured
IDLE_SHARE, IDLE_SECONDS, SETTLE_SECONDS = 0.05, 0.5, 15.0
MOVED = 1 << 20  # how far: to another address that nobody has


class Changes:
    """Moves the endpoint of one Service after the other, RATE a second, in a thread, while `going_on`. `done` counts on
    from one time to the next, so that every move is to another address than the one before.
    """

    def __init__(self, cluster: ControlPlane, services: int) -> None:
        self.done = 0
        self._cluster, self._services = cluster, services
        self._stop = threading.Event()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        self._stop.clear()
        thread = threading.Thread(target=self._change, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _change(self) -> None:
        connection = self._cluster.connect()
        headers = {"Content-Type": MERGE_PATCH, **self._cluster.authorization}
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            name, address = move(self.done, self._services)
            body = json.dumps({"endpoints": [endpoint(address)]})
            connection.request("PATCH", object_path("EndpointSlice", f"{name}-1"), body, headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise ApiError(answer.status, text.decode())
            self.done += 1
            due += 1 / RATE
        connection.close()


def move(number: int, services: int) -> tuple[str, str]:
    """The Service that the change with this number concerns, and its endpoint's new address."""
    turn, service = divmod(number, services)
    return name_of(service), absent_endpoint(service + (MOVED if turn % 2 == 0 else 0))


def measure(run: Run, plan: Plan) -> None:
    with world() as lab:
        baseline = lab.site(BASELINE)
        sites = [lab.site(path) for path in PATHS]
        run.progress(f"churn: filling the API server up to {plan.churn_services} Services")
        lab.fill(plan.churn_services)
        lab.pin_servers(rounds.ONE_CORE)
        rounds.measure(run, lab, [baseline.route], [SHORT], table=TABLE, rounds=1, seconds=1, setting=SHARED)
        load = SHORT.at(fixed_rate(run, baseline.route, TABLE, SHORT))
        changes = Changes(lab.cluster, lab.filled)
        for phase, site in enumerate(sites):
            try:
                lab.start([site], seconds=plan.effect_seconds)
            except TimeoutError as error:
                run.note(f"churn: {site.path.name} is not measured: {error}")
            else:
                _phase(run, plan, lab, [baseline, site], load, changes, phase * plan.churn_rounds)
                if site.ours:
                    run.progress(f"churn: {plan.fresh_changes} changes, from event to map")
                    run.freshness.append(freshness.measure(lab.cluster, site.ours, changes=plan.fresh_changes))
            site.stop()


def _phase(
    run: Run, plan: Plan, lab: World, sites: Sequence[Site], load: Echo, changes: Changes, first_round: int
) -> None:
    """`sites`: the baseline and the one whose proxy runs."""
    proxy, name = sites[1].proxies[0], sites[1].path.name
    price = Price()

    def traffic(setting: str, number: int) -> None:
        rounds.measure(
            run, lab, [site.route for site in sites], [SHORT, load], table=TABLE, rounds=1, seconds=2 * plan.seconds,
            setting=setting, first_round=number,
        )  # fmt: skip

    for number in range(first_round, first_round + plan.churn_rounds):
        _finish(proxy)
        traffic(QUIET, number)
        _finish(proxy)
        with price.paid(proxy, changes), changes.going_on():
            time.sleep(HEAD_START_SECONDS)
            traffic(CHANGING, number)
    usage = weight(proxy)
    note = f"{price.changes / price.seconds:.0f} changes a second"
    run.weights.append(
        Weight(
            TABLE, CHANGING, name, lab.service_count, usage.rss, usage.pss, sites[1].seconds_to_effect,
            price.cpu_seconds * 1000 / max(1, price.changes), note,
        )
    )  # fmt: skip


@dataclass(slots=True)
class Price:
    """What changes cost a proxy, what it still has to do after the last one included. `seconds`: of changes."""

    changes: int = 0
    cpu_seconds: float = 0.0
    seconds: float = 0.0

    @contextmanager
    def paid(self, proxy: Proxy, changes: Changes) -> Iterator[None]:
        done, before, began = changes.done, weight(proxy).cpu_seconds, time.monotonic()
        yield
        self.seconds += time.monotonic() - began
        _finish(proxy)
        self.changes += changes.done - done
        self.cpu_seconds += weight(proxy).cpu_seconds - before


def _finish(proxy: Proxy) -> None:
    """Wait until the proxy has caught up, SETTLE_SECONDS at most."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        before = weight(proxy).cpu_seconds
        time.sleep(IDLE_SECONDS)
        if weight(proxy).cpu_seconds - before < IDLE_SHARE * IDLE_SECONDS:
            return
