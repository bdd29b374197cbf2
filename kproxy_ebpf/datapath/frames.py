"""Makes the first packet of a connection as a frame, and reads frames: for runs of the programs without a device.

Checksums stay 0. Nothing verifies them: the programs change them by difference, and no frame is ever sent.
"""

from __future__ import annotations

import struct
from enum import StrEnum

from kproxy_ebpf.contract.layouts import Direction
from kproxy_ebpf.contract.scalars import address_bytes
from kproxy_ebpf.model.flows import FlowTuple
from kproxy_ebpf.model.services import Protocol, family_of

_LINK_BYTES = 14
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_NETWORK_BYTES = {4: 20, 6: 40}
_ADDRESSES_OFFSET = {4: 12, 6: 8}
_PROTOCOL_OFFSET = {4: 9, 6: 6}
_ICMP = {4: 1, 6: 58}
_TTL, _WINDOW, _SYN = 64, 65535, 0x02
_INIT_CHUNK = struct.pack("!BBHIIHHI", 1, 0, 20, 1, _WINDOW, 1, 1, 0)  # RFC 9260, 3.3.2
_TCP_FLAGS_OFFSET, _RST = 13, 0x04


class Refusal(StrEnum):
    """What a program makes of a packet that it refuses."""

    RESET = "TCP RST"
    UNREACHABLE = "ICMP port unreachable"


def first_packet(packet: FlowTuple, to_mac: bytes = bytes(6)) -> bytes:
    """The frame that begins a connection: a TCP SYN, an empty UDP datagram, an SCTP INIT."""
    family = family_of(packet.source)
    transport = _transport(packet)
    if family == 4:
        length = _NETWORK_BYTES[4] + len(transport)
        network = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0x4000, _TTL, packet.protocol, 0)
    else:
        network = struct.pack("!IHBB", 6 << 28, len(transport), packet.protocol, _TTL)
    link = to_mac + bytes(6) + struct.pack("!H", _ETHERTYPE[family])
    return link + network + packet.source + packet.destination + transport


def _transport(packet: FlowTuple) -> bytes:
    ports = struct.pack("!HH", packet.source_port, packet.destination_port)
    match packet.protocol:
        case Protocol.TCP:
            return ports + struct.pack("!IIBBHHH", 1, 0, 5 << 4, _SYN, _WINDOW, 0, 0)
        case Protocol.UDP:
            return ports + struct.pack("!HH", 8, 0)
        case _:
            return ports + bytes(8) + _INIT_CHUNK


def tuple_of(frame: bytes, family: int) -> FlowTuple:
    """The tuple of a frame without IP options and extension headers, as `first_packet` makes them."""
    size, start = address_bytes(family), _LINK_BYTES + _ADDRESSES_OFFSET[family]
    source, destination = frame[start : start + size], frame[start + size : start + 2 * size]
    ports = struct.unpack_from("!HH", frame, _LINK_BYTES + _NETWORK_BYTES[family])
    return FlowTuple(source, ports[0], destination, ports[1], _protocol(frame, family), Direction.FROM_POD)


def refusal_of(frame: bytes, family: int) -> Refusal | None:
    """The kind of refusal that a frame is; None if it is none."""
    protocol = _protocol(frame, family)
    if protocol == _ICMP[family]:
        return Refusal.UNREACHABLE
    flags = frame[_LINK_BYTES + _NETWORK_BYTES[family] + _TCP_FLAGS_OFFSET] if protocol == Protocol.TCP else 0
    return Refusal.RESET if flags & _RST else None


def _protocol(frame: bytes, family: int) -> int:
    return frame[_LINK_BYTES + _PROTOCOL_OFFSET[family]]
