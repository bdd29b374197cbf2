"""A second opinion on frames, written without looking at the C code: where NAT may write, and what checksums say.

Offsets are from the start of an Ethernet frame, `family` is 4 or 6.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

LINK_BYTES = 14
TCP, UDP, SCTP, ICMP, ICMPV6 = 6, 17, 132, 1, 58
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60
CHECKSUM_AT = {TCP: 16, UDP: 6, ICMP: 2, ICMPV6: 2}


class Ip(NamedTuple):
    """One IP packet inside a frame; `addresses` and `transport` are offsets, `end` is what its header says."""

    start: int
    addresses: int
    protocol: int
    transport: int
    end: int


def parse(frame: bytes, family: int, start: int = LINK_BYTES) -> Ip:
    """Raises struct.error or IndexError where headers are cut short."""
    if family == 4:
        total, protocol = struct.unpack_from("!H", frame, start + 2)[0], frame[start + 9]
        return Ip(start, start + 12, protocol, start + (frame[start] & 15) * 4, start + total)
    length, protocol = struct.unpack_from("!HB", frame, start + 4)
    transport = start + 40
    while protocol in (HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION):
        following, units = frame[transport], frame[transport + 1]
        bytes_of = {FRAGMENT: 8, AUTHENTICATION: (units + 2) * 4}
        transport += bytes_of.get(protocol, (units + 1) * 8)
        protocol = following
    return Ip(start, start + 8, protocol, transport, start + 40 + length)


def fields_of_nat(frame: bytes, family: int) -> set[int]:
    """The offsets of all bytes that translating this frame may change."""
    outer = parse(frame, family)
    fields = _fields_of_ip(outer, family)
    if outer.protocol in (ICMP, ICMPV6):
        inner = parse(frame, family, outer.transport + 8)
        return fields | _span(outer.transport + 2, 2) | _fields_of_ip(inner, family) | _span(inner.transport, 4)
    checksum = _span(outer.transport + 8, 4) if outer.protocol == SCTP else _checksum_span(outer)
    return fields | _span(outer.transport, 4) | checksum


def checksums(frame: bytes, family: int) -> list[int]:
    """Every ones' complement sum that covers its own checksum field, modulo 0xffff: 0 where the checksum is valid.

    Of the IP header, of the transport packet with its pseudo header, and of an IP header quoted by ICMP.
    """
    outer = parse(frame, family)
    sums = [_header_sum(frame, outer)] if family == 4 else []
    if outer.protocol in CHECKSUM_AT and not _is_unchecked(frame, outer):
        sums.append(_transport_sum(frame, outer, family))
    if outer.protocol == ICMP and family == 4 and frame[outer.transport] in (3, 11, 12):
        sums.append(_header_sum(frame, parse(frame, family, outer.transport + 8)))
    return sums


def has_valid_checksums(frame: bytes, family: int) -> bool:
    """Of a frame that the programs made themselves; a quoted packet's checksums are its sender's."""
    outer = parse(frame, family)
    header_is_right = family == 6 or _header_sum(frame, outer) == 0
    return outer.end == len(frame) and header_is_right and _transport_sum(frame, outer, family) == 0


def _header_sum(frame: bytes, ip: Ip) -> int:
    return _sum(frame[ip.start : ip.transport])


def _transport_sum(frame: bytes, ip: Ip, family: int) -> int:
    data = frame[ip.transport : ip.end]
    pseudo = b""
    if ip.protocol != ICMP:
        length = (4 if family == 4 else 16) * 2
        pseudo = frame[ip.addresses : ip.addresses + length] + struct.pack("!II", len(data), ip.protocol)
    return _sum(pseudo + data)


def _is_unchecked(frame: bytes, ip: Ip) -> bool:
    return ip.protocol == UDP and frame[ip.transport + 6 : ip.transport + 8] == b"\0\0"


def _sum(data: bytes) -> int:
    padded = data + bytes(len(data) % 2)
    return int(sum(struct.unpack(f"!{len(padded) // 2}H", padded)) % 0xFFFF)


def _fields_of_ip(ip: Ip, family: int) -> set[int]:
    if family == 4:
        return _span(ip.start + 10, 2) | _span(ip.addresses, 8)
    return _span(ip.addresses, 32)


def _checksum_span(ip: Ip) -> set[int]:
    return _span(ip.transport + CHECKSUM_AT[ip.protocol], 2)


def _span(start: int, length: int) -> set[int]:
    return set(range(start, start + length))
