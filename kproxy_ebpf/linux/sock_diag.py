"""Finds the connected sockets of a network namespace, and terminates them (sock_diag(7)).

Requests are built by hand: pyroute2 has no SOCK_DESTROY.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

from kproxy_ebpf.linux.netlink import Netlink, attribute

TARGETS_MAX = 32
"""A filter of more addresses than these takes more time than it saves."""

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
# linux/inet_diag.h
_REQ_BYTECODE = 1
_BC_JMP, _BC_DESTINATION = 1, 8
_TCP_STATES = sum(1 << state for state in (1, 2, 4, 5, 8, 9, 11))  # all in which it has a peer
_UDP_STATES = 1 << 1  # connected
_REQUEST = struct.Struct("=BBBxI")  # struct inet_diag_req_v2 up to the id: family, protocol, extensions, states
_ID_OFFSET, _ID_BYTES = 4, 48
_PORT_OFFSET, _PEER_OFFSET, _COOKIE_OFFSET = 2, 20, 40  # in struct inet_diag_sockid
_MAPPED = bytes(10) + b"\xff\xff"

Target = tuple[bytes, int]
"""A packed address and a port."""


class FoundSocket(NamedTuple):
    """A socket. `identity` names it to the kernel (struct inet_diag_sockid)."""

    family: int
    protocol: int
    identity: bytes

    @property
    def peer(self) -> Target:
        """The peer's address and port; an IPv4-mapped address as the IPv4 address that it means."""
        size = 4 if self.family == socket.AF_INET else 16
        address = self.identity[_PEER_OFFSET : _PEER_OFFSET + size]
        port = int.from_bytes(self.identity[_PORT_OFFSET : _PORT_OFFSET + 2], "big")
        return address.removeprefix(_MAPPED), port

    @property
    def cookie(self) -> int:
        """The socket's cookie, as bpf_get_socket_cookie() returns it: no other socket ever has the same."""
        low, high = struct.unpack_from("=II", self.identity, _COOKIE_OFFSET)
        return int(high << 32 | low)


class SockDiag:
    """Asks about the network namespace in which the calling thread is when this is made."""

    def __init__(self) -> None:
        self._netlink = Netlink(_NETLINK_SOCK_DIAG, "sock_diag")

    def find(self, family: int, protocol: int, targets: Sequence[Target] = ()) -> Iterator[FoundSocket]:
        """The sockets of `family` (AF_INET or AF_INET6) with a peer: any, or one of `targets`. Raises OSError."""
        states = _TCP_STATES if protocol == socket.IPPROTO_TCP else _UDP_STATES
        request = _REQUEST.pack(family, protocol, 0, states) + bytes(_ID_BYTES)
        if targets:
            request += attribute(_REQ_BYTECODE, _one_of(targets))
        for message in self._netlink.dump(_SOCK_DIAG_BY_FAMILY, request):
            yield FoundSocket(family, protocol, bytes(message[_ID_OFFSET : _ID_OFFSET + _ID_BYTES]))

    def destroy(self, found: FoundSocket) -> None:
        """End a socket: its application gets ECONNABORTED, a TCP peer a RST. Raises OSError (ENOENT: it has ended)."""
        self._netlink.order(_SOCK_DESTROY, _REQUEST.pack(found.family, found.protocol, 0, 0) + found.identity)

    def close(self) -> None:
        self._netlink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _one_of(targets: Sequence[Target]) -> bytes:
    """The kernel's byte code for "the peer is one of these".

    It is a list of conditions, each but the last followed by a jump to the end. A condition that holds goes on to its
    jump; one that does not hold skips it. The last condition, if it does not hold, goes behind the end, which means no.
    """
    code = b""
    for number, (address, port) in enumerate(reversed(targets)):
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        condition = struct.pack("=BBxxi", family, 8 * len(address), port) + address
        size = 4 + len(condition)
        jump = struct.pack("=BBH", _BC_JMP, 4, 4 + len(code)) if number else b""
        code = struct.pack("=BBH", _BC_DESTINATION, size, size + 4) + condition + jump + code
    return code
