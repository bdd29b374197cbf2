"""A client that asks who serves a VIP, and servers that say their names."""

from __future__ import annotations

import re
import socket
import struct
import threading
from contextlib import suppress
from http.client import HTTPConnection

from kproxy_ebpf.lab import Namespace, Pod

ANSWER_SECONDS = 0.2
RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: no TIME_WAIT, so thousands of questions need no new ports


class Client:
    """Asks from inside `pod`."""

    def __init__(self, pod: Pod, vip: str, port: int) -> None:
        self._pod, self._address = pod, (vip, port)

    def ask(self) -> str:
        """The name of the server that answers, "" where none does."""
        with self._pod.socket(socket.AF_INET, socket.SOCK_STREAM) as asking:
            asking.settimeout(ANSWER_SECONDS)
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            try:
                asking.connect(self._address)
                return asking.recv(64).decode()
            except OSError:
                return ""


class Server:
    """Says its pod's name to whoever connects, until its namespace is gone."""

    def __init__(self, pod: Pod, port: int) -> None:
        self.name, self.address = pod.name, pod.ip4
        self._listening = pod.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listening.bind((pod.ip4, port))
        self._listening.listen(1024)
        threading.Thread(target=self._serve, daemon=True).start()

    def __repr__(self) -> str:
        return f"server {self.name}"

    def _serve(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            with connection, suppress(OSError):
                connection.sendall(self.name.encode())


def sample(place: Namespace, port: int, name: str) -> float:
    """One unlabelled (or the first labelled) sample of /metrics at `place`'s loopback. Raises OSError, LookupError."""
    with place.inside():
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
    found = re.search(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    if found is None:
        raise LookupError(f"no {name} at port {port}")
    return float(found[1])
