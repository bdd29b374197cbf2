"""The connections that the host's conntrack follows, from ctnetlink (linux/netfilter/nfnetlink_conntrack.h).

pyroute2 can dump them too, at 0.2 ms an entry; a node has a hundred thousand. Here each takes a few microseconds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kproxy_ebpf.linux.netlink import ATTRIBUTE, KIND_MASK, SOCKET_FAMILIES, Netlink, attributes
from kproxy_ebpf.model.flows import FlowTuple

_NETLINK_NETFILTER = 12
_GET_CONNTRACK = 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_GENERIC = struct.Struct("=BBH")  # struct nfgenmsg
_ORIGINAL, _REPLY = 1, 2  # CTA_TUPLE_ORIG, CTA_TUPLE_REPLY
_ADDRESS_BYTES = {4: 4, 6: 16}
_PRESENT = Path("/proc/sys/net/netfilter/nf_conntrack_count")


class Tracked(NamedTuple):
    """One connection: the tuple of its first packet as it came, and the tuple of the answers that are expected."""

    original: FlowTuple
    reply: FlowTuple

    @property
    def is_led_elsewhere(self) -> bool:
        """True if another address or port answers than was asked, as for a VIP. Masquerading alone does not count."""
        asked = self.original.destination, self.original.destination_port
        return asked != (self.reply.source, self.reply.source_port)


def tracked(family: int) -> list[Tracked]:
    """What conntrack follows in this network namespace; nothing where it does not exist. Raises OSError."""
    if not _PRESENT.exists():
        return []
    with Netlink(_NETLINK_NETFILTER, "conntrack can't be read") as netlink:
        while True:
            entries = list(_dump(netlink, family))
            if not netlink.was_interrupted:
                return entries


def _dump(netlink: Netlink, family: int) -> Iterator[Tracked]:
    layout = _TupleLayout(family)
    for message in netlink.dump(_GET_CONNTRACK, _GENERIC.pack(SOCKET_FAMILIES[family], 0, 0)):
        parts = attributes(message, _GENERIC.size)
        tuples = {kind: layout.parse(value) for kind, value in parts if kind <= _REPLY}
        if (original := tuples.get(_ORIGINAL)) and (reply := tuples.get(_REPLY)):
            yield Tracked(original, reply)


class _TupleLayout:
    """How ctnetlink writes a tuple with ports: addresses, then protocol and ports, each of a fixed size."""

    def __init__(self, family: int) -> None:
        size = _ADDRESS_BYTES[family]
        addresses = f"4x 4x{size}s 4x{size}s"  # CTA_TUPLE_IP: source, destination
        self._whole = struct.Struct(f"={addresses} 4x 4xB3x 4x2s2x 4x2s2x".replace(" ", ""))
        source, destination = {4: (1, 2), 6: (3, 4)}[family]
        at = 8 + 8 + 2 * size
        self._kinds = ((0, 1), (4, source), (8 + size, destination), (at - 4, 2), (at, 1), (at + 8, 2), (at + 16, 3))

    def parse(self, view: memoryview) -> FlowTuple | None:
        """None for a protocol without ports."""
        if len(view) < self._whole.size:
            return None
        if any(ATTRIBUTE.unpack_from(view, at)[1] & KIND_MASK != kind for at, kind in self._kinds):
            return None
        source, destination, protocol, source_port, destination_port = self._whole.unpack_from(view)
        ports = int.from_bytes(source_port, "big"), int.from_bytes(destination_port, "big")
        return FlowTuple(source, ports[0], destination, ports[1], protocol)
