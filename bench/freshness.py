"""How long a changed EndpointSlice takes from the API server to the map.

SERVICES slices are patched in turn, RATE changes a second altogether; each patch flips the readiness of the slice's one
endpoint, which is one byte in the memory-mapped map of backends. Three times are noted, all in this process: before the
patch is sent, when a watch of our own hands out the event (the daemon's watch gets it at about the same time), and
when the byte is seen to have changed (polled every POLL_SECONDS).
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from ipaddress import IPv4Address
from statistics import median

from bench.population import HTTP, add_service, endpoint
from bench.proxies import OurProxy
from bench.run import Freshness
from kproxy_ebpf.contract.layouts import BackendState, layouts
from kproxy_ebpf.datapath.maps.arrays import MappedArray
from kproxy_ebpf.lab.control_plane import ControlPlane, object_path
from kproxy_ebpf.lab.wait import until
from kproxy_ebpf.linux.bpf import Map

SERVICES = 10
RATE = 50
POLL_SECONDS = 0.0001
LOST_SECONDS = 10.0
FIRST_ENDPOINT = IPv4Address("10.246.0.1")
FIRST_VIP = IPv4Address("10.96.255.1")


class _Watch:
    """A watch of our own: when did the last event about each slice arrive (time.monotonic), by resourceVersion."""

    def __init__(self, cluster: ControlPlane) -> None:
        self.arrived: dict[str, float] = {}
        path = object_path("EndpointSlice")
        version = cluster.api("GET", f"{path}?limit=1")["metadata"]["resourceVersion"]
        self._connection = cluster.connect()
        watch = f"{path}?watch=1&resourceVersion={version}"
        self._connection.request("GET", watch, headers=cluster.authorization)
        self._answer = self._connection.getresponse()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with suppress(OSError, HTTPException):  # closed under our hands
            while line := self._answer.readline():
                now = time.monotonic()
                self.arrived[json.loads(line)["object"]["metadata"]["resourceVersion"]] = now

    def close(self) -> None:
        self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=5)
        self._connection.close()


@dataclass(frozen=True, slots=True)
class _Cell:
    """One slice and the word of the map that tells its endpoint's state."""

    service: str
    address: str
    octets: memoryview
    offset: int

    @property
    def usable(self) -> bool:
        return self.octets[self.offset] == BackendState.USABLE


def measure(cluster: ControlPlane, daemon: OurProxy, *, changes: int) -> Freshness:
    """Raises TimeoutError when the Services never get to the map at all."""
    watch = _Watch(cluster)
    try:
        with _cells(cluster, daemon) as cells:
            times = [_change(cluster, cells[number % SERVICES]) for number in range(changes)]
        until(lambda: all(version in watch.arrived for version, _, _ in times), "the watch's last event")
    finally:
        watch.close()
    seen = [(patched, watch.arrived[version], mapped) for version, patched, mapped in times if mapped]
    inner = sorted((mapped - event) * 1000 for _, event, mapped in seen)
    outer = sorted((mapped - patched) * 1000 for patched, _, mapped in seen)
    return Freshness(changes, changes - len(seen), median(inner), _p99(inner), inner[-1], median(outer), _p99(outer))


def _change(cluster: ControlPlane, cell: _Cell) -> tuple[str, float, float]:
    """Flip one slice. Returns (resourceVersion, when the patch was sent, when the map had it or 0.0)."""
    wanted = not cell.usable
    body = {"endpoints": [endpoint(cell.address, ready=wanted)]}
    patched = time.monotonic()
    answer = cluster.api("PATCH", object_path("EndpointSlice", f"{cell.service}-1"), body)
    while cell.usable != wanted and time.monotonic() - patched < LOST_SECONDS:
        time.sleep(POLL_SECONDS)
    mapped = time.monotonic() if cell.usable == wanted else 0.0
    time.sleep(max(0.0, patched + 1 / RATE - time.monotonic()))
    return answer["metadata"]["resourceVersion"], patched, mapped


@contextmanager
def _cells(cluster: ControlPlane, daemon: OurProxy) -> Iterator[list[_Cell]]:
    """Make the Services, and find their endpoints in the map."""
    endpoints = {f"fresh-{number}": str(FIRST_ENDPOINT + number) for number in range(SERVICES)}
    for number, (service, address) in enumerate(endpoints.items()):
        add_service(cluster, service, str(FIRST_VIP + number), [address])
    pin = daemon.bpffs / "kproxy-ebpf" / "current" / "maps" / "backends_v4"
    with Map.open(pin) as map_, MappedArray(map_).words() as words, words.cast("B") as octets:
        stride = (map_.info.value_size + 7) & ~7
        yield [_Cell(name, address, octets, _find(octets, stride, address)) for name, address in endpoints.items()]


def _find(octets: memoryview, stride: int, address: str) -> int:
    """The offset of the state of the TCP backend with `address`; waits until it is there. Raises TimeoutError."""
    layout = layouts(4).Backend
    wanted = IPv4Address(address).packed + HTTP["http"].server.to_bytes(2, "big") + bytes([BackendState.USABLE])

    def find() -> int:
        text = bytes(octets)
        at = text.find(wanted)
        while at >= 0 and at % stride:
            at = text.find(wanted, at + 1)
        return at + 1

    offset = until(find, f"{address} in the map of backends") - 1
    return offset + int(layout.state.offset)


def _p99(ordered: list[float]) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
