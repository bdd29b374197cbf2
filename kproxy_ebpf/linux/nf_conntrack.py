"""The connections that the host's conntrack follows, from ctnetlink (linux/netfilter/nfnetlink_conntrack.h).

pyroute2 can dump them too, at 0.2 ms an entry; a node has a hundred thousand. Here each takes a few microseconds.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kproxy_ebpf.contract.layouts import Direction
from kproxy_ebpf.contract.scalars import address_bytes
from kproxy_ebpf.model.flows import FlowTuple

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_NETLINK_NETFILTER = 12
_GET_CONNTRACK = 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_REQUEST, _DUMP, _DUMP_INTERRUPTED = 0x1, 0x300, 0x10
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NFGENMSG_BYTES = 4
_ORIGINAL, _REPLY = 1, 2  # CTA_TUPLE_ORIG, CTA_TUPLE_REPLY
_TYPE_MASK = 0x3FFF
_RECEIVE_BYTES = 1 << 18
_PRESENT = Path("/proc/sys/net/netfilter/nf_conntrack_count")


class Tracked(NamedTuple):
    """One connection: the tuple of its first packet as it came, and that of the answers that are expected."""

    original: FlowTuple
    reply: FlowTuple

    @property
    def is_led_elsewhere(self) -> bool:
        """Whether somebody else answers than who was asked: a VIP's backend. Masquerading alone does not make it so."""
        asked = self.original.destination, self.original.destination_port
        return asked != (self.reply.source, self.reply.source_port)


def tracked(family: int) -> list[Tracked]:
    """What conntrack follows in this network namespace; nothing where it does not exist. Raises OSError."""
    if not _PRESENT.exists():
        return []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as handle:
        handle.bind((0, 0))
        while True:
            entries, interrupted = _dump(handle, family)
            if not interrupted:
                return entries


def _dump(handle: socket.socket, family: int) -> tuple[list[Tracked], bool]:
    request = _HEADER.pack(_HEADER.size + _NFGENMSG_BYTES, _GET_CONNTRACK, _REQUEST | _DUMP, 0, 0)
    handle.send(request + struct.pack("=BBH", _FAMILIES[family], 0, 0))
    entries: list[Tracked] = []
    layout, interrupted = _TupleLayout(family), False
    while True:
        for kind, flags, body in _messages(handle.recv(_RECEIVE_BYTES)):
            interrupted |= bool(flags & _DUMP_INTERRUPTED)
            if kind == _DONE:
                return entries, interrupted
            if kind == _ERROR:
                number = -struct.unpack_from("=i", body)[0]
                raise OSError(number, f"conntrack can't be read: {os.strerror(number)}")
            tuples = {key: layout.parse(value) for key, value in _attributes(body, _NFGENMSG_BYTES) if key <= _REPLY}
            if (original := tuples.get(_ORIGINAL)) and (reply := tuples.get(_REPLY)):
                entries.append(Tracked(original, reply))


def _messages(data: bytes) -> Iterator[tuple[int, int, memoryview]]:
    view, at = memoryview(data), 0
    while at + _HEADER.size <= len(view):
        length, kind, flags, _, _ = _HEADER.unpack_from(view, at)
        if length < _HEADER.size:
            raise OSError(errno.EBADMSG, "conntrack can't be read: a message without a length")
        yield kind, flags, view[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def _attributes(view: memoryview, at: int) -> Iterator[tuple[int, memoryview]]:
    while at + _ATTRIBUTE.size <= len(view):
        length, kind = _ATTRIBUTE.unpack_from(view, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_MASK, view[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


class _TupleLayout:
    """How ctnetlink writes a tuple with ports: addresses, then protocol and ports, each of a fixed size."""

    def __init__(self, family: int) -> None:
        size = address_bytes(family)
        addresses = f"4x 4x{size}s 4x{size}s"  # CTA_TUPLE_IP: source, destination
        self._whole = struct.Struct(f"={addresses} 4x 4xB3x 4x2s2x 4x2s2x".replace(" ", ""))
        source, destination = {4: (1, 2), 6: (3, 4)}[family]
        at = 8 + 8 + 2 * size
        self._kinds = ((0, 1), (4, source), (8 + size, destination), (at - 4, 2), (at, 1), (at + 8, 2), (at + 16, 3))

    def parse(self, view: memoryview) -> FlowTuple | None:
        """None for a protocol without ports."""
        if len(view) < self._whole.size:
            return None
        if any(_ATTRIBUTE.unpack_from(view, at)[1] & _TYPE_MASK != kind for at, kind in self._kinds):
            return None
        source, destination, protocol, source_port, destination_port = self._whole.unpack_from(view)
        ports = int.from_bytes(source_port, "big"), int.from_bytes(destination_port, "big")
        return FlowTuple(source, ports[0], destination, ports[1], protocol, Direction.FROM_POD)
