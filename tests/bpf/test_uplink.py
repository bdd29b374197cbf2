"""Packets to and from other nodes with forwarding redirect: they bypass the host's stack where that is safe."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from ipaddress import ip_network

import pytest
from harness import FROM_POD, NEXT, REDIRECT
from nodes import LO, NETWORKS, NOWHERE, REMOTE, ROUTER_MAC, SERVER_MAC, UPLINK_MTU, Uplink, routed, with_hop_limit
from packets import (
    BACKEND,
    CLIENT,
    OUTSIDE,
    PORT_UNREACHABLE,
    VIP,
    Endpoint,
    Host,
    Packet,
    echo_request,
    icmp_error,
    router_alert,
    tcp,
    udp,
)
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from kproxy_ebpf.contract.layouts import Direction, FlowFlags, Verdict, Way
from kproxy_ebpf.datapath.forwarding.cluster_networks import ClusterTable
from kproxy_ebpf.datapath.forwarding.uplinks import UplinkTable
from kproxy_ebpf.datapath.maps.counters import Ways
from kproxy_ebpf.datapath.maps.packing import flow_key
from kproxy_ebpf.datapath.maps.pod_links import StandingKind
from kproxy_ebpf.model.flows import FlowTuple

ROUTER = Host("192.168.7.9", "fd00:7::9")


def one_hop_less(packet: Packet, family: int) -> bytes:
    """The packet with one hop less; the kernel writes the link-layer addresses later."""
    return with_hop_limit(packet, family, 63)


DIRECT = tcp(CLIENT, REMOTE, "A", b"data")
ARRIVING = tcp(REMOTE.on(41000), CLIENT.on(8080), "A", b"data")


def sent(uplink: Uplink, frame: bytes) -> tuple[Way, bytes]:
    before = Ways(uplink.node.generation)
    counts = before.read()
    result = uplink.node.datapath.run(FROM_POD, frame)
    (way,) = [way for way, (packets, _) in before.read().items() if packets != counts[way][0]]
    before.close()
    assert result.retval == (REDIRECT if way in (Way.PEER, Way.NEIGHBOUR) else NEXT)
    return way, result.data


@pytest.mark.parametrize("packet", [DIRECT, tcp(CLIENT, REMOTE, "S"), udp(CLIENT, REMOTE)], ids=["data", "syn", "udp"])
def test_a_packet_for_another_node_is_handed_to_the_next_hop(uplink, packet):
    assert sent(uplink, packet.frame(uplink.family)) == (Way.NEIGHBOUR, one_hop_less(packet, uplink.family))


def test_through_a_vip_it_is_translated_first(uplink):
    datapath = uplink.node.datapath
    datapath.set_backend(1, address=datapath._address(REMOTE.host))
    way, frame = sent(uplink, tcp(CLIENT, VIP, "S").frame(uplink.family))
    assert (way, frame) == (Way.NEIGHBOUR, one_hop_less(tcp(CLIENT, REMOTE, "S"), uplink.family))


@pytest.mark.parametrize(
    ("packet", "way"),
    [(DIRECT, Way.NEIGHBOUR), (tcp(CLIENT, REMOTE, "SA"), Way.NEIGHBOUR), (tcp(CLIENT, REMOTE, "S"), Way.STACK_ROUTE)],
    ids=["mid-stream", "answer", "first"],
)
def test_a_neighbour_that_is_not_known(uplink, packet, way):
    """The kernel asks for it. For a first packet the stack asks, which tells the pod if nobody answers."""
    forget_neighbour(uplink)
    assert sent(uplink, packet.frame(uplink.family))[0] is way


def forget_neighbour(uplink: Uplink) -> None:
    next_hop = {4: "192.168.7.2", 6: "fd00:7::2"}[uplink.family]
    subprocess.run(["ip", "neigh", "del", next_hop, "dev", "uplink0"], check=True)


@pytest.mark.parametrize("flags", ["S", "A"])
def test_what_comes_in_by_an_uplink_has_to_go_back_by_one(uplink, flags):
    """Otherwise the answer goes through the stack, whose conntrack has not seen the connection begin."""
    packet = tcp(REMOTE, BACKEND, flags).frame(uplink.family)
    assert uplink.arrive(packet)[0] is Way.PEER
    forget_neighbour(uplink)
    assert uplink.arrive(packet)[0] is Way.PEER
    no_route(uplink)
    assert uplink.arrive(packet)[0] is (Way.STACK_ROUTE if flags == "S" else Way.PEER)


def test_the_hosts_own_addresses_are_no_pods(uplink):
    own = {ip_network(REMOTE.host.at(uplink.family)): False}
    with ClusterTable(uplink.node.generation, uplink.family) as cluster:
        cluster.write(own)
        assert sent(uplink, DIRECT.frame(uplink.family))[0] is Way.STACK_ELSEWHERE
        assert uplink.arrive(tcp(REMOTE, BACKEND, "S").frame(uplink.family))[0] is Way.STACK_SOURCE
        assert cluster.read() == own | {ip_network(NETWORKS[uplink.family]): True}
        cluster.remove(own)


def test_a_known_connection_of_the_hosts_is_young_again_with_each_first_packet(uplink):
    """So that a scan of conntrack that began earlier does not forget the connection."""
    uplink.leave(tcp(CLIENT, REMOTE, "S").frame(uplink.family))
    with uplink.node.generation.map("host_flows", uplink.family) as flows:

        def created() -> dict[bytes, int]:
            return {key: int.from_bytes(value[4:], "little") for key, value in flows.items()}

        for key, value in list(flows.items()):
            flows.update(key, value[:4] + (created()[key] - 10).to_bytes(4, "little"))
        old = created()
        uplink.leave(tcp(CLIENT, REMOTE, "S").frame(uplink.family))
        assert all(seconds > old[key] for key, seconds in created().items())


Obstacle = Callable[[Uplink], bytes]


def unchanged(packet: Packet) -> Obstacle:
    return lambda uplink: packet.frame(uplink.family)


def no_uplink(uplink: Uplink) -> bytes:
    with UplinkTable(uplink.node.generation) as table:
        table.remove(uplink.ifindex)
    return DIRECT.frame(uplink.family)


def no_route(uplink: Uplink) -> bytes:
    subprocess.run(["ip", f"-{uplink.family}", "route", "flush", "dev", "uplink0"], check=True)
    return DIRECT.frame(uplink.family)


def narrow_route(uplink: Uplink) -> bytes:
    """A route's own MTU, below that of its link."""
    network, hop = {4: ("10.1.9.0/24", "192.168.7.2"), 6: ("fd00:1:9::/64", "fd00:7::2")}[uplink.family]
    subprocess.run(["ip", "route", "change", network, "via", hop, "dev", "uplink0", "mtu", "lock", "1300"], check=True)
    return tcp(CLIENT, REMOTE, "A", bytes(1290)).frame(uplink.family)


