"""Forwarding redirect: which packets bypass the host's stack, which do not, and that no pod can tell."""

from __future__ import annotations

import errno
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from redirect import PORTS, TRANSLATING, strict_firewalls, ways
from worlds import connected, in_worlds

from kproxy_ebpf.lab import Node
from kproxy_ebpf.lab.crowd import Crowd
from kproxy_ebpf.lab.traffic import ask, await_answer, family_of, opened, transfer
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.services import Protocol

pytestmark = in_worlds("redirect", "redirect-clsact", "redirect-bridge")

IPV6_RECVHOPLIMIT, IPV6_HOPLIMIT, IPV6_UNICAST_HOPS = 51, 52, 16
OUTGOING = 4  # PACKET_OUTGOING


@pytest.fixture
def service(world):
    service = world.service([world.webs[0]], PORTS)
    yield service
    service.remove()


@pytest.fixture
def known(world, service, family):
    """The pods at both ends are known: packets go straight between them.

    A bridge has to learn of them first, as it does when a kubelet probes them.
    """
    for pod in (world.client, world.webs[0]):
        with opened(world.node, pod.address(family), 9, Protocol.UDP) as probe:
            probe.send(b"anybody there?")
    until(lambda: goes_straight(world, service, family), "packets to go straight")


def goes_straight(world, service, family) -> bool:
    """True if a new connection to the server bypasses the host's stack.

    One in a hundred does not: its client's port is that of a connection that conntrack remembers from another test.
    """
    return packets_on_the_link(world, service, family) == 0


@contextmanager
def heard(node: Node, link: str) -> Iterator[socket.socket]:
    """A socket that sees what the host sends to a pod and hears from it; the host sends no redirected packet."""
    with node.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as handle:
        handle.bind((link, 3))
        yield handle


def packets_on_the_link(world, service, family) -> int:
    """How many packets of one connection to the server the host sends to its pod."""
    with heard(world.node, world.webs[0].host_link) as handle:
        port = ask(world.client, service.vip(family), 80).client_port
        handle.setblocking(False)
        count = 0
        while True:
            try:
                frame, address = handle.recvfrom(128)
            except BlockingIOError:
                return count
            start = 14 + (20 if frame[12:14] == b"\x08\x00" else 40)
            count += address[2] == OUTGOING and frame[start : start + 2] == port.to_bytes(2, "big")


def test_packets_pass_by_the_hosts_stack(world, service, family, known):
    before = ways(world.daemon)
    until(lambda: goes_straight(world, service, family), "packets to go straight")
    assert ways(world.daemon)["peer"] >= before["peer"] + 8
    world.switch(mode="tc", forwarding="stack")
    try:
        until(lambda: not goes_straight(world, service, family), "packets to go the host's way")
    finally:
        world.switch(mode="tc", forwarding="redirect")
    until(lambda: goes_straight(world, service, family), "packets to go straight again")


def test_a_trace_says_to_whom_a_packet_is_handed(world, service, family, known):
    client, server = world.client.address(family), world.webs[0]
    for address, port in ((service.vip(family), 80), (server.address(family), 8080)):
        target = f"{address}:{port}/tcp" if family == 4 else f"[{address}]:{port}/tcp"
        told = world.daemon.json("trace", client, target)
        assert told["handed_to"] == server.host_link
        assert f"handed straight to the pod at link {server.host_link}" in told["why"]


def test_a_gibibyte_arrives_intact_in_both_directions(world, service, family, known):
    server = world.webs[0]
    with connected(world.client, service.vip(family), server) as (outgoing, incoming):
        transfer(outgoing, incoming, 1024)
        transfer(incoming, outgoing, 1024)


def test_the_host_counts_as_a_hop(world, service, family, known):
    """64 hops are left in each packet that a pod sends. What is directly reachable on a bridge loses none."""
    server = world.webs[0]
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    level, receive = (socket.IPPROTO_IP, 12) if family == 4 else (socket.IPPROTO_IPV6, IPV6_RECVHOPLIMIT)
    with server.socket(kind, socket.SOCK_DGRAM) as handle, world.client.socket(kind, socket.SOCK_DGRAM) as client:
        handle.setsockopt(level, receive, 1)
        handle.bind((server.address(family), 7777))
        handle.settimeout(2)
        client.sendto(b"?", (server.address(family), 7777))
        ((_, _, hops),) = handle.recvmsg(10, 256)[1]
    is_bridged = world.node.cni.is_bridge
    assert struct.unpack("=i", hops)[0] == (64 if is_bridged else 63)


