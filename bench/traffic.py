"""Service traffic: every path with every workload, on one node or between two; and what our programs cost meanwhile."""

from __future__ import annotations

from bench import programs, rounds
from bench.plan import Plan
from bench.proxies import weight
from bench.rounds import all_cores
from bench.run import Run, Weight
from bench.workloads import BULK, TCP, UDP
from bench.world import Shape, Site, World, world

TABLE, TWO_NODES = "traffic", "two nodes"
ON_ONE_CORE, ON_ALL_CORES = "one core", "all cores"


def measure(run: Run, plan: Plan) -> None:
    with world() as lab:
        sites = _sites(run, lab, plan.paths, Shape(outside=True), TABLE)
        routes = [site.route for site in sites]
        rounds.measure(
            run, lab, routes, plan.workloads, table=TABLE, rounds=plan.rounds, seconds=plan.seconds, setting=ON_ONE_CORE
        )
        if plan.all_cores:
            rounds.measure(
                run, lab, routes, TCP, table=TABLE, rounds=plan.rounds, seconds=plan.seconds, cores=all_cores(),
                setting=ON_ALL_CORES,
            )  # fmt: skip
        ours = [(site.route, site.ours.bpffs) for site in sites if site.ours]
        programs.measure(run, lab, ours, (*TCP, *UDP), seconds=plan.seconds)


def measure_two_nodes(run: Run, plan: Plan) -> None:
    """The client on one node, the servers on another; each node runs its path's proxies."""
    shape = Shape(nodes=2, outside=BULK in plan.two_node_workloads)
    with world() as lab:
        sites = _sites(run, lab, plan.two_node_paths, shape, TWO_NODES)
        routes = [site.route for site in sites]
        rounds.measure(
            run, lab, routes, plan.two_node_workloads, table=TWO_NODES, rounds=plan.rounds, seconds=plan.seconds,
            setting=ON_ONE_CORE,
        )  # fmt: skip


def _sites(run: Run, lab: World, paths: tuple[str, ...], shape: Shape, table: str) -> list[Site]:
    run.progress(f"{table}: starting {', '.join(paths)}")
    sites = [lab.site(path, shape=shape) for path in paths]
    lab.start(sites)
    for site in sites:
        for proxy in site.proxies[-1:]:  # ours, where there are two
            usage = weight(proxy)
            run.weights.append(Weight(table, "", site.path.name, lab.service_count, usage.rss, usage.pss))
    return sites
