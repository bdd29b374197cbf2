"""Forwarding redirect between nodes: from the pod to the next hop, and from the uplink into the pod."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from redirect import PATIENCE, PORTS, TRANSLATING, straight, strict_firewalls, ways
from worlds import Service, World, connected, in_worlds

from kproxy_ebpf.lab import Node, Pod, Underlay
from kproxy_ebpf.lab.crowd import Crowd
from kproxy_ebpf.lab.daemon import Daemon
from kproxy_ebpf.lab.traffic import ask, family_of, opened, transfer
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.services import Protocol

pytestmark = in_worlds("redirect", "redirect-clsact", "redirect-bridge", "redirect-vxlan")

IPV6_RECVHOPLIMIT = 51
BLOCKS = 128
PACKETS = 6  # at least, of a connection that is made, greeted and closed


@dataclass
class Path:
    """From a client on one node to a server on the other."""

    world: World
    service: Service
    family: int
    client: Pod
    server: Pod

    @property
    def vip(self) -> str:
        return self.service.vip(self.family)

    @property
    def address(self) -> str:
        return self.server.address(self.family)

    @property
    def daemons(self) -> list[Daemon]:
        """The client's node first."""
        return sorted(self.world.daemons, key=lambda daemon: daemon.node is not self.client.node)

    @property
    def nodes(self) -> list[Node]:
        return [daemon.node for daemon in self.daemons]

    def switch(self, **changes: str) -> None:
        for daemon in self.daemons:
            self.world.switch(daemon, **changes)

    def goes_straight(self) -> bool:
        """True if a new connection bypasses both nodes' stacks, while no other does."""
        before = [straight(ways(daemon)) for daemon in self.daemons]
        ask(self.client, self.vip, 80)
        after = [straight(ways(daemon)) for daemon in self.daemons]
        return all(new - old >= PACKETS for old, new in zip(before, after, strict=True))


@pytest.fixture(params=["near", "far"])
def path(request, world, family) -> Iterator[Path]:
    """The client is on node1 (near) or on node2; packets go straight both ways."""
    near, far = world.node, world.lab.nodes["node2"]
    client, server = (
        (near.pods["client"], far.pods["far"])
        if request.param == "near"
        else (
            far.pods["farclient"],
            near.pods["web1"],
        )
    )
    service = world.service([server], PORTS)
    path = Path(world, service, family, client, server)
    for pod in (client, server):  # a bridge has to learn of them, as it does when a kubelet probes them
        with opened(pod.node, pod.address(family), 9, Protocol.UDP) as probe:
            probe.send(b"anybody there?")
    until(path.goes_straight, "packets to go straight", seconds=PATIENCE)
    yield path
    service.remove()


def test_bulk_data_arrives_intact_in_both_directions(path):
    with connected(path.client, path.vip, path.server) as (outgoing, incoming):
        transfer(outgoing, incoming, BLOCKS)
        transfer(incoming, outgoing, BLOCKS)


def test_both_nodes_count_as_hops(path):
    kind = family_of(path.address)
    level, receive = (socket.IPPROTO_IP, 12) if path.family == 4 else (socket.IPPROTO_IPV6, IPV6_RECVHOPLIMIT)
    with path.server.socket(kind, socket.SOCK_DGRAM) as handle, path.client.socket(kind, socket.SOCK_DGRAM) as client:
        handle.setsockopt(level, receive, 1)
        handle.bind((path.address, 7777))
        handle.settimeout(2)
        client.sendto(b"?", (path.address, 7777))
        ((_, _, hops),) = handle.recvmsg(10, 256)[1]
    assert struct.unpack("=i", hops)[0] == 62


def test_turned_off_on_one_node_only_that_one_uses_its_stack(path):
    path.switch(forwarding="stack")
    until(lambda: not path.goes_straight(), "packets to go the hosts' way")
    path.world.switch(path.daemons[1], forwarding="redirect")
    before = ways(path.daemons[1])
    until(lambda: ask(path.client, path.vip, 80) and straight(ways(path.daemons[1])) > straight(before), "one half")
    path.switch(forwarding="redirect")
    until(path.goes_straight, "packets to go straight again", seconds=PATIENCE)


