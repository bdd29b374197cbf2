"""A node for forwarding redirect: pods behind two of its links, and an uplink to other nodes."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from harness import FROM_POD, NEXT, REDIRECT, SUM, Datapath, now_seconds
from packets import BACKEND, CLIENT, HOST_MAC, POD_MAC, Endpoint, Host, Packet
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from kproxy_ebpf.contract.layouts import Verdict, Way
from kproxy_ebpf.datapath.generations.generation import Generation
from kproxy_ebpf.datapath.maps.counters import Ways
from kproxy_ebpf.datapath.maps.packing import flow_key
from kproxy_ebpf.datapath.maps.pod_links import LinkFacts, PodLinkTable, StandingKind
from kproxy_ebpf.model.flows import FlowTuple

LO = 1  # where test runs come from
ROUTER_MAC, SERVER_MAC = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
MTU = 1500
THIS_NETNS = 0xFFFFFFFF  # BPF_F_CURRENT_NETNS

REMOTE = Endpoint(Host("10.1.9.2", "fd00:1:9::2"), 8080)
NOWHERE = Endpoint(Host("10.1.8.2", "fd00:1:8::2"), 8080)
NETWORKS = {4: "10.1.0.0/16", 6: "fd00:1::/32"}
NEXT_HOP_MAC = "02:00:00:00:00:0c"
UPLINK_MTU = 1400
UPLINK = f"""
link add uplink0 mtu {UPLINK_MTU} up type veth peer name wire0
link set wire0 up
addr add 192.168.7.1/24 dev uplink0
addr add fd00:7::1/64 nodad dev uplink0
neigh add 192.168.7.2 lladdr {NEXT_HOP_MAC} dev uplink0 nud permanent
neigh add fd00:7::2 lladdr {NEXT_HOP_MAC} dev uplink0 nud permanent
route add 10.1.9.0/24 via 192.168.7.2
route add fd00:1:9::/64 via fd00:7::2
route add 10.1.8.0/24 dev veth0
route add fd00:1:8::/64 dev veth0
"""


_FROM_LINK = struct.Struct("=40xI148x")  # struct __sk_buff with its ifindex


def from_link(ifindex: int) -> bytes:
    """The context of a test run whose packet comes over this link."""
    return _FROM_LINK.pack(ifindex)


def binary(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


@dataclass
class Node:
    """The client's pod is behind `lo`, the server's behind a veth. All is settled: there are no flows."""

    datapath: Datapath
    generation: Generation
    server_link: int

    @property
    def family(self) -> int:
        return self.datapath.family

    def table(self) -> PodLinkTable:
        return PodLinkTable(self.generation, self.family)

    def place(self, bridge: int = 0) -> None:
        client, server = CLIENT.host.packed(self.family), BACKEND.host.packed(self.family)
        facts = {
            LO: LinkFacts(client, bridge, binary(HOST_MAC), THIS_NETNS),
            self.server_link: LinkFacts(server, bridge, binary(HOST_MAC if bridge else ROUTER_MAC), THIS_NETNS),
        }
        with self.table() as table, self.generation.map("pods", self.family) as pods:
            table.tell({})
            table.tell(facts)
            for kind in StandingKind:
                table.settle(kind, table.unsettled(kind))
            for address, ifindex, mac in ((client, LO, POD_MAC), (server, self.server_link, SERVER_MAC)):
                pods.update(address, ifindex.to_bytes(4, "little") + binary(mac) + bytes(2))

    def unsettled(self, kind: StandingKind) -> set[int]:
        with self.table() as table:
            return set(table.unsettled(kind))

    def note(self, packet: FlowTuple, ifindex: int) -> None:
        """The host follows a connection of which the pod at the link sends `packet`."""
        with self.generation.map("host_flows", self.family) as flows, self.table() as table:
            flows.update(
                flow_key(self.family, packet), ifindex.to_bytes(4, "little") + now_seconds().to_bytes(4, "little")
            )
            table.unsettle(StandingKind.HOST_FLOWS, [ifindex])

    def clear(self) -> None:
        with self.table() as table:
            table.tell({})
        for name in ("pods", "host_flows"):
            with self.generation.map(name, self.family) as entries:
                for key in list(entries.keys()):
                    entries.delete(key)

    def send(self, frame: bytes) -> tuple[Way | None, list[Verdict], bytes]:
        """Let the client send a frame. Returns the way that was counted, the verdicts, and the frame as it went on."""
        ways = Ways(self.generation)
        before = self.datapath.count(), ways.read()
        result = self.datapath.run(FROM_POD, frame, SUM)
        verdicts = [each for each, count in self.datapath.count().items() for _ in range(count - before[0][each])]
        counted = [way for way, (packets, _) in ways.read().items() for _ in range(packets - before[1][way][0])]
        ways.close()
        assert len(counted) <= 1
        assert result.retval == (REDIRECT if counted == [Way.PEER] else NEXT)
        return counted[0] if counted else None, verdicts, result.data


def routed(packet: Packet, family: int, macs: tuple[str, str] = (ROUTER_MAC, SERVER_MAC)) -> bytes:
    """The packet as it reaches the pod through a router: other link-layer addresses, one hop less."""
    frame = Ether(packet.frame(family))
    frame.src, frame.dst = macs
    ip = frame[IP if family == 4 else IPv6]
    if family == 4:
        ip.ttl -= 1
        del ip.chksum
    else:
        ip.hlim -= 1
    return bytes(frame)


def with_hop_limit(packet: Packet, family: int, hops: int) -> bytes:
    frame = Ether(packet.frame(family))
    setattr(frame[IP if family == 4 else IPv6], "ttl" if family == 4 else "hlim", hops)
    if family == 4:
        del frame[IP].chksum
    return bytes(frame)


@dataclass
class Uplink:
    """The client's pod is behind `lo`; packets for REMOTE leave by uplink0."""

    node: Node
    ifindex: int

    @property
    def family(self) -> int:
        return self.node.family

    def arrive(self, frame: bytes, program: str = "from_uplink") -> tuple[Way | None, list[Verdict], int, bytes]:
        """Let a frame come in by the uplink. Returns the way, the verdicts, the action, and the frame as it went on."""
        ways, datapath = Ways(self.node.generation), self.node.datapath
        before = datapath.count(), ways.read()
        with self.node.generation.program(program, self.family) as loaded:
            result = loaded.test_run(
                bytes(6) + frame[6:], flags=SUM
            )  # for the host: the kernel runs it at lo, which has zeros
        verdicts = [each for each, count in datapath.count().items() for _ in range(count - before[0][each])]
        counted = [way for way, (packets, _) in ways.read().items() for _ in range(packets - before[1][way][0])]
        ways.close()
        assert len(counted) <= 1
        data = result.data if result.retval == REDIRECT else frame[:6] + result.data[6:]
        return counted[0] if counted else None, verdicts, result.retval, data

    def leave(self, frame: bytes) -> None:
        """A frame goes out of the uplink by the host's stack."""
        with self.node.generation.program("to_uplink", self.family) as program:
            assert program.test_run(frame).retval == NEXT

    def follow(self, source: Endpoint, destination: Endpoint, protocol: int = 6) -> None:
        """The host follows a connection; one end of it sends packets from `source` to `destination`."""
        packet = FlowTuple(
            source.host.packed(self.family),
            source.port,
            destination.host.packed(self.family),
            destination.port,
            protocol,
            FROM_POD,
        )
        self.node.note(packet, LO)
