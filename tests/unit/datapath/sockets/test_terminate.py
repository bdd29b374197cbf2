"""Which sockets end with their backend, as the kernel names them."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

import pytest

from kproxy_ebpf.contract.layouts import BackendState
from kproxy_ebpf.datapath.sockets.terminate import Lost, is_ended
from kproxy_ebpf.linux.sock_diag import FoundSocket

BACKEND = (b"\x0a\xf4\x01\x03", 8080)
TCP, UDP = {BackendState.GONE}, {BackendState.GONE, BackendState.LEFT}


def found(peer: str, port: int, cookie: int = 1) -> FoundSocket:
    """A socket as sock_diag tells of it."""
    address = ip_address(peer)
    identity = struct.pack("!HH16s16s", 40000, port, b"", address.packed)
    identity += struct.pack("=III", 0, cookie & 0xFFFFFFFF, cookie >> 32)
    return FoundSocket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.IPPROTO_TCP, identity)


def test_a_socket_is_named_by_peer_and_cookie() -> None:
    assert found("10.244.1.3", 8080, 1 << 40 | 7).cookie == 1 << 40 | 7
    assert found("10.244.1.3", 8080).peer == BACKEND
    assert found("::ffff:10.244.1.3", 8080).peer == BACKEND
    assert found("fd00::3", 53).peer == (ip_address("fd00::3").packed, 53)


@pytest.mark.parametrize(
    ("lost", "ending", "ended"),
    [
        (None, UDP, False),
        (Lost(BackendState.GONE, BACKEND), TCP, True),
        (Lost(BackendState.GONE, BACKEND), UDP, True),
        (Lost(BackendState.LEFT, BACKEND), TCP, False),
        (Lost(BackendState.LEFT, BACKEND), UDP, True),
        (Lost(BackendState.LEFT, None), UDP, True),
        (Lost(BackendState.GONE, (BACKEND[0], 9090)), TCP, False),
    ],
)
def test_a_socket_ends_with_its_own_backend(lost: Lost | None, ending: set[BackendState], ended: bool) -> None:
    assert is_ended(found("10.244.1.3", 8080), lost, ending) is ended
