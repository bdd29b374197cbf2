"""A cluster of two nodes with the daemon on each, Services made on demand, and connections to watch."""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from tcx import EGRESS, INGRESS, programs_at

from kproxy_ebpf.lab import Cni, Lab, Node, Pod
from kproxy_ebpf.lab.daemon import Daemon
from kproxy_ebpf.lab.manifests import DEFAULT_PORTS, EndpointSpec, Ports
from kproxy_ebpf.lab.traffic import EchoServer, ask, echo, opened, read_answer
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.services import Protocol

UDP_CLIENTS = 21000  # below what the kernel hands out
TCP_PORT, UDP_PORT = DEFAULT_PORTS["http"][0], DEFAULT_PORTS["dns"][0]
VARIANTS = {"tcx": {"attach": "tcx"}, "clsact": {"attach": "clsact"}, "bridge": {"cni": Cni.BRIDGE}}


def in_worlds(*variants: str) -> pytest.MarkDecorator:
    """Run a module's tests once in each of these worlds. In the order of VARIANTS: pytest groups by position."""
    assert list(variants) == list(VARIANTS)[: len(variants)]
    return pytest.mark.parametrize("world", variants, indirect=True, scope="session")


@dataclass
class World:
    """Node1 has the clients and three servers, node2 one server; `vip` knows each Service's address by family."""

    lab: Lab
    daemons: list[Daemon] = field(default_factory=list)
    servers: list[EchoServer] = field(default_factory=list)
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
            ask(client, self.vip(family), port, protocol, timeout=0.5)
        return True

    def remove(self) -> None:
        for daemon in self.world.daemons:
            daemon.manifests.remove_service(self.name)


def build_world(lab: Lab, *, attach: str = "auto", cni: Cni = Cni.PTP, flags: tuple[str, ...] = ()) -> World:
    world = World(lab)
    node1, node2 = lab.node("node1", cni=cni), lab.node("node2", cni=cni)
    node1.pod("client")
    for name in ("web1", "web2", "web3"):
        world.serve(node1.pod(name))
    world.serve(node2.pod("far"))
    node2.pod("farclient")
    for node in (node1, node2):
        daemon = Daemon(node, flags=["--attach", attach, *flags])
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
def running_world(**options: object) -> Iterator[World]:
    """`build_world` and its end."""
    with Lab() as lab:
        world = build_world(lab, **options)
        yield world
        close_world(world)


class Crowd:
    """Open connections that a thread keeps busy until the block ends; `failures` says which broke and how."""

    def __init__(self, place, address, port, count):
        self.failures: list[str] = []
        self.rounds = 0
        self._stack = ExitStack()
        self._stop = threading.Event()
        self._handles = [self._stack.enter_context(opened(place, address, port)) for _ in range(count)]
        self.spread = Counter(read_answer(handle, 0).server for handle in self._handles)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while not self._stop.wait(0.02):
            for number, handle in enumerate(self._handles):
                if self._stop.is_set():  # with broken connections a round takes minutes
                    return
                try:
                    echo(handle, b"%d of round %d" % (number, self.rounds))
                except OSError as error:
                    self.failures.append(f"connection {number}: {error!r}")
            self.rounds += 1

    def go_on(self, count=3):
        target = self.rounds + count
        until(lambda: self.rounds >= target, f"{count} more rounds of traffic", seconds=20)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._stack.close()


class Callers:
    """UDP sockets with ports of their own that ask until the block ends; `failures` says which were left without an
    answer, or answered by another server than at first.
    """

    def __init__(self, place, address, port, count):
        self.failures: list[str] = []
        self.rounds = 0
        self._stack = ExitStack()
        self._stop = threading.Event()
        protocol = Protocol.UDP
        self._handles = [
            self._stack.enter_context(opened(place, address, port, protocol, source_port=UDP_CLIENTS + number))
            for number in range(count)
        ]
        self._servers = [self._ask(handle) for handle in self._handles]
        self.spread = Counter(self._servers)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _ask(self, handle):
        handle.send(b"?")
        return read_answer(handle, 0).server

    def _run(self):
        while not self._stop.wait(0.02):
            for number, (handle, server) in enumerate(zip(self._handles, self._servers, strict=True)):
                try:
                    answered = self._ask(handle)
                except OSError as error:
                    self.failures.append(f"caller {number}: {error!r}")
                    continue
                if answered != server:
                    self.failures.append(f"caller {number}: {answered} in place of {server}")
            self.rounds += 1

    go_on = Crowd.go_on

    def __enter__(self):
        self._thread.start()
        return self

    __exit__ = Crowd.__exit__


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
