"""What becomes of the traffic as the cluster grows: Services, pods on the node, backends of one Service.

Each size has sites of its own and all sizes are measured in the same rounds, so a loss from one size to another is a
ratio within a round. With many Services, a site's proxy is started when its size is reached, and ended when it has put
everything in force: the datapath that it leaves serves on, and no proxy works while others are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bench import rounds
from bench.paths import BASELINE, BEST
from bench.plan import Plan
from bench.proxies import weight
from bench.run import Run, Weight
from bench.samples import RATE, SHARED, Key, Samples
from bench.workloads import KEEPALIVE, SHORT, TCP, Echo
from bench.world import Route, Shape, Site, World, world

SERVICES, PODS, BACKENDS = "services", "pods", "backends"
# kube-proxy's iptables rules are searched one by one, in an order of chance: one VIP would measure its luck.
VIPS_AMONG_MANY = 16
SERVER_PODS = 4  # of many backends
FILL_STEP = 5000  # Services between two lines of progress
FIXED_LOAD = 0.4  # of what the baseline can do


def measure_services(run: Run, plan: Plan) -> None:
    with world() as lab:
        sites = [lab.site(BASELINE, setting=SHARED)]
        for size in plan.services:
            few = size < VIPS_AMONG_MANY * len(plan.grown_paths)
            shape = Shape(vips=1 if few else VIPS_AMONG_MANY)
            grown = [lab.site(path, setting=str(size), shape=shape) for path in plan.grown_paths]
            for count in range(lab.service_count, size, FILL_STEP):
                lab.fill(min(count + FILL_STEP, size))
                run.progress(f"services: {lab.service_count} of {size} at the API server")
            sites += [site for site in grown if _in_force(run, plan, lab, site)]
        _rounds(run, plan, lab, [site.route for site in sites], SERVICES)


def measure_pods(run: Run, plan: Plan) -> None:
    """`setting` counts the server pods of the Service, all on the client's node."""
    with world() as lab:
        _grow(run, plan, lab, PODS, {size: Shape(pods=size, backends=size) for size in plan.pods})


def measure_backends(run: Run, plan: Plan) -> None:
    with world() as lab:
        _grow(run, plan, lab, BACKENDS, {size: Shape(pods=SERVER_PODS, backends=size) for size in plan.backends})


def _grow(run: Run, plan: Plan, lab: World, table: str, shapes: dict[int, Shape]) -> None:
    if not shapes:
        run.note(f"{table}: not measured, this plan has no sizes of it")
        return
    run.progress(f"{table}: making sites of {', '.join(map(str, shapes))}")
    sites = [
        lab.site(path, setting=str(size), shape=shape) for size, shape in shapes.items() for path in (BASELINE, BEST)
    ]
    lab.start(sites)
    _rounds(run, replace(plan, rounds=max(3, plan.rounds // 2)), lab, [site.route for site in sites], table)


def _in_force(run: Run, plan: Plan, lab: World, site: Site) -> bool:
    """Start a site's proxy, wait for its effect, weigh and end it. False where there was no effect in all its time."""
    name, services = site.path.name, lab.service_count
    site.launch()
    proxy = site.proxies[0]
    effect: float | None = None
    note = ""
    try:
        site.wait(plan.effect_seconds)
        effect = site.seconds_to_effect
    except TimeoutError:
        note = f"no effect in {plan.effect_seconds:.0f} s"
    else:
        lab.warm_up([site])
    usage = weight(proxy)
    run.weights.append(Weight(SERVICES, site.setting, name, services, usage.rss, usage.pss, effect, note=note))
    run.progress(f"services: {name} with {services}: {note or f'in force after {effect:.1f} s'}")
    site.stop()
    return not note


def _rounds(run: Run, plan: Plan, lab: World, routes: Sequence[Route], table: str) -> None:
    """As fast as answers come; then at a load that every path can bear."""
    rounds.measure(run, lab, routes, TCP, table=table, rounds=plan.rounds, seconds=plan.seconds)
    loads = [workload.at(fixed_rate(run, routes[0], table, workload)) for workload in (SHORT, KEEPALIVE)]
    rounds.measure(run, lab, routes, loads, table=table, rounds=plan.rounds, seconds=2 * plan.seconds)


def fixed_rate(run: Run, baseline: Route, table: str, workload: Echo) -> float:
    """FIXED_LOAD of the baseline's rate, two digits of it."""
    measured = Samples(run.samples).value(Key(table, baseline.setting, workload.name, baseline.path), RATE)
    assert measured is not None
    return float(f"{measured.median * FIXED_LOAD:.1e}")
