"""Netlink by hand (netlink(7)), for what pyroute2 does not speak or reads too slowly: one socket, requests, answers.

Fields are in the byte order of the machine.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Self

ATTRIBUTE = struct.Struct("=HH")
"""struct nlattr: length, kind."""

KIND_MASK = 0x3FFF
"""NLA_TYPE_MASK: the rest of an attribute's kind are flags."""

SOCKET_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

_REQUEST, _ACK, _DUMP, _DUMP_INTERRUPTED = 0x1, 0x4, 0x300, 0x10  # NLM_F_…
_ERROR, _DONE = 2, 3  # NLMSG_…
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_RECEIVE_BYTES = 1 << 16  # the kernel fills 32 KiB at most


class Netlink:
    """A socket for one netlink protocol, in the network namespace in which the calling thread is when this is made.

    Every answer has to be read to its end before the next request.
    """

    def __init__(self, protocol: int, about: str) -> None:
        """`about` begins the message of each OSError that is a refusal. Raises OSError."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._about = about
        self.was_interrupted = False  # objects changed during the last dump: some may be missing in it

    def dump(self, kind: int, payload: bytes) -> Iterator[memoryview]:
        """Ask for all objects; the payload of each. Raises OSError."""
        self._send(kind, _REQUEST | _DUMP, payload)
        return self._answers()

    def order(self, kind: int, payload: bytes) -> None:
        """Ask for something to be done, and wait until it is. Raises OSError."""
        for _ in self.ask(kind, payload):
            pass

    def ask(self, kind: int, payload: bytes) -> Iterator[memoryview]:
        """Ask for one object; its payload. Raises OSError."""
        self._send(kind, _REQUEST | _ACK, payload)
        return self._answers()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, kind: int, flags: int, payload: bytes) -> None:
        self.was_interrupted = False
        self._socket.send(_HEADER.pack(_HEADER.size + len(payload), kind, flags, 0, 0) + payload)

    def _answers(self) -> Iterator[memoryview]:
        """The payloads up to the end of the answer."""
        while True:
            for kind, flags, payload in self._messages(self._socket.recv(_RECEIVE_BYTES)):
                self.was_interrupted |= bool(flags & _DUMP_INTERRUPTED)
                if kind in (_ERROR, _DONE):
                    number = -int.from_bytes(payload[:4], sys.byteorder, signed=True)
                    if number:
                        raise OSError(number, f"{self._about}: {os.strerror(number)}")
                    return
                yield payload

    def _messages(self, data: bytes) -> Iterator[tuple[int, int, memoryview]]:
        """Kind, flags and payload of each message."""
        view, at = memoryview(data), 0
        while at + _HEADER.size <= len(view):
            length, kind, flags, _, _ = _HEADER.unpack_from(view, at)
            if length < _HEADER.size:
                raise OSError(errno.EBADMSG, f"{self._about}: a message without a length")
            yield kind, flags, view[at + _HEADER.size : at + length]
            at += (length + 3) & ~3


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute of a request, at its end."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(payload), kind) + payload


def attributes(view: memoryview, at: int) -> Iterator[tuple[int, memoryview]]:
    """Kind and payload of the attributes from `at` on."""
    while at + ATTRIBUTE.size <= len(view):
        length, kind = ATTRIBUTE.unpack_from(view, at)
        if length < ATTRIBUTE.size:
            return
        yield kind & KIND_MASK, view[at + ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
