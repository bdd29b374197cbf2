"""The endpoints over real sockets on loopback."""

import asyncio
import socket
from contextlib import AbstractAsyncContextManager

import pytest
from aiohttp import ClientSession
from prometheus_client import CollectorRegistry

from kproxy_ebpf.errors import BusyError, UsageError
from kproxy_ebpf.observe import server
from kproxy_ebpf.observe.health import Health
from kproxy_ebpf.observe.metrics import DatapathCollector, DatapathReading, Metrics
from kproxy_ebpf.observe.server import health_app, metrics_app, serving, split_address


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (":10356", (None, 10356)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("[::1]:80", ("::1", 80)),
        ("localhost:80", ("localhost", 80)),
    ],
)
def test_addresses_are_split(text: str, parts: tuple[str | None, int]) -> None:
    assert split_address(text, "--x") == parts


@pytest.mark.parametrize("text", ["", "10356", "::1:80", "h:", "h:x", "h:70000"])
def test_a_bad_address_names_its_flag(text: str) -> None:
    with pytest.raises(UsageError, match="--health-address"):
        split_address(text, "--health-address")


async def test_health_endpoints_answer_and_count() -> None:
    health, metrics = Health(limit_seconds=60), Metrics()
    address = f"127.0.0.1:{free_port()}"
    missing = {"first-sync": "not yet"}
    app = health_app(health, metrics, lambda: missing)
    async with serving(app, address, "--health-address"), ClientSession() as client:
        async with client.get(f"http://{address}/healthz") as answer:
            assert answer.status == 200
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.content_type == "application/json"
            assert (await answer.json())["nodeEligible"] is True
        health.node_eligible = False
        async with client.get(f"http://{address}/healthz") as answer:
            assert answer.status == 503
        async with client.get(f"http://{address}/livez") as answer:
            assert answer.status == 200
        async with client.get(f"http://{address}/readyz") as answer:
            assert answer.status == 503
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Content-Type"] == "application/json"
            body = await answer.json()
            assert (body["ready"], body["missing"]) == (False, {"first-sync": "not yet"})
        missing.clear()
        async with client.get(f"http://{address}/readyz") as answer:
            assert answer.status == 200, "asked anew each time, and of a node that is being deleted, too"
    count = metrics.registry.get_sample_value
    assert count("kubeproxy_proxy_healthz_total", {"code": "200"}) == 1
    assert count("kubeproxy_proxy_healthz_total", {"code": "503"}) == 1
    assert count("kubeproxy_proxy_livez_total", {"code": "200"}) == 1
    assert count("kproxy_ebpf_readyz_total", {"code": "503"}) == count("kproxy_ebpf_readyz_total", {"code": "200"}) == 1


async def test_metrics_are_read_from_the_datapath_at_each_scrape() -> None:
    metrics = Metrics()
    readings = iter([3, 5])
    metrics.registry.register(
        DatapathCollector(lambda: DatapathReading({"balanced": (next(readings), 400)}, {"flows_v4": (2, 10)}))
    )
    address = f"127.0.0.1:{free_port()}"
    async with serving(metrics_app(metrics.registry), address, "--metrics-address"), ClientSession() as client:
        for packets in (3, 5):
            async with client.get(f"http://{address}/metrics") as answer:
                text = await answer.text()
            assert f'kproxy_ebpf_verdicts_total{{verdict="balanced"}} {packets}.0' in text
    assert 'kproxy_ebpf_verdict_bytes_total{verdict="balanced"} 400.0' in text
    assert 'kproxy_ebpf_table_entries{table="flows_v4"} 2.0' in text
    assert 'kproxy_ebpf_table_max_entries{table="flows_v4"} 10.0' in text


async def test_a_busy_port_is_one_sentence_with_address_and_flag() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        with pytest.raises(BusyError, match=f"{address} .*--metrics-address"):
            async with serving(metrics_app(Metrics().registry), address, "--metrics-address"):
                pass


async def test_a_foreign_address_is_a_wrong_flag() -> None:
    with pytest.raises(UsageError, match="--health-address"):
        async with serving(metrics_app(Metrics().registry), "192.0.2.1:80", "--health-address"):
            pass


@pytest.mark.parametrize(
    ("peer", "own", "here"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", True),
        ("::1", "::1", True),
        ("10.0.0.1", "10.0.0.1", True),
        ("10.244.1.7", "10.0.0.1", False),
        ("fd00::7", "fd00::1", False),
        ("", "", False),
    ],
)
def test_who_is_on_this_machine(peer: str, own: str, here: bool) -> None:
    assert server.is_from_here(peer, own) == here


async def test_clients_elsewhere_get_metrics_but_no_explanation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "is_from_here", lambda *_: False)
    address = f"127.0.0.1:{free_port()}"
    app = metrics_app(CollectorRegistry(), lambda *_: (200, {}))
    async with serving(app, address, "--metrics-address"), ClientSession() as client:
        for path, status in (("explain/shop/web", 403), ("metrics", 200)):
            async with client.get(f"http://{address}/{path}") as answer:
                assert answer.status == status


def health_server(address: str) -> AbstractAsyncContextManager[None]:
    return serving(health_app(Health(limit_seconds=60), Metrics(), dict), address, "--health-address")


async def test_idle_connections_neither_add_up_nor_keep_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 20)
    address = f"127.0.0.1:{(port := free_port())}"
    async with health_server(address):
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(100)]
        async with ClientSession() as client, client.get(f"http://{address}/healthz") as answer:
            assert answer.status == 200
        ended = [reader for reader, _ in idle[:80] if await asyncio.wait_for(reader.read(), 5) == b""]
        assert len(ended) == 80
        for _, writer in idle:
            writer.close()


async def test_a_connection_that_asks_stays_when_idle_ones_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 5)
    request, port = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", free_port()
    async with health_server(f"127.0.0.1:{port}"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(request)
            assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b'"problems": {}}'), 5)
            idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]
            for _, each in idle:
                each.close()
        writer.close()


@pytest.mark.parametrize("said", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n"])
async def test_a_request_that_is_never_finished_ends(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.1)
    port = free_port()
    async with health_server(f"127.0.0.1:{port}"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
