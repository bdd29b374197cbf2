"""Two nodes with the daemon on each, and Services made on demand. A failed test shows the daemons' logs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import pytest

from kproxy_ebpf.lab import Cni, Lab, Pod
from kproxy_ebpf.lab.daemon import Daemon
from kproxy_ebpf.lab.manifests import DEFAULT_PORTS, EndpointSpec, Ports
from kproxy_ebpf.lab.traffic import EchoServer, ask
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.services import Protocol

TCP_PORT, UDP_PORT = DEFAULT_PORTS["http"][0], DEFAULT_PORTS["dns"][0]
LOG_BYTES = 6000


@dataclass
class World:
    """Node1 has the clients and three servers, node2 one server; `vip` knows each Service's address by family."""

    lab: Lab
    daemons: list[Daemon] = field(default_factory=list)
    servers: list[EchoServer] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(10))

    @property
    def node(self):
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
        for daemon in self.daemons:
            daemon.manifests.service(service.name, [service.vip(4), service.vip(6)], ports, **spec)
        service.endpoints(pods)
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


WorldFactory = Callable[..., World]


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


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """The module's world; a module may ask for variants by indirect parameters (keywords of `build_world`)."""
    with Lab() as lab:
        request.node.lab = lab
        world = build_world(lab, **getattr(request, "param", {}))
        yield world
        close_world(world)


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """An empty lab, for modules that build their own."""
    with Lab() as lab:
        request.node.lab = lab
        yield lab


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(params=[Protocol.TCP, Protocol.UDP], ids=["tcp", "udp"])
def protocol(request: pytest.FixtureRequest) -> Protocol:
    return request.param


@pytest.fixture
def port(protocol: Protocol) -> int:
    """The Service port of `protocol` in DEFAULT_PORTS."""
    return {Protocol.TCP: TCP_PORT, Protocol.UDP: UDP_PORT}[protocol]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    module = item.getparent(pytest.Module)
    lab = getattr(module, "lab", None)
    if report.failed and lab is not None:
        for log in sorted(lab.folder.glob("*/daemon.log")):
            report.sections.append((f"log of {log.parent.name}", log.read_text()[-LOG_BYTES:]))
    return report
