"""Servers that say who they are, and clients that ask them.

The servers and clients of one process use sockets that live in the pods' namespaces (`Namespace.socket`), so a test
needs no process per pod. ``python -m kproxy_ebpf.lab.traffic`` offers the same to a shell inside a pod::

    … serve --name web-1 tcp:10.244.1.2:80 udp:[fd00:244:1::2]:53        … ask --count 10 tcp:10.96.0.10:80

A TCP server greets each connection with one line of JSON, then echoes; a UDP server answers each datagram with that
line, followed by the datagram.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Protocol as Interface
from typing import Self

from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.services import Protocol

KINDS = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}
# Where nothing serves an address yet, the network's word that it is unreachable often goes unheard: a UDP socket passes
# over it, and a TCP one where it comes while connect(2) still sends the SYN. So these questions wait for no time-out.
TRY_SECONDS = 0.05
BLOCK = os.urandom(1 << 20)  # what a bulk transfer repeats: each block must arrive as it was sent


class Place(Interface):
    """Where sockets come from: a `Namespace`, or `Here`."""

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket: ...


class Here:
    """The namespace that this process runs in."""

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        return socket.socket(family, kind, protocol)


@dataclass(frozen=True, slots=True)
class Answer:
    """Which server answered, the client's address and port as that server saw them, and how long it took."""

    server: str
    client: str
    client_port: int
    seconds: float


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET if ip_address(address).version == 4 else socket.AF_INET6


@contextmanager
def opened(
    place: Place,
    address: str,
    port: int,
    protocol: Protocol = Protocol.TCP,
    *,
    source_port: int = 0,
    timeout: float = 2,
) -> Iterator[socket.socket]:
    """A connected socket (UDP too, so that ICMP errors show up). Raises OSError as connect(2) does."""
    with place.socket(family_of(address), KINDS[protocol]) as handle:
        handle.settimeout(timeout)
        if source_port:
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            handle.bind(("", source_port))
        handle.connect((address, port))
        yield handle


def ask(
    place: Place,
    address: str,
    port: int,
    protocol: Protocol = Protocol.TCP,
    *,
    source_port: int = 0,
    timeout: float = 2,
) -> Answer:
    """One connection or datagram, and who answered it. Raises OSError (TimeoutError included)."""
    begin = time.monotonic()
    with opened(place, address, port, protocol, source_port=source_port, timeout=timeout) as handle:
        if protocol is Protocol.UDP:
            handle.send(b"?")
        return read_answer(handle, begin)


def await_answer(
    place: Place, address: str, port: int, protocol: Protocol = Protocol.TCP, *, what: str = "an answer"
) -> Answer:
    """Ask anew every few moments until somebody answers. Raises TimeoutError."""
    return until(lambda: ask(place, address, port, protocol, timeout=TRY_SECONDS), what)


def read_answer(handle: socket.socket, begin: float) -> Answer:
    """The greeting that waits on a connected socket. Raises ConnectionError if the peer closes before it."""
    line = b""
    while b"\n" not in line:
        part = handle.recv(4096)
        if not part:
            raise ConnectionError("closed by the peer before its greeting")
        line += part
    told = json.loads(line.partition(b"\n")[0])
    return Answer(told["server"], told["client"], told["port"], time.monotonic() - begin)


def echo(handle: socket.socket, message: bytes) -> None:
    """Send a message and wait for it to come back. Raises OSError; ConnectionError when something else comes."""
    handle.sendall(message)
    back = b""
    while len(back) < len(message):
        part = handle.recv(len(message) - len(back))
        if not part:
            raise ConnectionError("closed by the peer")
        back += part
    if back != message:
        raise ConnectionError(f"sent {message!r}, got back {back!r}")


def transfer(sender: socket.socket, receiver: socket.socket, blocks: int) -> float:
    """Send `blocks` MiB and compare every byte that arrives; return the seconds it took. Raises ConnectionError."""
    begin = time.monotonic()
    buffer = bytearray(len(BLOCK))

    def send() -> None:
        with suppress(OSError):  # the receiving side tells what went wrong
            for _ in range(blocks):
                sender.sendall(BLOCK)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        for number in range(blocks):
            filled = 0
            while filled < len(buffer):
                count = receiver.recv_into(memoryview(buffer)[filled:])
                if count == 0:
                    raise ConnectionError(f"closed in block {number}")
                filled += count
            if buffer != BLOCK:
                raise ConnectionError(f"block {number} was changed on its way")
    finally:
        thread.join(timeout=10)
    return time.monotonic() - begin


