"""Packets, said once for both families: `tcp(CLIENT, VIP, "S").frame(6)` is an IPv6 SYN on the wire.

scapy builds them and computes every length and checksum, so a frame that equals an expected one has valid checksums.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet as Layer
from scapy.packet import Raw

Between = Callable[[int], Any]  # what stands between the IP header and the transport header, by family

POD_MAC, HOST_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
UNTRACEABLE = {"id": 0, "flags": "DF"}  # how the IPv4 header of an answer differs from scapy's default


class Host(NamedTuple):
    """An address in each family, as text."""

    v4: str
    v6: str

    def at(self, family: int) -> str:
        return self.v4 if family == 4 else self.v6

    def packed(self, family: int) -> bytes:
        return socket.inet_pton(socket.AF_INET if family == 4 else socket.AF_INET6, self.at(family))


class Endpoint(NamedTuple):
    host: Host
    port: int

    def on(self, port: int) -> Endpoint:
        return Endpoint(self.host, port)


CLIENT = Endpoint(Host("10.1.0.2", "fd00:1::2"), 40000)
BACKEND = Endpoint(Host("10.1.0.11", "fd00:1::11"), 8080)
BACKEND_B = Endpoint(Host("10.1.0.12", "fd00:1::12"), 8081)
VIP = Endpoint(Host("10.96.0.10", "fd00:96::10"), 80)
VIP_B = Endpoint(Host("10.96.0.11", "fd00:96::11"), 8000)
OUTSIDE = Endpoint(Host("192.0.2.1", "2001:db8::1"), 443)
ROUTER = Host("10.1.0.1", "fd00:1::1")


@dataclass(frozen=True)
class Packet:
    """`between`: IPv4 options or IPv6 extension headers. `sent_back`: the link-layer addresses are exchanged."""

    source: Host
    destination: Host
    payload: Callable[[int], Layer]
    between: Between | None = None
    header: tuple[tuple[str, Any], ...] = ()
    sent_back: bool = False

    def network(self, family: int) -> Layer:
        """The packet from the IP header on."""
        source, destination = self.source.at(family), self.destination.at(family)
        between = self.between(family) if self.between else None
        if family == 4:
            ip = IP(src=source, dst=destination, options=between or [], **dict(self.header))
            return ip / self.payload(family)
        ipv6 = IPv6(src=source, dst=destination)
        return (ipv6 / between if between else ipv6) / self.payload(family)

    def frame(self, family: int) -> bytes:
        macs = (HOST_MAC, POD_MAC) if self.sent_back else (POD_MAC, HOST_MAC)
        return bytes(Ether(src=macs[0], dst=macs[1], type=0x0800 if family == 4 else 0x86DD) / self.network(family))

    def back(self) -> Packet:
        """The same, on its way back to the pod that sent it."""
        return replace(self, sent_back=True)

    def answer(self) -> Packet:
        """The same, as made by the programs in answer to a packet."""
        return replace(self, sent_back=True, header=tuple(UNTRACEABLE.items()))


def tcp(
    source: Endpoint,
    destination: Endpoint,
    flags: str,
    data: bytes = b"",
    between: Between | None = None,
    **fields: Any,
) -> Packet:
    """A TCP segment; `fields` are scapy's (seq, ack, options, window)."""
    layer = TCP(sport=source.port, dport=destination.port, flags=flags, **fields)
    return Packet(source.host, destination.host, lambda _: layer / Raw(data) if data else layer, between)


def reset(source: Endpoint, destination: Endpoint, *, seq: int = 0, ack: int | None = None) -> Packet:
    """The RST that refuses a segment; with `ack` where the segment had no ACK."""
    flags = "R" if ack is None else "RA"
    return tcp(source, destination, flags, seq=seq, ack=ack or 0, window=0).answer()


def udp(
    source: Endpoint,
    destination: Endpoint,
    data: bytes = b"question",
    between: Between | None = None,
    **fields: Any,
) -> Packet:
    """A UDP datagram; `fields` are scapy's (chksum, len)."""
    layer = UDP(sport=source.port, dport=destination.port, **fields)
    return Packet(source.host, destination.host, lambda _: layer / Raw(data), between)


def sctp(source: Endpoint, destination: Endpoint, chunk: Layer) -> Packet:
    layer = SCTP(sport=source.port, dport=destination.port, tag=1) / chunk
    return Packet(source.host, destination.host, lambda _: layer)


def echo_request(source: Endpoint, destination: Endpoint) -> Packet:
    return Packet(source.host, destination.host, lambda family: ICMP() if family == 4 else ICMPv6EchoRequest())


class IcmpError(NamedTuple):
    v4: Layer
    v6: Layer


PORT_UNREACHABLE = IcmpError(ICMP(type=3, code=3), ICMPv6DestUnreach(code=4))
TOO_BIG = IcmpError(ICMP(type=3, code=4, nexthopmtu=1400), ICMPv6PacketTooBig(mtu=1400))
TIME_EXCEEDED = IcmpError(ICMP(type=11, code=0), ICMPv6TimeExceeded())


def icmp_error(kind: IcmpError, source: Host, destination: Host, about: Packet, quoted: int | None = None) -> Packet:
    """An ICMP error that quotes `about`: all of it, or its IP header (with what is between) and `quoted` bytes more."""

    def payload(family: int) -> Layer:
        network = about.network(family)
        whole = bytes(network)
        header_bytes = len(whole) - len(bytes(about.payload(family)))
        quote = whole if quoted is None else whole[: header_bytes + quoted]
        return (kind.v4 if family == 4 else kind.v6) / Raw(quote)

    return Packet(source, destination, payload)


def with_checksum_of(packet: Packet, other: Packet) -> Packet:
    """`packet` with the transport checksum of `other`: how the programs leave a quoted packet."""

    def payload(family: int) -> Layer:
        built = other.network(family).__class__(bytes(other.network(family)))
        layer = packet.payload(family).copy()
        layer.chksum = built[type(layer)].chksum
        return layer

    return replace(packet, payload=payload)


def router_alert(family: int) -> Any:
    """IPv4: router alert and no-operation, 8 bytes of options. IPv6: a hop-by-hop header."""
    if family == 4:
        return [IPOption(b"\x94\x04\x00\x00"), IPOption(b"\x01"), IPOption(b"\x01"), IPOption(b"\x01")]
    return IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0\0\0\0")])


def longest(family: int) -> Any:
    """IPv4: 40 bytes of options, the most there can be. IPv6: hop-by-hop, destination options, a used-up route."""
    if family == 4:
        return [IPOption(b"\x01")] * 40
    route = IPv6ExtHdrRouting(addresses=[OUTSIDE.host.v6], segleft=0)
    return IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(20))]) / route


def source_route(_: int) -> Any:
    """IPv6 only: a routing header on its way; the destination is not the final one."""
    return IPv6ExtHdrRouting(addresses=[OUTSIDE.host.v6], segleft=1)