def unrecorded(uplink: Uplink) -> bytes:
    with uplink.node.table() as table:
        table.unsettle(StandingKind.UNRECORDED, [LO])
    return DIRECT.frame(uplink.family)


def followed(uplink: Uplink) -> bytes:
    uplink.follow(CLIENT, REMOTE)
    return DIRECT.frame(uplink.family)


def to_another_mac(uplink: Uplink) -> bytes:
    frame = Ether(DIRECT.frame(uplink.family))
    frame.dst = SERVER_MAC
    return bytes(frame)


@pytest.mark.parametrize(
    ("way", "obstacle"),
    [
        (Way.STACK_ELSEWHERE, unchanged(tcp(CLIENT, OUTSIDE, "S"))),
        (Way.STACK_UNRECORDED, unrecorded),
        (Way.STACK_HOST_FLOW, followed),
        (Way.STACK_SOURCE, unchanged(tcp(OUTSIDE, REMOTE, "S"))),
        (Way.STACK_KIND, unchanged(echo_request(CLIENT, REMOTE))),
        (Way.STACK_KIND, unchanged(tcp(CLIENT, REMOTE, "A", between=router_alert))),
        (Way.STACK_LINK_LAYER, to_another_mac),
        (Way.STACK_HOP_LIMIT, lambda uplink: with_hop_limit(DIRECT, uplink.family, 1)),
        (Way.STACK_MTU, unchanged(tcp(CLIENT, REMOTE, "A", bytes(UPLINK_MTU)))),
        (Way.STACK_MTU, narrow_route),
        (Way.STACK_ROUTE, no_uplink),
        (Way.STACK_ROUTE, no_route),
        (Way.STACK_ROUTE, unchanged(tcp(CLIENT, NOWHERE, "A"))),
    ],
    ids=lambda value: value.name.lower() if isinstance(value, Way) else "",
)
def test_what_is_unsure_leaves_by_the_hosts_stack(uplink, way, obstacle):
    frame = obstacle(uplink)
    counted, left = sent(uplink, frame)
    assert counted.name == way.name
    assert left == frame


