"""The API server's answers: errors as exceptions, and connections that notice a dead peer."""

from __future__ import annotations

import json
import socket
from http import HTTPStatus

import aiohttp

from kproxy_ebpf.kube.wire import one_line

MAX_STATUS_BYTES = 64 << 10


class StatusError(Exception):
    """The server refused: an HTTP status or an ERROR event."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"the API server answered {code}: {message}")
        self.code = code
        # the second: the server's data was restored from a backup that is older than what we saw
        self.too_old = code == HTTPStatus.GONE or "Too large resource version" in message


async def raise_for_status(response: aiohttp.ClientResponse) -> None:
    """Raises StatusError, with the words of the server, unless the status is a success."""
    if not response.ok:
        body = await response.content.read(MAX_STATUS_BYTES)
        raise StatusError(response.status, _message_of(body) or str(response.reason))


def notice_dead_peer(response: aiohttp.ClientResponse) -> None:
    """Let the kernel probe a silent connection (after 30 s, lost after 3 probes), long before `idle` has passed."""
    if response.connection is None or response.connection.transport is None:
        return  # all has come already
    sock = response.connection.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _message_of(body: bytes) -> str:
    """The message of a Status object, "" when there is none."""
    try:
        return one_line(str(json.loads(body)["message"]))
    except (ValueError, KeyError, TypeError):
        return ""
