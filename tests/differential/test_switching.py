"""Settings change under load, in any order, beside the real kube-proxy: no connection breaks or moves, whoever
translated it, and no new one fails.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from contenders import MODES, ApiDaemon, Contenders, Made

from kproxy_ebpf.config import Balancing, Forwarding, Mode
from kproxy_ebpf.lab import Node, Pod
from kproxy_ebpf.lab.crowd import Crowd
from kproxy_ebpf.lab.traffic import Load
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.services import Protocol

SWITCHES = 50
OPENED_EACH_TIME = 2
SETTINGS = [
    {"mode": mode, "forwarding": forwarding, "balancing": balancing}
    for mode, forwarding, balancing in itertools.product(map(str, Mode), map(str, Forwarding), map(str, Balancing))
]
WAYS = list(itertools.product((4, 6), (Protocol.TCP, Protocol.UDP)))


class Switching:
    """The real kube-proxy's node, connections that it has made, and ours that comes second and starts with mode off."""

    def __init__(self, world: Contenders, kube_proxy_mode: str) -> None:
        self.node: Node = world.nodes[kube_proxy_mode]
        self.client: Pod = world.clients[kube_proxy_mode]
        self.service: Made = world.made["node-port"]
        self.daemon = ApiDaemon(self.node, world.control)
        self.daemon.settings({"mode": "off"})

    def crowd(self, family: int, protocol: Protocol) -> Crowd:
        return Crowd(self.client, self.service.addresses["cluster", family], 80, 4, protocol)

    def load(self, family: int, protocol: Protocol) -> Load:
        return Load(self.client, self.service.addresses["cluster", family], 80, protocol, pause=0.005)

    def switch(self, settings: dict[str, str]) -> None:
        """Change the settings, and wait until they are in force."""
        self.daemon.settings(settings)
        wanted = {key: str(value) for key, value in settings.items()}.items()
        until(lambda: wanted <= self.in_force().items(), f"{settings} in force", seconds=10)

    def in_force(self) -> dict[str, str]:
        whole = self.daemon.log().rpartition("\n")[0].splitlines()  # the daemon may be writing another line
        *_, last = (line for line in whole if "settings in force" in line)
        return json.loads(last)


@pytest.fixture(params=MODES)
def switching(world: Contenders, request: pytest.FixtureRequest) -> Iterator[Switching]:
    made = Switching(world, request.param)
    yield made
    if made.daemon.process is not None:
        made.daemon.stop()
    made.daemon.command("cleanup")


def test_fifty_switches_break_nothing(switching: Switching) -> None:
    chance = random.Random(SWITCHES)
    with ExitStack() as stack:
        crowds = [stack.enter_context(switching.crowd(*way)) for way in WAYS]  # by kube-proxy
        switching.daemon.start()
        loads = [switching.load(*way) for way in WAYS]
        try:
            for _ in range(SWITCHES):
                switching.switch(chance.choice(SETTINGS))
                for crowd in crowds:
                    crowd.grow(OPENED_EACH_TIME)
                for traffic in (*crowds, *loads):
                    traffic.go_on(2)
        finally:
            for load in loads:
                load.stop()
        failures = [failure for traffic in (*crowds, *loads) for failure in traffic.failures]
    assert failures == []
