"""Beside the real kube-proxy on one node: the host's own traffic stays with it, the pods' comes to us, and either may
start, restart and stop at any time.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from contenders import NODE_ADDRESSES, ApiDaemon, Contenders, Made

from kproxy_ebpf.lab import Node, Pod
from kproxy_ebpf.lab.kube_proxy import KubeProxy
from kproxy_ebpf.lab.traffic import Load, ask, echo, opened, read_answer
from kproxy_ebpf.model.services import Protocol

NODE = "iptables"  # it serves node ports on all addresses of the node, so that the world outside has one to call
TRIES = 20


class Together:
    """A node with both of them; ours comes second."""

    def __init__(self, world: Contenders) -> None:
        self.world = world
        self.node: Node = world.nodes[NODE]
        self.client: Pod = world.clients[NODE]
        self.kube_proxy: KubeProxy = next(proxy for proxy in world.proxies if proxy.node is self.node)
        self.service: Made = world.made["node-port"]
        self.daemon = ApiDaemon(self.node, world.control)
        self.daemon.settings({"mode": "tc"})  # what the programs at the links do is counted there

    def balanced(self) -> float:
        """How many connections our programs have balanced."""
        return self.daemon.metrics()['kproxy_ebpf_verdicts_total{verdict="balanced"}']

    def ask_from_host(self) -> None:
        """A ClusterIP from the node itself, as its kubelet or a hostNetwork pod would; a node port from outside."""
        for family in (4, 6):
            for _ in range(TRIES):
                ask(self.node, self.service.addresses["cluster", family], 80)
        for protocol, port in self.service.node_ports.items():
            ask(self.world.lab.net, self.node.ip4, port, protocol)

    def ask_from_pod(self) -> None:
        for family in (4, 6):
            for _ in range(TRIES):
                ask(self.client, self.service.addresses["cluster", family], 80)


@pytest.fixture(scope="module")
def together(world: Contenders) -> Iterator[Together]:
    both = Together(world)
    yield both
    if both.daemon.process is not None:
        both.daemon.stop()
    if both.kube_proxy.process is None:
        both.kube_proxy.start()


def test_a_connection_that_kube_proxy_translated_stays_its_own(together: Together) -> None:
    with opened(together.client, together.service.addresses["cluster", 4], 80) as early:
        read_answer(early, 0)
        port = early.getsockname()[1]
        together.daemon.start()
        for number in range(TRIES):
            echo(early, b"%d" % number)
        ours = [flow["client"] for flow in together.daemon.json("flows") if flow["protocol"] == "TCP"]
        assert not [client for client in ours if client.endswith(f":{port}")]
    before = together.balanced()
    together.ask_from_pod()
    assert together.balanced() == before + 2 * TRIES


def test_datagrams_go_on_while_we_come_and_go(together: Together) -> None:
    """UDP has no first packet by which to tell whose it is: the socket is answered all the time, whoever serves it."""
    together.daemon.stop()
    together.daemon.command("cleanup")
    address = together.service.addresses["cluster", 4]
    with opened(together.client, address, 80, Protocol.UDP) as early:

        def answered() -> None:
            for _ in range(TRIES):
                early.send(b"?")
                assert read_answer(early, 0)

        answered()
        together.daemon.start()
        answered()
        ours = together.daemon.metrics()['kproxy_ebpf_verdicts_total{verdict="translated"}']
        together.daemon.stop()
        answered()
        together.daemon.command("cleanup")
        answered()
        together.daemon.start()
    assert ours, "the flows that kube-proxy began are imported"


def test_node_ports_on_addresses_that_we_leave_to_kube_proxy(together: Together) -> None:
    """Its iptables mode serves them on every address of the node, and we on the primary ones alone."""
    before = together.balanced()
    for protocol, port in together.service.node_ports.items():
        ask(together.client, together.node.ip4, port, protocol)
    assert together.balanced() == before
    ask(together.client, NODE_ADDRESSES[4], together.service.node_ports[Protocol.TCP])
    assert together.balanced() == before + 1


def test_the_hosts_own_traffic_never_meets_our_programs(together: Together) -> None:
    before = together.balanced()
    together.ask_from_host()
    assert together.balanced() == before


def test_either_may_stop_and_start_at_any_time(together: Together) -> None:
    load = Load(together.client, together.service.addresses["cluster", 6], 80)
    try:
        for change in (
            together.kube_proxy.stop,
            together.daemon.stop,
            together.kube_proxy.start,
            together.daemon.start,
            together.daemon.kill,
            together.kube_proxy.stop,
            together.daemon.start,
            together.kube_proxy.start,
        ):
            change()
            load.go_on(2 * TRIES)
            together.ask_from_host()
    finally:
        load.stop()
    assert load.failures == []


def test_cleanup_under_load_hands_the_pods_to_kube_proxy(together: Together) -> None:
    """What is under way ends through our programs; no new connection fails, however short."""
    together.daemon.stop()
    loads = [Load(together.client, together.service.addresses["cluster", family], 80) for family in (4, 6)]
    try:
        for load in loads:
            load.go_on(TRIES)
        done = together.daemon.command("cleanup")
        for load in loads:
            load.go_on(2 * TRIES)
    finally:
        for load in loads:
            load.stop()
    assert "broken" not in done.stdout
    assert [load.failures for load in loads] == [[], []]
    together.ask_from_pod()
    together.ask_from_host()
