"""Sockets of this network namespace that have a peer, and their end (sock_diag(7)).

Requests are built by hand: pyroute2 has no SOCK_DESTROY.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

TARGETS_MAX = 32
"""More addresses than that are no filter worth its time."""

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP = 0x01, 0x04, 0x300
# linux/inet_diag.h
_REQ_BYTECODE = 1
_BC_JMP, _BC_DESTINATION = 1, 8
_TCP_STATES = sum(1 << state for state in (1, 2, 4, 5, 8, 9, 11))  # all in which it has a peer
_UDP_STATES = 1 << 1  # connected
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ID_OFFSET, _ID_BYTES = 4, 48
_PORT_OFFSET, _PEER_OFFSET, _COOKIE_OFFSET = 2, 20, 40  # in struct inet_diag_sockid
_MAPPED = bytes(10) + b"\xff\xff"
_RECEIVE_BYTES = 1 << 16

Target = tuple[bytes, int]
"""A packed address and a port."""


class FoundSocket(NamedTuple):
    """A socket. `identity` names it to the kernel (struct inet_diag_sockid)."""

    family: int
    protocol: int
    identity: bytes

    @property
    def peer(self) -> Target:
        """Where it is connected to; an IPv4-mapped address as the IPv4 address that it means."""
        size = 4 if self.family == socket.AF_INET else 16
        address = self.identity[_PEER_OFFSET : _PEER_OFFSET + size]
        port = int.from_bytes(self.identity[_PORT_OFFSET : _PORT_OFFSET + 2], "big")
        return address.removeprefix(_MAPPED), port

    @property
    def cookie(self) -> int:
        """What bpf_get_socket_cookie() says of it: no other socket ever has the same."""
        low, high = struct.unpack_from("=II", self.identity, _COOKIE_OFFSET)
        return int(high << 32 | low)


class SockDiag:
    """Asks about the network namespace in which the calling thread is when this is made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)

    def find(self, family: int, protocol: int, targets: Sequence[Target] = ()) -> Iterator[FoundSocket]:
        """The sockets of `family` (AF_INET or AF_INET6) with a peer: any, or one of `targets`. Raises OSError."""
        states = _TCP_STATES if protocol == socket.IPPROTO_TCP else _UDP_STATES
        request = struct.pack("=BBBxI", family, protocol, 0, states) + bytes(_ID_BYTES)
        if targets:
            code = _one_of(targets)
            request += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(code), _REQ_BYTECODE) + code
        self._send(_SOCK_DIAG_BY_FAMILY, _REQUEST | _DUMP, request)
        for message in self._answers():
            yield FoundSocket(family, protocol, message[_ID_OFFSET : _ID_OFFSET + _ID_BYTES])

    def destroy(self, found: FoundSocket) -> None:
        """End a socket: its application gets ECONNABORTED, a TCP peer a RST. Raises OSError (ENOENT: it has ended)."""
        request = struct.pack("=BBBxI", found.family, found.protocol, 0, 0) + found.identity
        self._send(_SOCK_DESTROY, _REQUEST | _ACK, request)
        for _ in self._answers():
            pass

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, kind: int, flags: int, payload: bytes) -> None:
        self._socket.send(_HEADER.pack(_HEADER.size + len(payload), kind, flags, 0, 0) + payload)

    def _answers(self) -> Iterator[bytes]:
        """The payloads up to the end of the answer. Raises OSError where it is a refusal."""
        while True:
            data = self._socket.recv(_RECEIVE_BYTES)
            while data:
                length, kind, *_ = _HEADER.unpack_from(data)
                payload, data = data[_HEADER.size : length], data[-(-length // 4) * 4 :]
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    number = -int.from_bytes(payload[:4], sys.byteorder, signed=True)
                    if number:
                        raise OSError(number, f"sock_diag: {os.strerror(number)}")
                    return
                yield payload


def _one_of(targets: Sequence[Target]) -> bytes:
    """The kernel's byte code for "the peer is one of these": conditions, each but the last followed by a jump to the
    end. One that holds goes on to the jump, one that does not skips it, the last one to a place that means no.
    """
    code = b""
    for number, (address, port) in enumerate(reversed(targets)):
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        condition = struct.pack("=BBxxi", family, 8 * len(address), port) + address
        size = 4 + len(condition)
        jump = struct.pack("=BBH", _BC_JMP, 4, 4 + len(code)) if number else b""
        code = struct.pack("=BBH", _BC_DESTINATION, size, size + 4) + condition + jump + code
    return code
