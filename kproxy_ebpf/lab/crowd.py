"""Open connections that a thread keeps busy, and that nothing may break or move to another backend."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from kproxy_ebpf.lab.traffic import Place, echo, opened, read_answer
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.model.services import Protocol

PAUSE_SECONDS = 0.02


@dataclass(slots=True)
class Member:
    """One connection, and the server that it was made with."""

    handle: socket.socket
    protocol: Protocol
    server: str = ""

    def speak(self, message: bytes) -> None:
        """Send `message` and wait for the answer. Raises OSError, ConnectionError where another server answers."""
        if self.protocol is Protocol.TCP:
            echo(self.handle, message)
            return
        self.handle.send(message)
        line, _, back = self.handle.recv(65536).partition(b"\n")
        while back != message:  # what an earlier failure left unread
            line, _, back = self.handle.recv(65536).partition(b"\n")
        server = json.loads(line)["server"]
        if server != self.server:
            raise ConnectionError(f"moved from {self.server} to {server}")


class Crowd:
    """As a context manager: busy inside the block. `failures` says which connections broke and how, `rounds` counts how
    often all of them have spoken, `spread` says how many each server has.
    """

    def __init__(
        self,
        place: Place,
        address: str,
        port: int,
        count: int,
        protocol: Protocol = Protocol.TCP,
        *,
        timeout: float = 5,
    ) -> None:
        self.failures: list[str] = []
        self.rounds = 0
        self.spread: Counter[str] = Counter()
        self._target = (place, address, port, protocol)
        self._timeout = timeout
        self._stack = ExitStack()
        self._members: list[Member] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"crowd at {address}", daemon=True)
        self.grow(count)

    def grow(self, count: int) -> None:
        """Open `count` more connections; they join in. Raises OSError."""
        for _ in range(count):
            handle = self._stack.enter_context(opened(*self._target, timeout=self._timeout))
            member = Member(handle, self._target[3])
            if member.protocol is Protocol.UDP:
                handle.send(b"?")
            member.server = read_answer(handle, 0).server
            self.spread[member.server] += 1
            self._members.append(member)

    def go_on(self, count: int = 3, *, seconds: float = 20) -> None:
        """Wait until all have spoken `count` times more. Raises TimeoutError."""
        target = self.rounds + count
        until(lambda: self.rounds >= target, f"{count} more rounds of traffic", seconds=seconds)

    def _run(self) -> None:
        while not self._stop.wait(PAUSE_SECONDS):
            for number, member in enumerate(list(self._members)):
                try:
                    member.speak(b"%d of round %d" % (number, self.rounds))
                except OSError as error:
                    port = member.handle.getsockname()[1]
                    self.failures.append(f"{member.protocol.name} connection {number} from port {port}: {error!r}")
                    self._members.remove(member)
            self.rounds += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._stack.close()
