"""A cluster of two nodes with the daemon on each, Services made on demand, and connections to watch."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from tcx import EGRESS, INGRESS, programs_at

from kproxy_ebpf.lab import CLUSTER_CIDRS, Cni, Lab, Node, Pod, Underlay
from kproxy_ebpf.lab.daemon import Daemon
from kproxy_ebpf.lab.manifests import DEFAULT_PORTS, EndpointSpec, Ports
from kproxy_ebpf.lab.traffic import TRY_SECONDS, EchoServer, ask, family_of, opened
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.services import Protocol

BULK = (5001, "TCP", 5001)
TCP_PORT, UDP_PORT = DEFAULT_PORTS["http"][0], DEFAULT_PORTS["dns"][0]
# As on every node that a kube-proxy serves. Without it conntrack drops a new connection that would be mistaken for one
# that it has translated and remembers; with it the new connection gets another source port.
NAT = "table inet nat { chain postrouting { type nat hook postrouting priority 100; }; }"
VARIANTS = {
    "tcx": {"attach": "tcx", "mode": "tc"},
    "clsact": {"attach": "clsact", "cni": Cni.PTP_PLUGIN, "mode": "tc"},
    "bridge": {"cni": Cni.BRIDGE_PLUGIN, "mode": "tc"},
    "hybrid": {},
    "redirect": {"forwarding": "redirect", "cni": Cni.PTP_PLUGIN, "mode": "tc"},
    "redirect-clsact": {"forwarding": "redirect", "attach": "clsact", "mode": "tc"},
    "redirect-bridge": {"forwarding": "redirect", "cni": Cni.BRIDGE_PLUGIN},
    "redirect-vxlan": {"forwarding": "redirect", "underlay": Underlay.VXLAN},
}


def in_worlds(*variants: str) -> pytest.MarkDecorator:
    """Run a module's tests once in each of these worlds. In the order of VARIANTS: pytest groups by position."""
    assert list(variants) == [name for name in VARIANTS if name in variants]
    return pytest.mark.parametrize("world", variants, indirect=True, scope="session")


@dataclass
class World:
    """Node1 has the clients and three servers, node2 one server; `vip` knows each Service's address by family."""

    lab: Lab
    daemons: list[Daemon] = field(default_factory=list)
    servers: list[EchoServer] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(10))

    @property
    def node(self) -> Node:
        return self.lab.nodes["node1"]

    @property
    def daemon(self) -> Daemon:
        return self.daemons[0]

    @property
    def client(self) -> Pod:
        return self.node.pods["client"]

    @property
    def webs(self) -> list[Pod]:
        return [pod for name, pod in self.node.pods.items() if name.startswith("web")]

    def switch(self, daemon: Daemon | None = None, **changes: str) -> None:
        """The world's settings with these changes, on one node. Hyphens are written as underscores."""
        given = {name.replace("_", "-"): value for name, value in changes.items()}
        (daemon or self.daemon).settings(self.settings | given)

    def serve(self, pod: Pod, ports: Ports = DEFAULT_PORTS) -> EchoServer:
        """Let `pod` answer on the target ports of `ports` with its name, on both of its addresses."""
        server = EchoServer(pod, pod.name)
        for _, protocol, target in ports.values():
            for address in (pod.ip4, pod.ip6):
                server.listen(address, target, Protocol[protocol])
        self.servers.append(server)
        return server

    def service(
        self,
        pods: Iterable[Pod | EndpointSpec],
        ports: Ports = DEFAULT_PORTS,
        *,
        name: str = "",
        wait: bool = True,
        **spec: object,
    ) -> Service:
        """A new Service with two VIPs and these endpoints, in force on every node when this returns."""
        number = next(self._numbers)
        service = Service(self, name or f"service-{number}", f"10.96.0.{number}", f"fd00:96::{number}", ports)
        service.endpoints(
            pods
        )  # first: a Service that is there without them refuses, and `wait` takes that for an answer
        for daemon in self.daemons:
            daemon.manifests.service(service.name, [service.vip(4), service.vip(6)], ports, **spec)
        if wait:
            service.wait()
        return service


