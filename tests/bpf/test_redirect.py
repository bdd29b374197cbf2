"""Which way a packet takes with forwarding redirect: to the destination's pod directly, or through the host."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from harness import FROM_POD, TO_POD, now_seconds
from nodes import LO, MTU, SERVER_MAC, Node, routed, with_hop_limit
from packets import (
    BACKEND,
    CLIENT,
    HOST_MAC,
    OUTSIDE,
    PORT_UNREACHABLE,
    VIP,
    Packet,
    echo_request,
    icmp_error,
    router_alert,
    sctp,
    tcp,
    udp,
)
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTPChunkInit

from kproxy_ebpf.contract.layouts import Direction, FlowFlags, Switches, Verdict, Way
from kproxy_ebpf.datapath.forwarding.cluster_networks import PrefixSet
from kproxy_ebpf.datapath.forwarding.host_flows import sync_host_flows
from kproxy_ebpf.datapath.maps.pod_links import LinkFacts, StandingKind
from kproxy_ebpf.model.flows import FlowTuple

DIRECT = tcp(CLIENT, BACKEND, "A", b"data")
SYN = tcp(CLIENT, VIP, "S")


@pytest.mark.parametrize(
    "packet", [DIRECT, tcp(CLIENT, BACKEND, "S"), udp(CLIENT, BACKEND)], ids=["data", "syn", "udp"]
)
def test_a_packet_for_a_pod_of_this_node_goes_straight_there(node, packet):
    way, verdicts, frame = node.send(packet.frame(node.family))
    assert way is Way.PEER
    assert len(verdicts) == 2, "one at each pod's link"
    assert frame == routed(packet, node.family)


def test_a_connection_through_a_vip_is_translated_on_the_way(node):
    way, verdicts, frame = node.send(SYN.frame(node.family))
    assert (way, sorted(verdicts)) == (Way.PEER, [Verdict.UNTOUCHED, Verdict.BALANCED])
    assert frame == routed(tcp(CLIENT, BACKEND, "S"), node.family)
    assert node.unsettled(StandingKind.FLOWS) == {LO}, "the server's link has no flows, and needs no look-up"
    assert node.datapath.flow(CLIENT, VIP, FROM_POD).ifindex == LO


def test_an_answer_is_translated_back_for_the_pod_that_it_is_handed_to(node):
    """The client of this flow is behind the veth, and the packet comes from the server behind lo."""
    client = BACKEND.on(40001)
    server = CLIENT.on(8080)
    with node.table() as table:
        table.unsettle(StandingKind.FLOWS, [node.server_link])
    for key, to, flags in (
        ((client, VIP, Direction.FROM_POD), (client, server, Direction.TO_POD), FlowFlags(0)),
        ((server, client, Direction.TO_POD), (VIP, client, Direction.FROM_POD), FlowFlags.REPLY),
    ):
        node.datapath.write_flow(key, to, flags=flags, ifindex=node.server_link)
    way, verdicts, frame = node.send(tcp(server, client, "SA").frame(node.family))
    assert (way, sorted(verdicts)) == (Way.PEER, [Verdict.REVERSED, Verdict.MIDSTREAM])
    assert frame == routed(tcp(VIP, client, "SA"), node.family)


def test_an_error_about_a_translated_connection_goes_the_way_of_its_packets(node):
    client, server = BACKEND.on(40001), CLIENT.on(5353)
    with node.table() as table:
        table.unsettle(StandingKind.FLOWS, [node.server_link])
    for key, to, flags in (
        ((client, VIP, Direction.FROM_POD), (client, server, Direction.TO_POD), FlowFlags(0)),
        ((server, client, Direction.TO_POD), (VIP, client, Direction.FROM_POD), FlowFlags.REPLY),
    ):
        node.datapath.write_flow(key, to, "udp", flags=flags, ifindex=node.server_link)
    error = icmp_error(PORT_UNREACHABLE, server.host, client.host, udp(client, server))
    way, verdicts, frame = node.send(error.frame(node.family))
    assert (way, sorted(verdicts)) == (Way.PEER, [Verdict.UNTOUCHED, Verdict.ICMP_ERROR_TRANSLATED])
    seen = Ether(frame)[IP if node.family == 4 else IPv6]
    assert (seen.src, seen.dst) == (VIP.host.at(node.family), client.host.at(node.family))


def test_a_frame_for_a_pod_on_the_same_bridge_is_forwarded_as_it_is(node):
    node.place(bridge=7)
    frame = Ether(DIRECT.frame(node.family))
    frame.dst = SERVER_MAC
    assert node.send(bytes(frame)) == (Way.PEER, [Verdict.UNTOUCHED, Verdict.MIDSTREAM], bytes(frame))
    routed_there = routed(DIRECT, node.family, (HOST_MAC, SERVER_MAC))
    assert node.send(DIRECT.frame(node.family))[::2] == (Way.PEER, routed_there), "addressed to the bridge: routed"


Obstacle = Callable[[Node], bytes]


def unchanged(packet: Packet) -> Obstacle:
    return lambda node: packet.frame(node.family)


def to_another_mac(node: Node) -> bytes:
    """The frame is for a pod that routes, say, or for the server's own address where no bridge joins the two."""
    frame = Ether(DIRECT.frame(node.family))
    frame.dst = SERVER_MAC
    return bytes(frame)