@pytest.fixture
def unlimited(world):
    """The host answers each packet with an error. Else it says one thing a second to a pod, and to one on a bridge that
    has been a redirect already: there is a shorter way to the other pod, past the host (ip_rt_send_redirect).
    """
    before = world.node.read_sysctl("ipv4/icmp_ratelimit")
    world.node.sysctl({"ipv4/icmp_ratelimit": "0"})
    yield
    world.node.sysctl({"ipv4/icmp_ratelimit": before})


@pytest.mark.usefixtures("unlimited")
def test_a_packet_at_the_end_of_its_hops_is_answered_by_the_host(world, service, family, known):
    with opened(world.client, service.vip(family), 53, Protocol.UDP) as handle:
        level, hops, errors = {
            4: (socket.IPPROTO_IP, socket.IP_TTL, 11),
            6: (socket.IPPROTO_IPV6, IPV6_UNICAST_HOPS, 25),
        }[family]
        handle.setsockopt(level, errors, 1)
        handle.setsockopt(level, hops, 1)
        before = ways(world.daemon)["stack_hop_limit"]
        handle.send(b"?")
        with pytest.raises(OSError, match=f"Errno ({errno.EHOSTUNREACH}|{errno.EACCES})"):
            handle.recv(100)
        assert ways(world.daemon)["stack_hop_limit"] == before + 1


def test_a_port_that_nobody_listens_on_is_told_of(world, family, known):
    """The ICMP error goes the way of the datagram, so it never meets a firewall that drops what it does not know."""
    service = world.service([world.webs[0]], {"deaf": (54, "UDP", 5454)})
    with strict_firewalls(world.node), opened(world.client, service.vip(family), 54, Protocol.UDP) as handle:
        handle.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            handle.recv(100)
    service.remove()


def test_a_smaller_mtu_on_the_same_node_is_discovered(world, service, family, known):
    server = world.webs[0]
    world.node.ip(f"link set {server.host_link} mtu 1300")
    try:
        with connected(world.client, service.vip(family), server) as (outgoing, incoming):
            transfer(outgoing, incoming, 4)
        if not world.node.cni.is_bridge:  # a bridge tells nobody, whoever forwards
            assert re.search(r"\bmtu 1300\b", world.client.run(["ip", "route", "get", service.vip(family)]).stdout)
    finally:
        world.node.ip(f"link set {server.host_link} mtu 1500")


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP], ids=["tcp", "udp"])
def test_switching_breaks_no_connection_beside_a_strict_firewall(world, service, family, protocol, known):
    """Connections that began on either way go on, beside a bulk transfer."""
    port = {Protocol.TCP: 80, Protocol.UDP: 53}[protocol]
    with (
        strict_firewalls(world.node),
        connected(world.client, service.vip(family), world.webs[0]) as (outgoing, incoming),
    ):
        with Crowd(world.client, service.vip(family), port, 20, protocol) as crowd:
            for _ in range(3):
                for forwarding in ("stack", "redirect"):
                    world.switch(mode="tc", forwarding=forwarding)
                    transfer(outgoing, incoming, 64)
                    transfer(incoming, outgoing, 64)
                    crowd.grow(5)
                    crowd.go_on(5)
        assert crowd.failures == []


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP], ids=["tcp", "udp"])
def test_what_the_host_translates_stays_with_the_host(world, service, family, protocol, known):
    """Only the host knows the VIP. Connections begin before redirect and during it; answers come from the VIP."""
    vip = {4: "10.98.0.1", 6: "fd00:98::1"}[family]
    port = {Protocol.TCP: 8080, Protocol.UDP: 5353}[protocol]
    rules = TRANSLATING.format(ip="ip" if family == 4 else "ip6", vip=vip, to=world.webs[0].address(family))
    world.node.run(["nft", "-f", "-"], input=rules)
    world.switch(mode="tc", forwarding="stack")
    try:
        with Crowd(world.client, vip, port, 5, protocol) as crowd:
            crowd.go_on()
            world.switch(mode="tc", forwarding="redirect")
            until(lambda: goes_straight(world, service, family), "packets to go straight")
            crowd.grow(5)
            crowd.go_on(20)
            until(lambda: goes_straight(world, service, family), "others of the same pods to go straight meanwhile")
        assert crowd.failures == []
        assert set(crowd.spread) == {"web1"}
    finally:
        world.switch(mode="tc", forwarding="redirect")
        world.node.run(["nft", "delete table inet translating"])


