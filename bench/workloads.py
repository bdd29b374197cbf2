"""What clients do. A workload measures a route: the metrics of samples.py, and errors."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol as Interface

from bench import load
from bench.load import URGENT
from bench.samples import BITS, CPU_PER_GB, OFFERED, P50, P99, P999, RATE
from bench.usage import busy_seconds
from bench.world import ECHO, HTTP, STREAM, Route

MANY_CONNECTIONS = 64  # at a fixed rate: enough that a free one is there when a request is due
FAILED = "failed"  # what outside tools call an error


@dataclass(frozen=True, slots=True)
class Measured:
    metrics: dict[str, float]
    errors: dict[str, int]


class Workload(Interface):
    @property
    def name(self) -> str: ...

    def run(self, program: Path, route: Route, *, seconds: float, cores: Sequence[int]) -> Measured:
        """`program` is the load generator, `cores` those that it may use. Raises CalledProcessError."""


@dataclass(frozen=True, slots=True)
class Echo:
    """64 octets there and back: a socket for each request (`short`) or the same ones (`keepalive`), as fast as answers
    come, or at `rate` requests a second.
    """

    kind: str
    protocol: str = "tcp"
    connections: int = 8
    rate: float = 0

    @property
    def name(self) -> str:
        if self.rate:
            return f"{self.protocol} {self.kind}, fixed rate"
        kind = "request/response" if self.connections == 1 else self.kind
        return f"{self.protocol} {kind}"

    def run(self, program: Path, route: Route, *, seconds: float, cores: Sequence[int]) -> Measured:
        result = load.run(program, route.place, self.words(route), seconds=seconds, cores=cores)
        latency, metrics = result["latency_us"], {RATE: result["rate"]}
        metrics |= {P50: latency["p50"], P99: latency["p99"], P999: latency["p999"]}
        if self.rate:
            metrics[OFFERED] = self.rate
        return Measured(metrics, result["errors"])

    def words(self, route: Route) -> list[str]:
        """What the load generator is told, see load.c."""
        options = ["-c", str(self.connections), *(["-r", str(self.rate)] if self.rate else [])]
        return [self.kind, self.protocol, *options, *route.targets, str(route.port(ECHO))]

    def at(self, rate: float) -> Echo:
        return replace(self, rate=rate, connections=MANY_CONNECTIONS)


@dataclass(frozen=True, slots=True)
class Ab:
    """ApacheBench against nginx, as published comparisons have it."""

    keepalive: bool = False

    @property
    def name(self) -> str:
        return "ab keepalive" if self.keepalive else "ab short"

    def run(self, program: Path, route: Route, *, seconds: float, cores: Sequence[int]) -> Measured:  # noqa: ARG002
        url = f"http://{route.single}:{route.port(HTTP)}/"
        whole = max(1, round(seconds))  # all that ab understands
        options = [
            "-q",
            "-c",
            str(load.CONNECTIONS),
            "-t",
            str(whole),
            "-n",
            "10000000",
            *(["-k"] if self.keepalive else []),
        ]
        done = route.place.run(
            [*URGENT, *pinned(cores), "ab", *options, url], timeout=whole + 30, start_new_session=True
        )
        return parse_ab(done.stdout)


def parse_ab(text: str) -> Measured:
    """What ab prints for people. Raises KeyError where it did not get to its end."""
    found = dict(re.findall(r"^ *([A-Z][\w -]+:|\d+%) +([\d.]+)", text, re.MULTILINE))
    metrics = {RATE: float(found["Requests per second:"])}
    metrics |= {P50: float(found["50%"]) * 1000, P99: float(found["99%"]) * 1000}
    failed = int(found["Failed requests:"]) + int(found.get("Non-2xx responses:", 0))
    return Measured(metrics, {FAILED: failed} if failed else {})


@dataclass(frozen=True, slots=True)
class Bulk:
    """iperf3, one TCP stream. The cores' busy time is everybody's: only a quiet machine tells what the stream costs."""

    name: str = "bulk"

    def run(self, program: Path, route: Route, *, seconds: float, cores: Sequence[int]) -> Measured:  # noqa: ARG002
        whole = max(1, round(seconds))
        words = ["iperf3", "-J", "-t", str(whole), "-c", route.single, "-p", str(route.port(STREAM))]
        before, began = busy_seconds(cores), time.monotonic()
        done = route.place.run([*URGENT, *pinned(cores), *words], timeout=whole + 30, start_new_session=True)
        busy = min(busy_seconds(cores) - before, (time.monotonic() - began) * len(cores))
        received = json.loads(done.stdout)["end"]["sum_received"]
        metrics = {BITS: received["bits_per_second"], CPU_PER_GB: busy / (received["bytes"] / 1e9)}
        return Measured(metrics, {})


def pinned(cores: Sequence[int]) -> list[str]:
    return ["taskset", "-c", ",".join(map(str, cores))]


SHORT, KEEPALIVE = Echo("short"), Echo("keepalive")
TCP = (SHORT, KEEPALIVE)
UDP = (Echo("short", "udp"), Echo("keepalive", "udp"))
REQUEST_RESPONSE = (Echo("keepalive", "tcp", connections=1), Echo("keepalive", "udp", connections=1))
AB_SHORT, AB_KEEPALIVE, BULK = Ab(), Ab(keepalive=True), Bulk()
ALL = (*TCP, *UDP, *REQUEST_RESPONSE, AB_SHORT, AB_KEEPALIVE, BULK)