def test_without_networks_only_pods_of_the_node_are_reached_straight(path):
    path.switch(cluster_cidr="")
    before = ways(path.daemons[0])["stack_elsewhere"]
    until(
        lambda: ask(path.client, path.vip, 80) and ways(path.daemons[0])["stack_elsewhere"] > before, "the host's way"
    )
    until(lambda: "programs taken off an uplink" in path.daemons[0].log(), "the uplink to be free of programs")
    path.switch()
    until(path.goes_straight, "packets to go straight again", seconds=PATIENCE)


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP], ids=["tcp", "udp"])
def test_switching_breaks_nothing_beside_strict_firewalls(path, protocol):
    """Both nodes drop what their conntrack calls invalid. One switches after the other, with bulk data on its way."""
    port = {Protocol.TCP: 80, Protocol.UDP: 53}[protocol]
    with strict_firewalls(*path.nodes), connected(path.client, path.vip, path.server) as (outgoing, incoming):
        with Crowd(path.client, path.vip, port, 20, protocol) as crowd:
            for forwarding in ("stack", "redirect") * 2:
                for daemon in path.daemons:
                    path.world.switch(daemon, forwarding=forwarding)
                    transfer(outgoing, incoming, 16)
                    transfer(incoming, outgoing, 16)
                    crowd.grow(5)
                    crowd.go_on()
        assert crowd.failures == []
    until(path.goes_straight, "packets to go straight again", seconds=PATIENCE)


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP], ids=["tcp", "udp"])
def test_what_the_hosts_translate_stays_with_them(path, protocol):
    """Only the client's node knows the VIP, as with a kube-proxy; connections begin before redirect and during it."""
    vip = {4: "10.98.0.1", 6: "fd00:98::1"}[path.family]
    port = {Protocol.TCP: 8080, Protocol.UDP: 5353}[protocol]
    rules = TRANSLATING.format(ip="ip" if path.family == 4 else "ip6", vip=vip, to=path.address)
    node = path.client.node
    node.run(["nft", "-f", "-"], input=rules)
    path.switch(forwarding="stack")
    try:
        with strict_firewalls(*path.nodes), Crowd(path.client, vip, port, 5, protocol) as crowd:
            crowd.go_on()
            path.switch(forwarding="redirect")
            until(path.goes_straight, "packets of others to go straight", seconds=PATIENCE)
            crowd.grow(5)
            crowd.go_on(20)
        assert crowd.failures == []
        assert set(crowd.spread) == {path.server.name}
    finally:
        path.switch(forwarding="redirect")
        node.run(["nft", "delete table inet translating"])


def test_an_error_about_a_straight_connection_reaches_its_sender(path):
    """The server's node finds the pod's link too narrow, and says so from its own address, which is no pod's."""
    node = path.server.node
    node.ip(f"link set {path.server.host_link} mtu 1300")
    try:
        with strict_firewalls(*path.nodes), connected(path.client, path.vip, path.server) as (outgoing, incoming):
            transfer(outgoing, incoming, 4)
    finally:
        node.ip(f"link set {path.server.host_link} mtu 1500")


def test_a_refusal_comes_back(path):
    with opened(path.client, path.address, 5454, Protocol.UDP) as handle:
        handle.send(b"anyone?")
        with pytest.raises(ConnectionRefusedError):
            handle.recv(100)


def test_who_is_outside_of_the_cluster_is_the_hosts(path):
    before = ways(path.daemons[1])["stack_source"]
    outside = path.world.lab.net
    assert ask(outside, path.address, 8080).server == path.server.name
    if path.world.lab.underlay is Underlay.ROUTED:  # the programs are at the tunnel's end otherwise
        assert ways(path.daemons[1])["stack_source"] > before
    other = path.world.lab.nodes["node1" if path.client.node.name == "node1" else "node2"]
    assert ask(other, path.address, 8080).server == path.server.name, "a node itself"


def test_a_neighbour_that_is_not_known_is_asked_for(path):
    path.client.node.ip("neigh flush dev eth0")
    assert ask(path.client, path.vip, 80).server == path.server.name
    until(path.goes_straight, "packets to go straight", seconds=PATIENCE)


def test_connections_survive_the_daemons(path):
    with Crowd(path.client, path.vip, 80, 10) as crowd:
        crowd.go_on()
        for daemon in path.daemons:
            daemon.kill()
        try:
            crowd.grow(5)
            crowd.go_on()
        finally:
            for daemon in path.daemons:
                daemon.start()
        crowd.go_on()
    assert crowd.failures == []
    until(path.goes_straight, "packets to go straight", seconds=PATIENCE)


def test_a_trace_says_that_a_packet_leaves_by_the_neighbour(path):
    target = f"{path.vip}:80/tcp" if path.family == 4 else f"[{path.vip}]:80/tcp"
    told = path.daemons[0].json("trace", path.client.address(path.family), target)
    assert "handed to the next hop towards another node" in told["why"]


@pytest.mark.parametrize("path", ["near"], indirect=True)
@pytest.mark.parametrize("family", [4], indirect=True)
def test_ipsec_policies_keep_packets_on_the_hosts_way(path):
    """The stack encrypts packets as the policies say; redirected packets would leave unencrypted."""
    policy = "src 192.0.2.1/32 dst 192.0.2.2/32 dir out"
    node, daemon = path.client.node, path.daemons[0]
    node.ip(f"xfrm policy add {policy} tmpl src 192.0.2.1 dst 192.0.2.2 proto esp mode tunnel")
    try:
        until(lambda: "IPsec" in str(daemon.healthz()[1]["problems"]), "the reason to be told", seconds=PATIENCE)
        before = ways(daemon)["stack_elsewhere"]
        assert ask(path.client, path.vip, 80).server == path.server.name
        assert ways(daemon)["stack_elsewhere"] > before
    finally:
        node.ip(f"xfrm policy delete {policy}")
    until(path.goes_straight, "packets to go straight again", seconds=PATIENCE)
