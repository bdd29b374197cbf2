"""The lab that is measured: a real API server, and for each path a site: nodes, pods, proxies and Services of its own.

Each site has its own client: two paths from one client address to one server would meet each other's TIME_WAIT sockets.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from types import MappingProxyType

from bench import load, population
from bench.load import URGENT
from bench.paths import LOOPBACK, PATHS
from bench.population import MANY_SERVICES, Port
from bench.proxies import OurProxy, Proxy, RealProxy, add_node_object
from kproxy_ebpf.lab import Lab, Namespace, Node, Pod
from kproxy_ebpf.lab.control_plane import ControlPlane
from kproxy_ebpf.lab.wait import until

ECHO, HTTP, STREAM = "echo", "http", "stream"
ECHO_PORTS = {"echo": Port(80, 8080), "echo-udp": Port(80, 8080, "UDP")}
SINGLE_PORTS = {"http": Port(81, 8081), "stream": Port(82, 8082)}
PORTS = ECHO_PORTS | SINGLE_PORTS
FIRST_VIP = IPv4Address("10.96.240.1")  # above all that population.fill hands out
SERVED_SECONDS = 120
# Our daemon looks again at the kernel's links, routes, neighbours and connections at least every 5 s.
SETTLE_TRAFFIC_SECONDS, SETTLE_SECONDS = 0.3, 6.0
LAST_OCTET_MAX = 250

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
NGINX = """daemon off; master_process off; worker_processes 1; pid {folder}/pid;
events {{ worker_connections 1024; }}
http {{
    access_log off; keepalive_requests 1000000000;
    server {{ listen {address}:{port}; location / {{ return 200 "hello\\n"; }} }}
}}
"""


@dataclass(frozen=True, slots=True)
class Route:
    """From where to where requests go. Every connection to `single` meets the same server."""

    path: str
    setting: str
    place: Namespace
    targets: tuple[str, ...]
    single: str
    through_service: bool

    def port(self, name: str) -> int:
        return PORTS[name].service if self.through_service else PORTS[name].server


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a site: how many `backends` its Service has, in how many server `pods` (several addresses each where there are
    more backends than pods), through how many `vips`; `nodes` 2: the servers on another node than the client;
    `outside`: nginx and iperf3 beside the first echo server.
    """

    pods: int = 3
    backends: int = 3
    vips: int = 1
    nodes: int = 1
    outside: bool = False


