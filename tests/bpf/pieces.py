"""Datagrams in fragments: `pieces(udp(CLIENT, VIP, data))` are what IP makes of the packet, as steps take them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from harness import FROM_POD, Step
from packets import Packet
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from kproxy_ebpf.contract.layouts import Direction, Verdict

SIZE = 64


@dataclass(frozen=True)
class Piece:
    """The bytes from `start` to `end` of what the packet's IP header carries; `end` None: up to its end."""

    packet: Packet
    start: int
    end: int | None
    number: int = 7

    @property
    def sent_back(self) -> bool:
        return self.packet.sent_back

    def frame(self, family: int) -> bytes:
        whole = Ether(self.packet.frame(family))
        kind, number = (IP, whole[IP].proto) if family == 4 else (IPv6, whole[IPv6].nh)
        network = whole[kind]
        content = bytes(network)[len(network) - len(network.payload) :]
        network.remove_payload()
        rest = Raw(content[self.start : self.end])
        more = self.end is not None
        if family == 4:
            network.flags, network.frag, network.id, network.len, network.chksum = (
                ("MF" if more else 0), self.start // 8, self.number, None, None,
            )  # fmt: skip
            return bytes(whole / rest)
        network.nh, network.plen = 44, None
        return bytes(whole / IPv6ExtHdrFragment(offset=self.start // 8, m=int(more), id=self.number, nh=number) / rest)


def pieces(packet: Packet, size: int = SIZE, number: int = 7) -> list[Piece]:
    """All fragments of the packet, in order."""
    starts = range(0, len(packet.payload(4)), size)
    return [Piece(packet, at, at + size if at != starts[-1] else None, number) for at in starts]


def back(piece: Piece) -> Piece:
    """The same, on its way back to the pod that sent it."""
    return replace(piece, packet=piece.packet.back())


def steps(
    hook: Direction, came: Iterable[Piece], verdicts: tuple[Verdict, Verdict], become: Iterable[Piece]
) -> list[Step]:
    """Each piece at the hook; `verdicts`: on the first, and on those that follow."""
    return [
        Step(hook, piece, verdicts[1] if piece.start else verdicts[0], becomes)
        for piece, becomes in zip(came, become, strict=True)
    ]


def sent(packet: Packet, becomes: Packet, number: int = 7, first: Verdict = Verdict.BALANCED) -> list[Step]:
    """A datagram of the client's through a VIP, in order."""
    return steps(FROM_POD, pieces(packet, number=number), (first, Verdict.TRANSLATED), pieces(becomes, number=number))
