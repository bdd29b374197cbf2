"""``python -m bench.variants NAME=FOLDER...``: versions of the C sources side by side, for work on the datapath.

Each FOLDER holds a version of bpf_src; each gets a node of its own, its programs at the pods' links, and one Service
written into its maps by hand, without daemon or API server. Prints the tables of the bench, programs' costs included.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from pathlib import Path

from bench import load, programs, rounds
from bench.load import WORKLOADS
from bench.report import Report
from bench.world import BACKENDS, BASELINE, CLIENT, NODE, SERVER_PORT, SERVICE_PORT, TRACKED, Route, World
from kproxy_ebpf.datapath.bpf import Link
from kproxy_ebpf.datapath.contract import Switches
from kproxy_ebpf.datapath.generation import Generation, ensure
from kproxy_ebpf.datapath.maps import LiveSettings, ServiceMaps
from kproxy_ebpf.datapath.source import Constants
from kproxy_ebpf.lab import Lab, Node, Pod
from kproxy_ebpf.model.tables import Backend, BackendState, Frontend, FrontendFlags, FrontendKey, TableWrites

VIP = IPv4Address("10.96.100.1")
TCX = {"from_pod": 46, "to_pod": 47}  # enum bpf_attach_type: BPF_TCX_INGRESS, BPF_TCX_EGRESS


def tables(backends: Sequence[str]) -> TableWrites:
    """One Service, TCP and UDP."""
    writes = TableWrites()
    writes.frontends[FrontendKey(VIP.packed, 0, 0)] = Frontend(3, 0, 0, FrontendFlags.VIP_ONLY)
    for service, protocol in ((1, 6), (2, 17)):
        ids = [service * 100 + number for number in range(len(backends))]
        for id_, address in zip(ids, backends, strict=True):
            packed = IPv4Address(address).packed
            writes.backends[id_] = Backend(packed, SERVER_PORT, BackendState.USABLE, 1, 1, service)
        writes.slots[service * 100] = tuple(ids)
        writes.frontends[FrontendKey(VIP.packed, SERVICE_PORT, protocol)] = Frontend(service, service * 100, len(ids))
    return writes


class Variant:
    """What the bench asks of a daemon: where the pins are."""

    def __init__(self, node: Node, sources: Path) -> None:
        self.bpffs = node.lab.folder / node.name / "bpffs"
        self.bpffs.mkdir(parents=True)
        subprocess.run(["mount", "-t", "bpf", "bpf", str(self.bpffs)], check=True, timeout=10)
        self.generation: Generation = ensure(self.bpffs, Constants(), sources)
        self.generation.activate()
        with LiveSettings(self.generation) as live:
            live.switch(Switches.TC)
        self.links: list[Link] = []

    def attach(self, node: Node, pods: Sequence[Pod]) -> None:
        with node.inside():
            for pod in pods:
                for name, where in TCX.items():
                    with self.generation.program(name, 4) as program:
                        self.links.append(Link.create(program, node.ifindex(pod.host_link), where))


def add_node(made: World, name: str, sources: Path | None) -> None:
    node = made.lab.node(name)
    node.sysctl(NODE)
    client = node.pod("client")
    client.sysctl(CLIENT)
    backends = [node.pod(f"web{number}") for number in range(BACKENDS)]
    made.servers += [load.serve(made.program, pod, pod.ip4, SERVER_PORT) for pod in backends]
    addresses = tuple(pod.ip4 for pod in backends)
    if sources is None:
        if name == BASELINE:
            node.run(["nft", "-f", "-"], input=TRACKED)
        made.routes[name] = Route(name, client, addresses, SERVER_PORT)
        return
    variant = Variant(node, sources)
    maps = ServiceMaps(variant.generation, 4)
    maps.apply(tables(addresses))
    maps.close()
    variant.attach(node, [client, *backends])
    made.daemons[name] = variant  # type: ignore[assignment]
    made.routes[name] = Route(name, client, (str(VIP),), SERVICE_PORT)


@contextmanager
def world(variants: dict[str, Path]) -> Iterator[World]:
    with ExitStack() as stack:
        lab = stack.enter_context(Lab())
        made = World(lab, None, load.build())  # type: ignore[arg-type]
        add_node(made, BASELINE, None)
        add_node(made, "untracked", None)
        for name, sources in variants.items():
            add_node(made, name, sources)
        yield made


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.variants", description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5)
    wanted = parser.parse_args()
    variants = {name: Path(folder) for name, _, folder in (word.partition("=") for word in wanted.variants)}
    report = Report(parameters={})
    with world(variants) as made:
        for name in variants:
            costs = programs.measure(made, name, WORKLOADS, seconds=wanted.seconds)
            for cost in costs:
                runs, nanoseconds = cost.runs_per_request, cost.ns_per_run
                print(f"{name:10} {cost.workload:14} {cost.program:14} {runs:5.1f} {nanoseconds:5.0f} ns")
        if wanted.rounds:
            report.samples = rounds.measure(
                made, WORKLOADS, rounds=wanted.rounds, seconds=wanted.seconds, core_list=[0], label="one core for all",
                progress=lambda text: print(text, file=sys.stderr),
            )  # fmt: skip
    print(report.markdown())


if __name__ == "__main__":
    main()