class Site:
    """One path, its nodes and pods; `start` and `wait` bring its proxies and its route into being."""

    def __init__(self, world: World, path_name: str, setting: str, shape: Shape) -> None:
        self.world, self.path, self.setting, self.shape = world, PATHS[path_name], setting, shape
        self.nodes = [world.new_node() for _ in range(shape.nodes)]
        self.client: Pod = self.nodes[0].pod("client")
        self.client.sysctl(CLIENT)
        self.server_pods = [self._server_pod(number) for number in range(shape.pods)]
        self.addresses = self._addresses()
        self._serve()
        self.proxies: list[Proxy] = []
        self.seconds_to_effect = 0.0
        if self.path.tracked:
            for node in self.nodes:
                node.run(["nft", "-f", "-"], input=TRACKED)
        self.vips, self.single = self._add_services() if self.path.balances else ((), self.addresses[0])

    @property
    def route(self) -> Route:
        targets = self.vips or self.addresses
        return Route(self.path.name, self.setting, self.client, targets, self.single, bool(self.vips))

    @property
    def ours(self) -> OurProxy | None:
        return next((proxy for proxy in self.proxies if isinstance(proxy, OurProxy)), None)

    def launch(self, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        """Start the proxies of all nodes, our daemons with more in their environment, and don't wait for them."""
        for node in self.nodes if self.path.balances else ():
            add_node_object(self.world.cluster, node)
            if self.path.kube_proxy:
                self.proxies.append(RealProxy(node, self.world.cluster, self.path.kube_proxy))
            if self.path.settings is not None:
                ours = OurProxy(node, self.world.cluster, self.path.settings)
                ours.environment |= environment
                self.proxies.append(ours)
        self._launched = time.monotonic()
        for proxy in self.proxies:
            proxy.launch()

    def wait(self, seconds: float = SERVED_SECONDS) -> None:
        """Until every VIP is served. Raises TimeoutError, RuntimeError."""
        if not self.path.balances:
            return
        for vip in self.vips:
            until(
                lambda: self._is_served(vip),  # noqa: B023
                f"{vip} to be served by {self.path.name}",
                seconds=max(1.0, self._launched + seconds - time.monotonic()),
                pause=0.05,
            )
        self.seconds_to_effect = time.monotonic() - self._launched
        for proxy in self.proxies:
            if isinstance(proxy, OurProxy):
                proxy.wait_ready()

    def _is_served(self, vip: str) -> bool:
        for proxy in self.proxies:
            if proxy.process is None or proxy.process.poll() is not None:
                log = proxy.folder / ("daemon.log" if isinstance(proxy, OurProxy) else "log")
                raise RuntimeError(f"the proxy of {self.path.name} has ended: {log.read_text()[-2000:]}")
        return load.answers(self.world.program, self.client, vip, PORTS[ECHO].service)

    def stop(self) -> None:
        """End the proxies: what they have put in force stays."""
        while self.proxies:
            self.proxies.pop().stop()

    def _server_pod(self, number: int) -> Pod:
        return self.client if self.path.name == LOOPBACK else self.nodes[-1].pod(f"web{number}")

    def _addresses(self) -> tuple[str, ...]:
        if self.path.name == LOOPBACK:
            return ("127.0.0.1",)
        if self.shape.backends <= self.shape.pods:
            return tuple(pod.ip4 for pod in self.server_pods[: self.shape.backends])
        return tuple(self._further_address(number) for number in range(self.shape.backends))

    def _further_address(self, number: int) -> str:
        """Of a pod with many. Routed through the pod's own: the table of neighbours holds no thousand."""
        index, host = number % self.shape.pods, number // self.shape.pods + 1
        assert host <= LAST_OCTET_MAX
        block = f"10.250.{len(self.world.lab.nodes) * self.shape.pods + index}"
        if host == 1:
            pod, node = self.server_pods[index], self.nodes[-1]
            node.ip(f"route add {block}.0/24 via {pod.ip4} dev {pod.host_link} onlink")
            pod.ip(f"route add local {block}.0/24 dev lo")
        return f"{block}.{host}"

    def _serve(self) -> None:
        own = self.shape.backends <= self.shape.pods
        for pod in self.server_pods[: len(self.addresses)]:
            address = self.addresses[0] if self.path.name == LOOPBACK else pod.ip4 if own else "0.0.0.0"  # noqa: S104
            self.world.servers.append(load.serve(self.world.program, pod, address, PORTS[ECHO].server))
        if self.shape.outside:
            self._serve_outside(self.server_pods[0], self.addresses[0])

    def _serve_outside(self, pod: Pod, address: str) -> None:
        folder = self.world.lab.folder / f"nginx-{pod.netns}"
        folder.mkdir()
        config = folder / "nginx.conf"
        config.write_text(NGINX.format(folder=folder, address=address, port=PORTS[HTTP].server))
        quiet = subprocess.DEVNULL
        for command in (
            ["nginx", "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(config)],
            ["iperf3", "-s", "-B", address, "-p", str(PORTS[STREAM].server)],
        ):
            process = pod.popen([*URGENT, *command], stdout=quiet, stderr=quiet, start_new_session=True)
            self.world.servers.append(process)

    def _add_services(self) -> tuple[tuple[str, ...], str]:
        """The echo servers' VIPs, and the one of the outside tools' servers."""
        vips = tuple(
            self.world.add_service(f"web-{self.nodes[0].name}-{number}", self.addresses, ECHO_PORTS)
            for number in range(self.shape.vips)
        )
        if not self.shape.outside:
            return vips, vips[0]
        return vips, self.world.add_service(f"one-{self.nodes[0].name}", self.addresses[:1], SINGLE_PORTS)


@dataclass(slots=True)
class World:
    lab: Lab
    cluster: ControlPlane
    program: Path  # the load generator
    sites: list[Site] = field(default_factory=list)
    servers: list[subprocess.Popen[str]] = field(default_factory=list)
    keep: list[object] = field(default_factory=list)  # what must not be collected before the end
    filled: int = 0
    service_count: int = 0

    def site(self, path: str, *, setting: str = "", shape: Shape = Shape()) -> Site:
        """Its pods and servers are there when this returns, its Services at the API server; its proxies are not."""
        site = Site(self, path, setting, shape)
        self.sites.append(site)
        return site

    def start(self, sites: Sequence[Site], *, seconds: float = SERVED_SECONDS) -> None:
        """All of them at once. Raises TimeoutError, RuntimeError."""
        for site in sites:
            site.launch()
        for site in sites:
            site.wait(seconds)
        self.warm_up(sites)

    def warm_up(self, sites: Sequence[Site]) -> None:
        """Let our daemons learn what only traffic shows: the neighbours that redirected packets go to."""
        ours = [site for site in sites if site.ours]
        for site in ours:
            words = ["short", "tcp", *site.route.targets, str(site.route.port(ECHO))]
            load.run(self.program, site.client, words, seconds=SETTLE_TRAFFIC_SECONDS, cores=(0,))
        if ours:
            time.sleep(SETTLE_SECONDS)

    def new_node(self) -> Node:
        node = self.lab.node(f"n{len(self.lab.nodes) + 1}")
        node.sysctl(NODE)
        return node

    def pin_servers(self, cores: Sequence[int]) -> None:
        for server in self.servers:
            os.sched_setaffinity(server.pid, cores)

    def add_service(self, name: str, endpoints: Sequence[str], ports: dict[str, Port]) -> str:
        """One that a site asks; its VIP."""
        vip = str(FIRST_VIP + self.service_count - self.filled)
        population.add_service(self.cluster, name, vip, endpoints, ports)
        self.service_count += 1
        return vip

    def fill(self, count: int) -> None:
        """Add Services that nobody asks, of one absent endpoint each, until there are `count` in all."""
        missing = count - self.service_count
        if missing > 0:
            population.fill(self.cluster, range(self.filled, self.filled + missing), 1)
            self.filled += missing
            self.service_count += missing


@contextmanager
def world() -> Iterator[World]:
    """An empty one; all is gone when the block ends."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab())
        cluster = stack.enter_context(ControlPlane(lab.net, lab.folder / "control-plane", api_flags=MANY_SERVICES))
        yield World(lab, cluster, load.build())
