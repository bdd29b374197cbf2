"""``python -m bench.variants NAME=FOLDER...``: versions of the C sources side by side, for work on the datapath.

Each FOLDER holds a version of bpf_src; each gets a node of its own, its programs at the pods' links, and one Service
written into its maps by hand, without daemon and API server. Prints the table of the bench, programs' costs included.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench import load, programs, rounds, tables, traffic
from bench.bare import VIP, Bare, one_service
from bench.paths import BASELINE
from bench.run import Run
from bench.samples import Samples
from bench.workloads import TCP, UDP
from bench.world import ECHO, PORTS, Route, World
from kproxy_ebpf.lab import Lab

WORKLOADS = (*TCP, *UDP)


@contextmanager
def bare_world() -> Iterator[World]:
    with Lab() as lab:
        yield World(lab, None, load.build())  # type: ignore[arg-type]


def add_variant(world: World, name: str, sources: Path, families: tuple[int, ...] = (4,)) -> tuple[Route, Path]:
    """Its route and its bpffs. `families`: whose programs run; serving both means that both run on each packet."""
    site = world.site("untracked")
    bare = Bare(site.nodes[0], sources)
    port = PORTS[ECHO]
    bare.write(one_service(site.addresses, port.service, port.server))
    bare.attach(site.nodes[0], [site.client, *site.server_pods], families)
    world.keep.append(bare)
    route = replace(site.route, path=name, targets=(str(VIP),), single=str(VIP), through_service=True)
    return route, bare.bpffs


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.variants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("variants", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--one-family", action="store_true", help="without the other family's programs")
    wanted = parser.parse_args()
    variants = {name: Path(folder) for name, _, folder in (word.partition("=") for word in wanted.variants)}
    run = Run()
    with bare_world() as world:
        routes = [world.site(path).route for path in (BASELINE, "untracked")]
        families = (4,) if wanted.one_family else (4, 6)
        ours = [add_variant(world, name, sources, families) for name, sources in variants.items()]
        programs.measure(run, world, ours, WORKLOADS, seconds=wanted.seconds)
        for cost in run.costs:
            times = f"{cost.runs_per_request:5.1f} {cost.ns_per_run:5.0f} ns"
            print(f"{cost.path:10} {cost.workload:14} {cost.program:14} {times}")
        rounds.measure(
            run, world, [*routes, *(route for route, _ in ours)], WORKLOADS, table=traffic.TABLE, rounds=wanted.rounds,
            seconds=wanted.seconds, setting=traffic.ON_ONE_CORE,
        )  # fmt: skip
    print(tables.by_path(Samples(run.samples), traffic.TABLE, traffic.ON_ONE_CORE))


if __name__ == "__main__":
    main()
