"""A hundred rolling updates of a Service of ten pods: no connection fails, none is reset."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest
from worlds import in_force

from kproxy_ebpf.lab.manifests import EndpointSpec
from kproxy_ebpf.lab.traffic import EchoServer, echo, opened, read_answer
from kproxy_ebpf.lab.wait import until

UPDATES, REPLICAS, SURGE = 100, 10, 5
VISITORS_PER_ADDRESS = 1
PORTS = {"http": (80, "TCP", 8080)}


class Visitors:
    """Connections one after the other, each with some requests, from pods of both nodes to both VIPs at once."""

    def __init__(self, world, service):
        self.failures, self.seen = [], set()
        self._stop = threading.Event()
        places = [world.client, world.lab.nodes["node2"].pods["farclient"]]
        targets = [(place, service.vip(family)) for place in places for family in (4, 6)] * VISITORS_PER_ADDRESS
        self._visits = [0] * len(targets)
        self._threads = [
            threading.Thread(target=self._run, args=(number, *target)) for number, target in enumerate(targets)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, number, place, vip):
        while not self._stop.is_set():
            try:
                self._visit(place, vip)
            except OSError as error:
                self.failures.append(f"visit {self._visits[number]} of {place.name} to {vip}: {error!r}")
            self._visits[number] += 1

    def _visit(self, place, vip):
        with opened(place, vip, 80) as connection:
            self.seen.add(read_answer(connection, 0).server)
            for message in (b"one", b"two", b"three"):
                echo(connection, message)
                self._stop.wait(0.003)

    def ended(self):
        """Wait until every connection that is open now has ended."""
        before = list(self._visits)
        until(
            lambda: all(now > then for now, then in zip(self._visits, before, strict=True)),
            "the open connections to end",
            seconds=20,
        )

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()


class Deployment:
    """Ten pods serve; an update replaces them by the other ten, as a Deployment does: half of them at a time."""

    def __init__(self, world):
        self.world = world
        nodes = world.lab.nodes["node1"], world.lab.nodes["node2"]
        self.pods = [nodes[number % 2].pod(f"r{number}") for number in range(2 * REPLICAS)]
        self.servers = {}
        self.current, self.next = self.pods[:REPLICAS], self.pods[REPLICAS:]
        self.serving = list(self.current)
        for pod in self.current:
            self.begin(pod)
        self.service = world.service(self.current, PORTS)

    def begin(self, pod):
        self.servers[pod] = EchoServer(pod, pod.name).listen(pod.ip4, 8080).listen(pod.ip6, 8080)

    def end(self, pod):
        """Whoever is sent here from now on is refused, whoever is still here is reset."""
        self.servers.pop(pod).close()

    def update(self, visitors):
        """Each step is one change of the slices: ready → terminating, and terminating → not there any more."""
        for first in range(0, REPLICAS, SURGE):
            leaving, coming = self.current[first : first + SURGE], self.next[first : first + SURGE]
            for pod in coming:
                self.begin(pod)
            self.serving = [pod for pod in self.serving if pod not in leaving] + coming
            self.publish([*self.serving, *(endpoint for pod in leaving for endpoint in terminating(pod))])
            visitors.ended()
            for pod in leaving:
                self.end(pod)
        self.current, self.next = self.next, self.current

    def publish(self, endpoints):
        """Write the slices of both families; they are in force on both nodes when this returns."""
        with ExitStack() as stack:
            for daemon in self.world.daemons:
                stack.enter_context(in_force(daemon, slices=2))
            self.service.endpoints(endpoints)

    def remove(self):
        self.service.remove()
        for pod in self.pods:
            pod.node.remove(pod)
        for server in self.servers.values():
            server.close()


def terminating(pod):
    return [
        EndpointSpec(address, ready=False, serving=True, terminating=True, node_name=pod.node.name)
        for address in (pod.ip4, pod.ip6)
    ]


@pytest.fixture
def deployment(world):
    deployment = Deployment(world)
    yield deployment
    deployment.remove()


def test_a_hundred_rolling_updates_without_a_failed_or_reset_connection(world, deployment):
    visitors = Visitors(world, deployment.service)
    try:
        for _ in range(UPDATES):
            visitors.seen.clear()
            deployment.update(visitors)
            visitors.ended()
            assert visitors.failures == []
        visitors.seen.clear()
        until(lambda: visitors.seen == {pod.name for pod in deployment.current}, "all pods of the last update to serve")
    finally:
        visitors.stop()
    assert visitors.failures == []
