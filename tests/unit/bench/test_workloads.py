"""What outside tools print, and where requests go."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from bench import load
from bench.churn import move
from bench.growth import fixed_rate
from bench.paths import BASELINE, BEST, PATHS
from bench.population import absent_endpoint, endpoint_slice, vip
from bench.rounds import rotated
from bench.run import Run
from bench.samples import P50, P99, RATE, SHARED, Key, Sample
from bench.workloads import ALL, SHORT, parse_ab
from bench.world import ECHO, FIRST_VIP, HTTP, Route

AB = """
Server Port:            8081
Concurrency Level:      8
Time taken for tests:   1.000 seconds
Complete requests:      25236
Failed requests:        {failed}
Keep-Alive requests:    0
Requests per second:    25236.40 [#/sec] (mean)
Time per request:       0.317 [ms] (mean)

Percentage of the requests served within a certain time (ms)
  50%      1
  99%      4
 100%     19 (longest request)
"""


def test_ab_is_read() -> None:
    measured = parse_ab(AB.format(failed=0))
    assert measured.metrics == {RATE: 25236.4, P50: 1000.0, P99: 4000.0}
    assert measured.errors == {}


def test_ab_failures_are_failures_whatever_was_answered() -> None:
    text = AB.format(failed=3).replace("Keep-Alive", "Non-2xx responses:      4\nKeep-Alive")
    assert parse_ab(text).errors == {"failed": 7}


def test_ab_that_was_cut_short_is_no_result() -> None:
    with pytest.raises(KeyError):
        parse_ab("Benchmarking 10.96.0.1 (be patient)...")


def test_workloads_have_names_of_their_own() -> None:
    names = [workload.name for workload in ALL]
    assert len(set(names)) == len(names)
    assert SHORT.at(1000).name == "tcp short, fixed rate"


def test_a_route_through_a_service_uses_its_ports() -> None:
    route = Route(BEST, "", None, ("10.96.240.1",), "10.96.240.2", through_service=True)  # type: ignore[arg-type]
    assert (route.port(ECHO), route.port(HTTP)) == (80, 81)
    assert replace(route, through_service=False).port(ECHO) == 8080
    assert SHORT.words(route) == ["short", "tcp", "-c", "8", "10.96.240.1", "80"]


def test_ours_are_the_product_of_the_settings() -> None:
    ours = [path for path in PATHS.values() if path.settings and not path.kube_proxy]
    told = [(path.settings["mode"], path.settings["forwarding"]) for path in ours if path.settings]
    assert len(set(told)) == len(told) == 6
    assert all(path.name == "-".join(settings) for path, settings in zip(ours, told, strict=True))


def test_filled_services_and_asked_ones_have_different_addresses() -> None:
    assert IPv4Address(vip(50_000)) < FIRST_VIP
    assert endpoint_slice("service-00001", [absent_endpoint(1)])["endpoints"][0]["addresses"] == ["10.128.0.2"]


def test_every_change_of_a_service_moves_its_endpoint() -> None:
    last: dict[str, str] = {}
    for number in range(21):
        name, address = move(number, 5)
        assert last.get(name, absent_endpoint(int(name[-5:]))) != address
        last[name] = address
    assert len(last) == 5


def test_each_round_begins_with_another_path() -> None:
    assert [rotated("abc", number)[0] for number in range(4)] == ["a", "b", "c", "a"]


def test_a_fixed_rate_is_what_every_path_can_bear() -> None:
    run = Run(samples=[Sample(Key("services", SHARED, SHORT.name, BASELINE), n, {RATE: 26_270}, {}) for n in range(3)])
    route = Route(BASELINE, SHARED, None, (), "", through_service=False)  # type: ignore[arg-type]
    assert fixed_rate(run, route, "services", SHORT) == 11_000


@dataclass(frozen=True, slots=True)
class Server:
    """The load generator's, on loopback."""

    program: Path
    process: subprocess.Popen[str]
    port: str

    def client(self, *words: str) -> list[str | Path]:
        return [self.program, "client", *words, "127.0.0.1", self.port]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    program = load.build()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with subprocess.Popen([program, "server", "127.0.0.1", port], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Server(program, process, port)
        process.terminate()


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("kind", ["short", "keepalive"])
def test_a_fixed_rate_is_kept(server: Server, kind: str, protocol: str) -> None:
    command = server.client(kind, protocol, "-r", "500", "-c", "64", "-s", "0.5")
    told: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert told["errors"] == {}
    assert told["requests"] + told["unanswered"] >= 249


def test_a_stall_counts_for_every_request_that_was_due_meanwhile(server: Server) -> None:
    """The server stops after a third of the time, so most requests have no answer, though only four were sent."""
    command = server.client("keepalive", "tcp", "-r", "1000", "-c", "4", "-s", "0.6")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        time.sleep(0.2)
        server.process.send_signal(signal.SIGSTOP)
        try:
            told = json.loads(client.communicate()[0])
        finally:
            server.process.send_signal(signal.SIGCONT)
    assert told["requests"] + told["unanswered"] >= 599
    assert told["unanswered"] > 200
    assert told["latency_us"]["p90"] > 100_000
