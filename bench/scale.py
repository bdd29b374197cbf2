"""``python -m bench.scale``: what many Services cost the node's proxy, ours and the real kube-proxy.

One API server holds SERVICES Services with ENDPOINTS endpoints each. Every way (ours, kube-proxy in nftables and in
iptables mode) has a node of its own, with one client pod; the proxies run one after another, so that none pays for
another's work. What is asked last at the packet is the youngest Service, which is made after all others; its one
endpoint is then moved to and fro between two pods, while the client connects again and again.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench import freshness, probe
from bench.paths import BEST, IPTABLES, NFTABLES, PATHS
from bench.population import HTTP, MANY_SERVICES, add_service, endpoint_slice, fill, vip
from bench.proxies import OurProxy, Proxy, RealProxy, add_node_object, weight
from bench.run import progress
from bench.scale_report import FIRST_SYNC_SECONDS, Report, Result
from kproxy_ebpf.lab import Lab, Node
from kproxy_ebpf.lab.control_plane import ControlPlane, object_path
from kproxy_ebpf.lab.wait import until

WAYS = (BEST, NFTABLES, IPTABLES)
PROBED = "the-last"
CHANGE_SECONDS = 90.0  # how long one way may be asked for changes
IDLE_SECONDS = 20.0
QUIET_SECONDS = 5.0  # after the first sync, before idleness is measured


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.scale", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--endpoints", type=int, default=20, help="of each Service, up to 100")
    parser.add_argument("--ways", default=",".join(WAYS), help=f"of {', '.join(WAYS)} (default: all)")
    parser.add_argument("--changes", type=int, default=100, help="of an EndpointSlice, seen at the packet")
    parser.add_argument("--fresh-changes", type=int, default=1000, help="50 a second, seen in our map")
    parser.add_argument("--note", default="", help="what else ran on this machine")
    parser.add_argument("--no-save", action="store_true", help="leave bench/results/ as it is")
    parsed = parser.parse_args()
    unknown = set(parsed.ways.split(",")) - set(WAYS)
    if unknown:
        parser.error(f"unknown ways: {', '.join(sorted(unknown))}")
    return parsed


def make_proxy(node: Node, cluster: ControlPlane, way: str) -> Proxy:
    add_node_object(cluster, node)
    return OurProxy(node, cluster, PATHS[way].settings) if PATHS[way].is_ours else RealProxy(node, cluster, way)


def changes(cluster: ControlPlane, client: probe.Client, pods: Sequence[probe.Server], count: int) -> list[float]:
    """Move the probed endpoint `count` times, for CHANGE_SECONDS at most; milliseconds from patch to packet."""
    times: list[float] = []
    deadline = time.monotonic() + CHANGE_SECONDS
    while len(times) < count and time.monotonic() < deadline:
        wanted = pods[(len(times) + 1) % 2]
        body = {"endpoints": endpoint_slice(PROBED, [wanted.address])["endpoints"]}
        began = time.monotonic()
        cluster.api("PATCH", object_path("EndpointSlice", f"{PROBED}-1"), body)
        until(lambda: client.ask() == wanted.name, f"{wanted} to answer", seconds=60, pause=0.0005)  # noqa: B023
        times.append((time.monotonic() - began) * 1000)
    return times


@dataclass(slots=True)
class Scale:
    """The lab, its API server and what is in it."""

    lab: Lab
    cluster: ControlPlane
    wanted: argparse.Namespace
    pods: Sequence[probe.Server]

    def measure(self, way: str) -> Result:
        wanted, node = self.wanted, self.lab.node(f"n{len(self.lab.nodes) + 1}")
        client = probe.Client(node.pod("client"), vip(wanted.services), HTTP["http"].service)
        proxy = make_proxy(node, self.cluster, way)
        load = os.getloadavg()[0]
        began = time.monotonic()
        proxy.launch()
        try:
            until(client.ask, f"{way} to serve the last Service", seconds=FIRST_SYNC_SECONDS, pause=0.005)
        except TimeoutError as error:
            progress(str(error))
            return self._late(way, load, proxy)
        first_effect = time.monotonic() - began
        progress(f"{way}: first effect after {first_effect:.2f} s")
        time.sleep(QUIET_SECONDS)
        metric = probe.sample(node, proxy.metrics_port, "kubeproxy_sync_proxy_rules_duration_seconds_sum")
        before, idle = weight(proxy), self._idle(proxy)
        cpu = weight(proxy).cpu_seconds
        times = sorted(changes(self.cluster, client, self.pods, wanted.changes))
        after = weight(proxy)
        progress(f"{way}: {len(times)} changes, median {median(times):.1f} ms")
        extra = self._ours(proxy) if isinstance(proxy, OurProxy) else {}
        proxy.stop()
        return Result(
            way=way,
            services=wanted.services,
            endpoints=wanted.endpoints,
            load_average=load,
            first_effect=first_effect,
            sync_metric=metric,
            memory=before,
            idle_cpu_percent=idle,
            changes=len(times),
            change_p50_ms=median(times),
            change_p99_ms=times[min(len(times) - 1, int(len(times) * 0.99))],
            cpu_ms_per_change=(after.cpu_seconds - cpu) * 1000 / len(times),
            memory_after=after,
            **extra,
        )

    def _late(self, way: str, load: float, proxy: Proxy) -> Result:
        """Of a proxy that had no effect in all the time it got."""
        result = Result(way, self.wanted.services, self.wanted.endpoints, load, memory=weight(proxy))
        proxy.stop()
        return result

    def _ours(self, daemon: OurProxy) -> dict[str, Any]:
        """Event to map while changes come at a steady rate; then a restart beside full tables."""
        found: dict[str, Any] = {}
        if self.wanted.fresh_changes:
            found["fresh"] = freshness.measure(self.cluster, daemon, changes=self.wanted.fresh_changes)
            progress(f"event to map: {found['fresh']}")
        daemon.stop()
        began = time.monotonic()
        daemon.start()
        return {**found, "restart": time.monotonic() - began}

    def _idle(self, proxy: Proxy) -> float:
        before = weight(proxy).cpu_seconds
        time.sleep(IDLE_SECONDS)
        return (weight(proxy).cpu_seconds - before) / IDLE_SECONDS * 100


def main() -> None:
    wanted = options()
    with Lab() as lab, ControlPlane(lab.net, lab.folder / "control-plane", api_flags=MANY_SERVICES) as cluster:
        began = time.monotonic()
        fill(cluster, range(wanted.services), wanted.endpoints)
        seconds_to_fill = time.monotonic() - began
        progress(f"{wanted.services} Services of {wanted.endpoints} endpoints made in {seconds_to_fill:.1f} s")
        servers = lab.node("servers")
        pods = [probe.Server(servers.pod(name), HTTP["http"].server) for name in ("a", "b")]
        time.sleep(1)  # creation times have whole seconds: the last Service is to be the youngest
        add_service(cluster, PROBED, vip(wanted.services), [pods[0].address])
        scale = Scale(lab, cluster, wanted, pods)
        results = [scale.measure(way) for way in wanted.ways.split(",")]
    command = shlex.join(["python", "-m", "bench.scale", *sys.argv[1:]])
    report = Report(command, wanted.note, seconds_to_fill, results)
    print(report.markdown())
    if not wanted.no_save:
        progress(f"kept in {report.save()}")


if __name__ == "__main__":
    main()