def too_large(node: Node) -> bytes:
    return tcp(CLIENT, BACKEND, "A", bytes(MTU)).frame(node.family)


def gone(node: Node) -> bytes:
    subprocess.run(["ip", "link", "del", "veth0"], check=True)
    return DIRECT.frame(node.family)


def unrecorded(link: str) -> Obstacle:
    def happens(node: Node) -> bytes:
        with node.table() as table:
            table.unsettle(StandingKind.UNRECORDED, [LO if link == "sender" else node.server_link])
        return DIRECT.frame(node.family)

    return happens


def followed(node: Node) -> bytes:
    source, destination = CLIENT.host.packed(node.family), BACKEND.host.packed(node.family)
    node.note(FlowTuple(source, CLIENT.port, destination, BACKEND.port, 6, FROM_POD), node.server_link)
    return DIRECT.frame(node.family)


@pytest.mark.parametrize(
    ("way", "obstacle"),
    [
        (Way.STACK_ELSEWHERE, unchanged(tcp(CLIENT, OUTSIDE, "S"))),
        (Way.STACK_UNRECORDED, unrecorded("sender")),
        (Way.STACK_UNRECORDED, unrecorded("receiver")),
        (Way.STACK_HOST_FLOW, followed),
        (Way.STACK_SOURCE, unchanged(tcp(OUTSIDE, BACKEND, "S"))),
        (Way.STACK_KIND, unchanged(echo_request(CLIENT, BACKEND))),
        (Way.STACK_KIND, unchanged(tcp(CLIENT, BACKEND, "A", between=router_alert))),
        (Way.STACK_KIND, unchanged(sctp(CLIENT, BACKEND, SCTPChunkInit()))),
        (Way.STACK_LINK_LAYER, to_another_mac),
        (Way.STACK_HOP_LIMIT, lambda node: with_hop_limit(DIRECT, node.family, 1)),
        (Way.STACK_MTU, too_large),
        (Way.STACK_MTU, gone),
    ],
    ids=lambda value: value.name.lower() if isinstance(value, Way) else "",
)
def test_what_is_unsure_is_the_hosts(node, way, obstacle):
    frame = obstacle(node)
    counted, _, left = node.send(frame)
    assert counted is not None
    assert counted.name == way.name
    assert left == frame


def test_a_connection_that_the_host_follows_leaves_others_alone(node):
    followed(node)
    assert node.send(DIRECT.frame(node.family))[0] is Way.STACK_HOST_FLOW
    assert node.send(tcp(CLIENT.on(40009), BACKEND, "A").frame(node.family))[0] is Way.PEER


def test_without_the_switch_all_goes_the_hosts_way_and_nothing_is_counted(node):
    node.datapath.set_live(switches=Switches.TC)
    assert node.send(DIRECT.frame(node.family))[0] is None