def test_large_datagrams_that_the_host_translates(world, service, family, known):
    """The fragments have no ports to know them by; the answer is no fragment, and has to go back through the host."""
    vip = {4: "10.98.0.2", 6: "fd00:98::2"}[family]
    rules = TRANSLATING.format(ip="ip" if family == 4 else "ip6", vip=vip, to=world.webs[0].address(family))
    world.node.run(["nft", "-f", "-"], input=rules)
    server = world.webs[0]
    kind = family_of(vip)
    try:
        with server.socket(kind, socket.SOCK_DGRAM) as handle, world.client.socket(kind, socket.SOCK_DGRAM) as client:
            handle.bind((server.address(family), 7778))
            handle.settimeout(2)
            client.settimeout(2)
            client.connect((vip, 7778))
            for _ in range(3):
                client.send(b"x" * 4000)
                data, peer = handle.recvfrom(5000)
                assert len(data) == 4000
                handle.sendto(b"answer", peer)
                assert client.recv(100) == b"answer"
    finally:
        world.node.run(["nft", "delete table inet translating"])


@pytest.mark.parametrize("alive", [True, False], ids=["", "without-a-daemon"])
def test_an_address_that_moves_to_a_new_pod_at_once(world, service, family, known, alive):
    """The daemon is gone, so what the programs know of the old pod's link is stale: the host finds the new link."""
    old = world.node.pod("old")
    server = world.serve(old)
    until(lambda: ask(world.client, old.address(family), 8080).server == "old", "the pod to be known")
    server.close()
    world.servers.remove(server)
    if not alive:
        world.daemon.kill()
    try:
        new = world.node.replace(old, "new")
        server = world.serve(new)
        assert new.address(family) == old.address(family)
        for place, link in ((world.client, "eth0"), (world.node, "cni0")):
            if world.node.cni.is_bridge:  # where CNI plugins announce the new pod
                place.ip(f"neigh flush dev {link}")
        assert await_answer(world.client, new.address(family), 8080).server == "new"
        if alive:
            await_answer(new, service.vip(family), 80, what="the new pod's link to carry programs")
    finally:
        if not alive:
            world.daemon.start()
        server.close()
        world.servers.remove(server)
        world.node.remove(new)


def test_connections_survive_the_daemon(world, service, family, known):
    with Crowd(world.client, service.vip(family), 80, 20) as crowd:
        crowd.go_on()
        world.daemon.kill()
        crowd.grow(5)
        crowd.go_on()
        until(lambda: goes_straight(world, service, family), "packets to go straight")
        world.daemon.start()
        crowd.go_on()
    assert crowd.failures == []


def test_a_pod_that_sends_from_another_address_gains_nothing(world, service, family, known):
    before = ways(world.daemon)
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    other = {4: "10.244.1.200", 6: "fd00:244:1::c8"}[family]
    world.client.ip(f"addr add {other}/{32 if family == 4 else 128} {'' if family == 4 else 'nodad '}dev eth0")
    try:
        with world.client.socket(kind, socket.SOCK_DGRAM) as handle:
            handle.bind((other, 0))
            handle.sendto(b"?", (world.webs[0].address(family), 5353))
        after = ways(world.daemon)
        assert after["stack_source"] > before["stack_source"]
    finally:
        world.client.ip(f"addr del {other}/{32 if family == 4 else 128} dev eth0")
