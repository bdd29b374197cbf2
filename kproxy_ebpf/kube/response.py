"""The API server's answers: everything that can be wrong with one as an AnswerError, and a connection that notices a
dead peer.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus

import aiohttp

from kproxy_ebpf.errors import KproxyError
from kproxy_ebpf.kube.wire import one_line

MAX_STATUS_BYTES = 64 << 10
MAX_RETRY_AFTER = 120  # seconds; beyond that we would be blind for longer than a server is overloaded


class AnswerError(Exception):
    """There is no answer to use: the request is to be repeated after a while. The message is one line for people."""


class StatusError(AnswerError):
    """The server refused: an HTTP status or an ERROR event."""

    def __init__(self, code: int, message: str, retry_after: float = 0.0) -> None:
        super().__init__(f"the API server answered {code}: {message}")
        self.code = code
        self.retry_after = retry_after
        """How many seconds the server wants to be left alone."""
        # the second: the server's data was restored from a backup that is older than what we saw
        self.too_old = code == HTTPStatus.GONE or "Too large resource version" in message


@contextmanager
def answer_errors() -> Iterator[None]:
    """The one boundary around connections and parsers: whatever goes wrong inside is an AnswerError, but for
    cancellation. No answer, and no credential, is worth the daemon's end.
    """
    try:
        yield
    except AnswerError:
        raise
    except Exception as error:
        is_told = isinstance(error, (aiohttp.ClientError, OSError, KproxyError)) and str(error)
        raise AnswerError(one_line(str(error) if is_told else f"{type(error).__name__}: {error}")) from error


async def raise_for_status(response: aiohttp.ClientResponse, seconds: float) -> None:
    """Raises StatusError unless the status is a success, with the words of the server if they come within `seconds`."""
    if response.ok:
        return
    body = b""
    with suppress(TimeoutError, aiohttp.ClientError):  # the status says enough
        async with asyncio.timeout(seconds):
            body = await response.content.read(MAX_STATUS_BYTES)
    wait = response.headers.get("Retry-After", "")
    seconds = min(int(wait[:9]), MAX_RETRY_AFTER) if wait.isascii() and wait.isdigit() else 0
    raise StatusError(response.status, _message_of(body) or str(response.reason), seconds)


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
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
