"""What is measured: one node for each way to a Service, all fed by one real API server.

Every node has a client pod and BACKENDS server pods of its own, and a Service "web-NODE" in front of the servers. Each
path has its own client: two paths from one client address to one server would meet each other's TIME_WAIT sockets.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import yaml

from bench import load
from kproxy_ebpf.lab import Lab, Namespace, Node, Pod
from kproxy_ebpf.lab.control_plane import ControlPlane, object_path
from kproxy_ebpf.lab.daemon import Daemon
from kproxy_ebpf.lab.wait import until

BACKENDS = 3
SERVICE_PORT, SERVER_PORT = 80, 8080
FIRST_VIP = IPv4Address("10.96.100.1")
FIRST_ABSENT_ENDPOINT = IPv4Address("10.245.0.1")  # endpoints of the Services that nobody asks
SYNC_SECONDS = 120

# A client that makes and closes tens of thousands of connections a second: its ports must not run out.
CLIENT = {"ipv4/tcp_tw_reuse": "1", "ipv4/ip_local_port_range": "1024 65535"}
# conntrack's collector stalls a core for milliseconds where closed connections pile up; and rejects are answers.
NODE = {
    "netfilter/nf_conntrack_tcp_timeout_time_wait": "2",
    "netfilter/nf_conntrack_udp_timeout": "2",
    "netfilter/nf_conntrack_udp_timeout_stream": "2",
    "ipv4/icmp_ratelimit": "0",
}
TRACKED = "add table inet bench; add chain inet bench c {type filter hook forward priority 0;}; " + (
    "add rule inet bench c ct state established,related accept"
)


@dataclass(frozen=True, slots=True)
class Way:
    """How a node serves its pods: which kube-proxy it runs ("" for none), whether our daemon, and without either
    whether the host tracks connections, as it does beside a kube-proxy and under any firewall.
    """

    label: str
    kube_proxy: str = ""
    daemon: bool = False
    tracked: bool = False

    @property
    def balances(self) -> bool:
        return bool(self.kube_proxy) or self.daemon


WAYS = {
    "direct": Way("direct pod IP, tracked by the host", tracked=True),
    "untracked": Way("direct pod IP, untracked"),
    "tc": Way("kproxy-ebpf, tc", daemon=True),
    "beside": Way("kproxy-ebpf, tc, beside kube-proxy nftables", kube_proxy="nftables", daemon=True),
    "nftables": Way("kube-proxy nftables", kube_proxy="nftables"),
    "iptables": Way("kube-proxy iptables", kube_proxy="iptables"),
}
LOOPBACK = "loopback"
LABELS = {LOOPBACK: "loopback, the ceiling"} | {name: way.label for name, way in WAYS.items()}
BASELINE = "direct"


@dataclass(frozen=True, slots=True)
class Route:
    """From where to where requests go."""

    name: str
    place: Namespace
    targets: tuple[str, ...]
    port: int


class ApiDaemon(Daemon):
    """Our daemon, fed by the API server instead of a folder."""

    kubeconfig: Path

    def arguments(self) -> list[str]:
        words = super().arguments()
        at = words.index("--manifests")
        return [*words[:at], "--kubeconfig", str(self.kubeconfig), *words[at + 2 :]]


@dataclass(slots=True)
class World:
    lab: Lab
    cluster: ControlPlane
    program: Path
    routes: dict[str, Route] = field(default_factory=dict)
    daemons: dict[str, ApiDaemon] = field(default_factory=dict)
    kube_proxies: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    servers: list[subprocess.Popen[str]] = field(default_factory=list)
    service_count: int = 0
    seconds_to_start: dict[str, float] = field(default_factory=dict)

    def pin_servers(self, cores: Sequence[int]) -> None:
        for server in self.servers:
            os.sched_setaffinity(server.pid, cores)

    def add_service(self, name: str, vip: str, endpoints: Sequence[str]) -> None:
        ports = [
            {"name": name, "port": SERVICE_PORT, "protocol": name.upper(), "targetPort": SERVER_PORT}
            for name in ("tcp", "udp")
        ]
        service = {"metadata": {"name": name}, "spec": {"clusterIP": vip, "ports": ports}}
        self.cluster.api("POST", object_path("Service"), service)
        self.cluster.api("POST", object_path("EndpointSlice"), slice_of(name, endpoints))
        self.service_count += 1

    def grow(self, count: int) -> None:
        """Add Services that nobody asks until there are `count`, and wait until every node serves the last one."""
        while self.service_count < count - 1:
            first = FIRST_ABSENT_ENDPOINT + BACKENDS * self.service_count
            self.add_service(f"other-{self.service_count}", self.next_vip(), [str(first + i) for i in range(BACKENDS)])
        if self.service_count < count:
            vip = self.next_vip()
            self.add_service(f"last-{count}", vip, self.routes[BASELINE].targets)
            for name, way in WAYS.items():
                if name in self.routes and way.balances:
                    self.wait_served(self.routes[name].place, vip)

    def wait_served(self, client: Namespace, vip: str) -> None:
        until(
            lambda: load.answers(self.program, client, vip, SERVICE_PORT),
            f"{vip} to be served at {client.netns}",
            seconds=SYNC_SECONDS,
            pause=0.2,
        )

    def next_vip(self) -> str:
        return str(FIRST_VIP + self.service_count)

    def add_way(self, name: str) -> None:
        """A node with its pods, Service, proxies, and its route; returns when requests pass."""
        way = WAYS[name]
        node = self.lab.node(name)
        node.sysctl(NODE)
        client = node.pod("client")
        client.sysctl(CLIENT)
        backends = [node.pod(f"web{number}") for number in range(BACKENDS)]
        self.servers += [load.serve(self.program, pod, pod.ip4, SERVER_PORT) for pod in backends]
        vip, addresses = self.next_vip(), tuple(pod.ip4 for pod in backends)
        self.add_service(f"web-{name}", vip, addresses)
        self._add_node_object(node)
        if way.kube_proxy:
            self.kube_proxies[name] = self._start_kube_proxy(node, way.kube_proxy)
        if way.daemon:
            self.daemons[name] = self._start_daemon(node)
        if way.tracked:
            node.run(["nft", "-f", "-"], input=TRACKED)
        if way.balances:
            self.routes[name] = Route(name, client, (vip,), SERVICE_PORT)
            self.wait_served(client, vip)
        else:
            self.routes[name] = Route(name, client, addresses, SERVER_PORT)

    def add_loopback(self) -> None:
        pod: Pod = self.lab.nodes[BASELINE].pod("loopback")
        pod.sysctl(CLIENT)
        self.servers.append(load.serve(self.program, pod, "127.0.0.1", SERVER_PORT))
        self.routes[LOOPBACK] = Route(LOOPBACK, pod, ("127.0.0.1",), SERVER_PORT)

    def _add_node_object(self, node: Node) -> None:
        """kube-proxy wants its Node, with an address."""
        self.cluster.api("POST", object_path("Node"), {"metadata": {"name": node.name}})
        status = {"addresses": [{"type": "InternalIP", "address": node.ip4}]}
        self.cluster.api("PATCH", f"{object_path('Node', node.name)}/status", {"status": status})

    def _start_kube_proxy(self, node: Node, mode: str) -> subprocess.Popen[str]:
        folder = self.lab.folder / f"kube-proxy-{node.name}"
        folder.mkdir()
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(self.cluster.kubeconfig())},
            "hostnameOverride": node.name,
            "mode": mode,
            "clusterCIDR": "10.244.0.0/16",
            "conntrack": {"maxPerCore": 0},
        }
        folder.joinpath("config.yaml").write_text(yaml.safe_dump(config))
        with folder.joinpath("log").open("w") as log:
            command = [str(self.cluster.programs / "kube-proxy"), f"--config={folder / 'config.yaml'}"]
            return node.popen(command, stdout=log, stderr=subprocess.STDOUT)

    def _start_daemon(self, node: Node) -> ApiDaemon:
        daemon = ApiDaemon(node)
        daemon.kubeconfig = self.cluster.kubeconfig()
        begin = time.monotonic()
        daemon.start()
        self.seconds_to_start[f"{node.name}: compile, load, first sync"] = time.monotonic() - begin
        return daemon


def slice_of(service: str, endpoints: Sequence[str], *, ready: bool = True) -> dict[str, Any]:
    """A hand-written EndpointSlice of `service`."""
    return {
        "metadata": {"name": f"{service}-1", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"name": name, "port": SERVER_PORT, "protocol": name.upper()} for name in ("tcp", "udp")],
        "endpoints": [{"addresses": [address], "conditions": {"ready": ready}} for address in endpoints],
    }


@contextmanager
def world(names: Sequence[str]) -> Iterator[World]:
    """Build it, with the paths of `names` (and the baseline); all is gone when the block ends."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab())
        cluster = stack.enter_context(ControlPlane(lab.net, lab.folder / "control-plane"))
        made = World(lab, cluster, load.build())
        for name in (BASELINE, *(name for name in WAYS if name in names and name != BASELINE)):
            made.add_way(name)
        if LOOPBACK in names:
            made.add_loopback()
        yield made
