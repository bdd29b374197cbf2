"""As much of rtnetlink(7) as links and filters need: requests, dumps, attributes, and a socket that hears of changes.

Not pyroute2: its sockets fail inside uvloop, and importing it costs the daemon 11 MB.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple, Self

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
RTMGRP_LINK, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE = 0x1, 0x40, 0x400

_NLMSG_ERROR, _NLMSG_DONE, _NLM_F_DUMP_INTR = 2, 3, 0x10
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_NESTED_MASK = 0x3FFF
_ROOM = 1 << 18
_HEARING_ROOM = 1 << 22


class Message(NamedTuple):
    """One message: its RTM_… type, and what follows its header."""

    type: int
    body: bytes
    flags: int = 0


class Netlink:
    """Requests to the kernel, answered at once. Errors are OSError with the kernel's errno."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._sequence = 0

    def request(self, type_: int, body: bytes, flags: int = 0, about: str = "netlink") -> None:
        """Ask for one change and wait for the acknowledgement."""
        for message in self._exchange(type_, body, flags | NLM_F_ACK):
            code = _error_of(message)
            if code:
                raise OSError(code, f"{about}: {os.strerror(code)}")
            return

    def dump(self, type_: int, body: bytes) -> list[Message]:
        """Ask for all objects of a kind; asked again where they changed meanwhile. None where there is no such kind."""
        while True:
            messages = []
            for message in self._exchange(type_, body, NLM_F_DUMP):
                if message.type == _NLMSG_DONE:
                    break
                if message.type == _NLMSG_ERROR:
                    code = _error_of(message)
                    raise OSError(code, f"netlink dump {type_}: {os.strerror(code)}")
                messages.append(message)
            if not any(message.flags & _NLM_F_DUMP_INTR for message in messages):
                return messages

    def _exchange(self, type_: int, body: bytes, flags: int) -> Iterator[Message]:
        self._sequence += 1
        length = _HEADER.size + len(body)
        self._socket.send(_HEADER.pack(length, type_, flags | NLM_F_REQUEST, self._sequence, 0) + body)
        while True:
            yield from parse_messages(self._socket.recv(_ROOM), self._sequence)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def listening_socket(groups: int) -> socket.socket:
    """A non-blocking socket that receives every message of `groups` (RTMGRP_… bits)."""
    listener = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    )
    listener.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_RCVBUFFORCE", 33), _HEARING_ROOM)
    listener.bind((0, groups))
    return listener


def receive(listener: socket.socket) -> Iterator[Message]:
    """What has been heard by now. Raises OSError with ENOBUFS where the kernel dropped messages."""
    while True:
        try:
            data = listener.recv(_ROOM)
        except BlockingIOError:
            return
        yield from parse_messages(data)


def parse_messages(data: bytes, sequence: int | None = None) -> Iterator[Message]:
    """The messages in one datagram; with `sequence` only the answers to that request."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, type_, flags, number, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        if sequence is None or number == sequence:
            yield Message(type_, data[offset + _HEADER.size : offset + length], flags)
        offset += _aligned(length)


def attribute(type_: int, payload: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(length, type_) + payload + bytes(_aligned(length) - length)


def parse_attributes(data: bytes) -> dict[int, bytes]:
    """Payloads by attribute type."""
    found, offset = {}, 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, type_ = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[type_ & _NESTED_MASK] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += _aligned(length)
    return found


def text(payload: bytes) -> str:
    """A zero-terminated string; link names may hold any byte."""
    return os.fsdecode(payload.split(b"\0")[0])


def _error_of(message: Message) -> int:
    """The errno of an NLMSG_ERROR message, 0 for an acknowledgement."""
    if message.type != _NLMSG_ERROR:
        return errno.EPROTO
    return -int(struct.unpack_from("=i", message.body)[0])


def _aligned(length: int) -> int:
    return (length + 3) & ~3
