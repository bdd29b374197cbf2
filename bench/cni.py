"""What the CNI plugin adds to a pod's start: ADD of the whole list without it and with it, in turn.

    .venv/bin/python -m bench.cni > bench/results/….md          as root, half a minute

Each round wires a pod by each list and takes it away again; which list comes first alternates. Making the pod's
namespace is not counted, for the runtime does that before it calls a plugin.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from kproxy_ebpf.cni.conflist import PLUGIN
from kproxy_ebpf.lab import Lab, Node
from kproxy_ebpf.lab.cni import CniPod, Runtime, ipam
from kproxy_ebpf.lab.daemon import Daemon
from kproxy_ebpf.observe.state import cni_socket

ROUNDS = 60
KINDS: Mapping[str, Mapping[str, Any]] = {"ptp": {}, "bridge": {"bridge": "pods0", "isGateway": True}}
METHODS = ("tcx", "clsact")


def lists_of(node: Node, kind: str, own: Mapping[str, str], leases: Path) -> dict[str, Runtime]:
    """The same network without our plugin and with it."""
    first = {"type": kind, **KINDS[kind], "ipam": ipam(node, leases, 100, 199)}
    lists = {"without": [first], "with": [first, own]}
    return {
        name: Runtime(node, {"cniVersion": "1.0.0", "name": f"pods-{kind}", "plugins": plugins})
        for name, plugins in lists.items()
    }


def measure(node: Node, runtimes: Mapping[str, Runtime]) -> dict[str, list[float]]:
    """Milliseconds of each ADD by list; those of one round have the same place."""
    taken: dict[str, list[float]] = {name: [] for name in runtimes}
    for number in range(ROUNDS):
        for name in sorted(runtimes, reverse=number % 2 == 0):
            pod = CniPod(node, "timed")
            began = time.perf_counter()
            runtimes[name].add(pod)
            taken[name].append(1000 * (time.perf_counter() - began))
            runtimes[name].delete(pod)
            pod.remove()
    return taken


def own_time(node: Node, runtime: Runtime) -> list[float]:
    """Milliseconds of our plugin alone, for a link that has its programs already."""
    pod, own = CniPod(node, "asked"), runtime.conflist["plugins"][-1]
    runtime.add(pod)
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        runtime.call("ADD", own, pod, result='{"cniVersion": "1.0.0"}')
        taken.append(1000 * (time.perf_counter() - began))
    runtime.delete(pod)
    pod.remove()
    return taken


def spread(values: list[float]) -> str:
    low, _, high = quantiles(values, n=4)
    return f"{median(values):.1f} ({low:.1f} to {high:.1f})"


def main() -> None:
    print(f"Linux {os.uname().release}, {os.cpu_count()} processors; {ROUNDS} pods each; `python -m bench.cni`")
    print("\n| list | attached by | ADD without, ms | ADD with, ms | more, ms | plugin alone, programs there, ms |")
    print("|---|---|---|---|---|---|")
    for method in METHODS:
        with Lab() as lab:
            node = lab.node("node1")
            with Daemon(node, flags=["--attach", method], settings={"mode": "hybrid"}) as daemon:
                own = {"type": PLUGIN, "socket": str(cni_socket(daemon.bpffs))}
                for kind in KINDS:
                    runtimes = lists_of(node, kind, own, lab.folder / "leases")
                    taken = measure(node, runtimes)
                    more = [w - wo for w, wo in zip(taken["with"], taken["without"], strict=True)]
                    cells = [spread(values) for values in (taken["without"], taken["with"], more)]
                    alone = spread(own_time(node, runtimes["with"]))
                    print(f"| {kind} | {method} | {' | '.join(cells)} | {alone} |", flush=True)


if __name__ == "__main__":
    main()