@pytest.mark.parametrize("packet", [tcp(BACKEND, CLIENT, "S"), udp(BACKEND, CLIENT)], ids=["syn", "udp"])
def test_what_reaches_a_pod_the_hosts_way_makes_its_connection_the_hosts(node, packet):
    """Here lo is the link of the pod that receives the packet."""
    node.datapath.run(TO_POD, packet.frame(node.family))
    assert node.unsettled(StandingKind.HOST_FLOWS) == {LO}
    protocol = 6 if packet.payload(4).name == "TCP" else 17
    answer = tcp(CLIENT, BACKEND, "SA") if protocol == 6 else udp(CLIENT, BACKEND)
    assert node.send(answer.frame(node.family))[0] is Way.STACK_HOST_FLOW


@pytest.mark.parametrize("offset", [0, 185], ids=["first", "later"])
def test_a_first_fragment_tells_whose_datagram_it_is(node, offset):
    whole = Ether(udp(BACKEND, CLIENT, bytes(64)).frame(node.family))
    ip = whole[IP if node.family == 4 else IPv6]
    if node.family == 4:
        ip.flags, ip.frag, ip.chksum = "MF", offset, None
    else:
        ip.payload, ip.plen = IPv6ExtHdrFragment(offset=offset, m=1, id=7, nh=17) / ip.payload, None
        ip.nh = 44
    node.datapath.run(TO_POD, bytes(whole))
    assert node.unsettled(StandingKind.HOST_FLOWS) == ({LO} if offset == 0 else set())
    answer = node.send(udp(CLIENT, BACKEND).frame(node.family))[0]
    assert answer is (Way.STACK_HOST_FLOW if offset == 0 else Way.PEER)


@pytest.mark.parametrize(
    "packet", [tcp(BACKEND, CLIENT, "A"), tcp(OUTSIDE, CLIENT, "S")], ids=["mid-stream", "outside"]
)
def test_what_begins_no_connection_between_pods_is_not_noted(node, packet):
    node.datapath.run(TO_POD, packet.frame(node.family))
    assert node.unsettled(StandingKind.HOST_FLOWS) == set()


def test_a_look_forgets_what_conntrack_does_not_follow(node):
    """Nothing is tracked in this namespace."""
    followed(node)
    with node.generation.map("host_flows", node.family) as flows:
        (key,) = flows.keys()
        flows.update(key, node.server_link.to_bytes(4, "little") + (now_seconds() - 5).to_bytes(4, "little"))
    synced = sync_host_flows(node.generation, node.family, {}, PrefixSet({}))
    assert (synced.entries, synced.added, synced.removed) == (0, 0, 1)
    assert node.unsettled(StandingKind.HOST_FLOWS) == set()
    assert node.send(DIRECT.frame(node.family))[0] is Way.PEER


def test_a_link_is_not_settled_where_something_was_made_since_it_was_looked_at(node):
    with node.table() as table:
        table.unsettle(StandingKind.HOST_FLOWS, [LO])
        looked = table.unsettled(StandingKind.HOST_FLOWS)
        node.datapath.run(TO_POD, tcp(BACKEND, CLIENT, "S").frame(node.family))
        table.settle(StandingKind.HOST_FLOWS, looked)
    assert node.unsettled(StandingKind.HOST_FLOWS) == {LO}


def test_a_link_without_an_element_goes_the_slow_way(node):
    with node.table() as table:
        facts = table.links()
        table.tell({LO: facts[LO]})
        for kind in StandingKind:
            table.settle(kind, table.unsettled(kind))
    assert node.send(DIRECT.frame(node.family))[0] is Way.STACK_UNRECORDED


def test_new_facts_of_a_link_unsettle_all_that_was_settled(node):
    with node.table() as table:
        facts = table.links()
        table.tell(facts)
        assert not table.unsettled(StandingKind.UNRECORDED)
        table.tell(facts | {LO: replace_pod(facts[LO], node)})
        assert set(table.unsettled(StandingKind.UNRECORDED)) == set(table.unsettled(StandingKind.FLOWS)) == {LO}
        assert table.links()[LO].pod == OUTSIDE.host.packed(node.family)


def replace_pod(facts: LinkFacts, node: Node) -> LinkFacts:
    return facts._replace(pod=OUTSIDE.host.packed(node.family))