@pytest.mark.parametrize(
    "packet",
    [ARRIVING, tcp(REMOTE, CLIENT.on(8080), "S"), udp(REMOTE, CLIENT.on(5353))],
    ids=["data", "syn", "udp"],
)
def test_a_packet_from_another_node_is_handed_to_its_pod(uplink, packet):
    """The pod is the server behind the veth, whose link can be told from `lo`."""
    packet = Packet(packet.source, BACKEND.host, packet.payload)
    way, verdicts, action, frame = uplink.arrive(packet.frame(uplink.family))
    assert (way, len(verdicts), action) == (Way.PEER, 1, REDIRECT)
    assert frame == routed(packet, uplink.family, (ROUTER_MAC, SERVER_MAC))


def flow_of_the_server(uplink: Uplink, protocol: str = "tcp") -> Endpoint:
    """Let the pod behind the veth reach REMOTE through the VIP; returns the pod's end of that connection."""
    client = BACKEND.on(40001)
    with uplink.node.table() as table:
        table.unsettle(StandingKind.FLOWS, [uplink.node.server_link])
    for key, to, flags in (
        ((client, VIP, Direction.FROM_POD), (client, REMOTE, Direction.TO_POD), FlowFlags(0)),
        ((REMOTE, client, Direction.TO_POD), (VIP, client, Direction.FROM_POD), FlowFlags.REPLY),
    ):
        uplink.node.datapath.write_flow(key, to, protocol, flags=flags, ifindex=uplink.node.server_link)
    return client


def test_an_answer_from_another_node_comes_from_the_vip(uplink):
    client = flow_of_the_server(uplink)
    way, verdicts, action, frame = uplink.arrive(tcp(REMOTE, client, "SA").frame(uplink.family))
    assert (way, verdicts, action) == (Way.PEER, [Verdict.REVERSED], REDIRECT)
    assert frame == routed(tcp(VIP, client, "SA"), uplink.family)


def test_an_error_of_any_router_about_a_straight_connection_is_handed_to_its_pod(uplink):
    client = flow_of_the_server(uplink, "udp")
    error = icmp_error(PORT_UNREACHABLE, ROUTER, client.host, udp(client, REMOTE))
    way, verdicts, action, frame = uplink.arrive(error.frame(uplink.family))
    assert (way, verdicts, action) == (Way.PEER, [Verdict.ICMP_ERROR_TRANSLATED], REDIRECT)
    quoted = Ether(frame)[IP if uplink.family == 4 else IPv6].payload
    assert VIP.host.packed(uplink.family) in bytes(quoted)


def test_an_error_about_a_connection_of_the_hosts_is_the_hosts(uplink):
    client = flow_of_the_server(uplink, "udp")
    uplink.follow(client, REMOTE, 17)
    uplink.follow(REMOTE, client, 17)
    with uplink.node.table() as table:
        table.unsettle(StandingKind.HOST_FLOWS, [uplink.node.server_link])
    error = icmp_error(PORT_UNREACHABLE, ROUTER, client.host, udp(client, REMOTE)).frame(uplink.family)
    assert uplink.arrive(error) == (Way.STACK_HOST_FLOW, [], NEXT, error)