@dataclass
class Service:
    world: World
    name: str
    vip4: str
    vip6: str
    ports: Ports

    def vip(self, family: int) -> str:
        return {4: self.vip4, 6: self.vip6}[family]

    def endpoints(self, pods: Iterable[Pod | EndpointSpec]) -> None:
        endpoints: list[str | EndpointSpec] = []
        for pod in pods:
            endpoints += [pod] if isinstance(pod, EndpointSpec) else [pod.ip4, pod.ip6]
        for daemon in self.world.daemons:
            daemon.manifests.endpoints(self.name, endpoints, self.ports)

    def wait(self) -> None:
        """Until every frontend answers the clients on both nodes, be it with a refusal."""
        clients = [self.world.client, self.world.lab.nodes["node2"].pods["farclient"]]
        for client, family, (port, protocol, _) in itertools.product(clients, (4, 6), self.ports.values()):
            until(partial(self.answers, client, family, port, Protocol[protocol]), f"{self.name} to be in force")

    def answers(self, client: Pod, family: int, port: int, protocol: Protocol) -> bool:
        with suppress(ConnectionRefusedError):
            ask(client, self.vip(family), port, protocol, timeout=TRY_SECONDS)
        return True

    def remove(self) -> None:
        for daemon in self.world.daemons:
            daemon.manifests.remove_service(self.name)


def build_world(
    lab: Lab,
    *,
    attach: str = "auto",
    cni: Cni = Cni.PTP,
    flags: tuple[str, ...] = (),
    mode: str = "hybrid",
    forwarding: str = "stack",
) -> World:
    settings = {"mode": mode, "forwarding": forwarding}
    if forwarding == "redirect":
        settings["cluster-cidr"] = CLUSTER_CIDRS
    world = World(lab, settings=settings)
    node1, node2 = lab.node("node1", cni=cni), lab.node("node2", cni=cni)
    node1.pod("client")
    for name in ("web1", "web2", "web3"):
        world.serve(node1.pod(name))
    world.serve(node2.pod("far"))
    node2.pod("farclient")
    for node in (node1, node2):
        node.run(["nft", "-f", "-"], input=NAT)
        daemon = Daemon(node, flags=["--attach", attach, *flags], settings=settings)
        world.daemons.append(daemon)
        daemon.launch()
    for daemon in world.daemons:
        daemon.wait_ready()
    return world


def close_world(world: World) -> None:
    for server in world.servers:
        server.close()
    for daemon in world.daemons:
        if daemon.process is not None:
            daemon.stop()


@contextmanager
def running_world(*, underlay: Underlay = Underlay.ROUTED, **options: object) -> Iterator[World]:
    """A world that is built before the block and closed after it."""
    with Lab(underlay) as lab:
        world = build_world(lab, **options)
        yield world
        close_world(world)


@contextmanager
def in_force(daemon: Daemon, *, slices: int) -> Iterator[None]:
    """The block changes that many EndpointSlices; when it is left, what it has changed is in the tables."""

    def changes() -> tuple[float, float]:
        metrics = daemon.metrics()
        name = "kubeproxy_sync_proxy_rules_endpoint_changes"
        return metrics[f"{name}_total"], metrics[f"{name}_pending"]

    goal = changes()[0] + slices
    yield

    def done() -> bool:
        seen, pending = changes()
        return seen >= goal and not pending

    until(done, f"{slices} slices to be in force")


def programs_of(daemon: Daemon) -> dict[str, object]:
    """The kernel's ids of the pinned programs, and of those attached to each pod's link."""
    pins = sorted((daemon.bpffs / "kproxy-ebpf" / "current").resolve().glob("programs/*"))
    assert pins
    links = [pod.host_link for pod in daemon.node.pods.values()]
    return {pin.name: bpftool("prog", "show", "pinned", str(pin))["id"] for pin in pins} | {
        f"{link} {hook}": attached(daemon.node, link, hook) for link in links for hook in ("ingress", "egress")
    }


def attached(node: Node, link: str, hook: str) -> tuple[list[int], str]:
    """What is at a hook of a link: ids of programs by TCX, and `tc`'s words on filters."""
    by_tcx = programs_at(node, link, {"ingress": INGRESS, "egress": EGRESS}[hook])
    return by_tcx, node.run(["tc", "filter", "show", "dev", link, hook]).stdout


def bpftool(*words: str) -> Any:
    return json.loads(subprocess.run(["bpftool", "-j", *words], capture_output=True, text=True, check=True).stdout)


@contextmanager
def connected(client, vip, server) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection to `server` through port BULK of `vip`, as (client's socket, server's socket)."""
    family = family_of(vip)
    address = server.ip4 if family is socket.AF_INET else server.ip6
    with server.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, BULK[2]))
        listener.listen()
        listener.settimeout(5)
        with opened(client, vip, BULK[0], timeout=10) as outgoing:
            incoming = listener.accept()[0]
            with incoming:
                incoming.settimeout(10)
                yield outgoing, incoming