class EchoServer:
    """Any number of listening addresses, served by one thread until `close`."""

    def __init__(self, place: Place, name: str) -> None:
        self.place = place
        self.name = name
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._serve, name=f"server {name}", daemon=True)
        self._thread.start()

    def listen(self, address: str, port: int, protocol: Protocol = Protocol.TCP) -> Self:
        handle = self.place.socket(family_of(address), KINDS[protocol])
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        handle.bind((address, port))
        if protocol is Protocol.TCP:
            handle.listen(1024)
        serve = self._accept if protocol is Protocol.TCP else self._datagram
        self._selector.register(handle, selectors.EVENT_READ, serve)
        return self

    def close(self) -> None:
        """Stop listening, drop every connection (with a RST where data is unread), end the thread."""
        self._wake.send(b"x")
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            handle = key.fileobj
            assert isinstance(handle, socket.socket)  # noqa: S101 - only sockets are registered
            handle.close()
        self._wake.close()
        self._selector.close()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is not None:
                    with suppress(OSError):
                        key.data(key.fileobj)
                else:
                    return

    def _greeting(self, peer: tuple[str, int]) -> bytes:
        return json.dumps({"server": self.name, "client": peer[0], "port": peer[1]}).encode() + b"\n"

    def _accept(self, listener: socket.socket) -> None:
        handle, peer = listener.accept()
        handle.settimeout(1)
        try:
            handle.sendall(self._greeting(peer))
        except OSError:
            handle.close()
        else:
            self._selector.register(handle, selectors.EVENT_READ, self._echo)

    def _echo(self, handle: socket.socket) -> None:
        try:
            data = handle.recv(65536)
            if data:
                handle.sendall(data)
                return
        except ConnectionError:
            pass
        self._selector.unregister(handle)
        handle.close()

    def _datagram(self, handle: socket.socket) -> None:
        data, peer = handle.recvfrom(65536)
        handle.sendto(self._greeting(peer) + data, peer)


class Load:
    """New connections one after the other, in a thread, until `stop`; every failure is kept. `pause` is in seconds.

    `first_seen` and `last_seen` say when (time.monotonic) each server answered first and last.
    """

    def __init__(
        self, place: Place, address: str, port: int, protocol: Protocol = Protocol.TCP, *, pause: float = 0
    ) -> None:
        self.answers: Counter[str] = Counter()
        self.first_seen: dict[str, float] = {}
        self.last_seen: dict[str, float] = {}
        self.failures: list[str] = []
        self._target = (place, address, port, protocol)
        self._pause = pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"load on {address}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            try:
                server = ask(*self._target).server
            except OSError as error:
                self.failures.append(f"after {self.answers.total()} answers: {error!r}")
                continue
            self.answers[server] += 1
            self.last_seen[server] = time.monotonic()
            self.first_seen.setdefault(server, self.last_seen[server])

    def go_on(self, count: int, *, seconds: float = 20) -> None:
        """Wait for `count` more answers. Raises TimeoutError."""
        goal = self.answers.total() + count
        until(lambda: self.answers.total() >= goal, f"{count} more answers", seconds=seconds)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def parse_endpoint(text: str) -> tuple[str, int, Protocol]:
    """``tcp:ADDRESS:PORT`` (IPv6 in brackets). Raises argparse.ArgumentTypeError."""
    try:
        protocol, _, rest = text.partition(":")
        address, _, port = rest.rpartition(":")
        address = str(ip_address(address.strip("[]")))
        return address, int(port), Protocol[protocol.upper()]
    except (KeyError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not like tcp:10.0.0.1:80: {error}") from None


def main() -> None:
    parser = argparse.ArgumentParser(description="Servers that say who they are, and clients that ask them.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="answer until killed")
    serve.add_argument("--name", default=socket.gethostname())
    serve.add_argument("endpoints", nargs="+", type=parse_endpoint)
    client = commands.add_parser("ask", help="make requests, print who answered how often")
    client.add_argument("--count", type=int, default=1)
    client.add_argument("endpoint", type=parse_endpoint)
    options = parser.parse_args()
    if options.command == "serve":
        server = EchoServer(Here(), options.name)
        for endpoint in options.endpoints:
            server.listen(*endpoint)
        threading.Event().wait()
    else:
        answers = Counter(ask(Here(), *options.endpoint).server for _ in range(options.count))
        print(json.dumps(answers, sort_keys=True))


if __name__ == "__main__":
    main()