@pytest.mark.parametrize(
    "about", [tcp(BACKEND, OUTSIDE, "S"), tcp(CLIENT, REMOTE, "S")], ids=["outside", "another pod"]
)
def test_an_error_about_anything_else_is_the_hosts(uplink, about):
    error = icmp_error(PORT_UNREACHABLE, ROUTER, BACKEND.host, about).frame(uplink.family)
    assert uplink.arrive(error)[1:] == ([], NEXT, error)


def not_recorded(uplink: Uplink) -> bytes:
    return (unrecorded(uplink), ARRIVING.frame(uplink.family))[1]


def of_the_host(uplink: Uplink) -> bytes:
    uplink.follow(REMOTE.on(41000), CLIENT.on(8080))
    return ARRIVING.frame(uplink.family)


def too_large(uplink: Uplink) -> bytes:
    return tcp(REMOTE, BACKEND, "A", bytes(1500)).frame(uplink.family)


@pytest.mark.parametrize(
    ("way", "obstacle"),
    [
        (Way.STACK_UNRECORDED, not_recorded),
        (Way.STACK_HOST_FLOW, of_the_host),
        (Way.STACK_SOURCE, unchanged(tcp(OUTSIDE, CLIENT, "S"))),
        (Way.STACK_SOURCE, unchanged(tcp(BACKEND, CLIENT, "S"))),
        (Way.STACK_KIND, unchanged(echo_request(REMOTE, CLIENT))),
        (Way.STACK_KIND, unchanged(tcp(REMOTE, CLIENT, "A", between=router_alert))),
        (Way.STACK_HOP_LIMIT, lambda uplink: with_hop_limit(ARRIVING, uplink.family, 1)),
        (Way.STACK_MTU, too_large),
        (None, unchanged(tcp(REMOTE, NOWHERE, "S"))),
    ],
    ids=lambda value: value.name.lower() if isinstance(value, Way) else "",
)
def test_what_is_unsure_goes_on_through_the_hosts_stack(uplink, way, obstacle):
    frame = obstacle(uplink)
    assert uplink.arrive(frame) == (way, [], NEXT, frame)


@pytest.mark.parametrize("packet", [tcp(CLIENT, REMOTE, "S"), udp(CLIENT, REMOTE)], ids=["syn", "udp"])
def test_what_leaves_by_the_hosts_stack_is_the_hosts_connection(uplink, packet):
    """The packet leaves as the host has translated it, whatever VIP it was sent to."""
    uplink.leave(packet.frame(uplink.family))
    assert uplink.node.unsettled(StandingKind.HOST_FLOWS) == {LO}
    is_tcp = packet.payload(4).name == "TCP"
    answer = tcp(REMOTE, CLIENT, "SA") if is_tcp else udp(REMOTE, CLIENT)
    assert uplink.arrive(answer.frame(uplink.family))[0] is Way.STACK_HOST_FLOW
    assert sent(uplink, packet.frame(uplink.family))[0] is Way.STACK_HOST_FLOW


@pytest.mark.parametrize(
    "packet",
    [tcp(CLIENT, REMOTE, "A"), tcp(CLIENT, OUTSIDE, "S"), tcp(OUTSIDE, REMOTE, "S")],
    ids=["mid-stream", "to outside", "of no pod"],
)
def test_what_else_leaves_is_not_noted(uplink, packet):
    uplink.leave(packet.frame(uplink.family))
    assert uplink.node.unsettled(StandingKind.HOST_FLOWS) == set()


def test_a_connection_from_another_node_that_reaches_a_pod_by_the_stack_is_noted(uplink):
    uplink.node.datapath.run(Direction.TO_POD, tcp(REMOTE, CLIENT, "S").frame(uplink.family))
    with uplink.node.generation.map("host_flows", uplink.family) as flows:
        keys = set(flows.keys())
    source, destination = REMOTE.host.packed(uplink.family), CLIENT.host.packed(uplink.family)
    request = FlowTuple(source, REMOTE.port, destination, CLIENT.port, 6, FROM_POD)
    assert keys == {flow_key(uplink.family, each) for each in (request, request.reversed())}
