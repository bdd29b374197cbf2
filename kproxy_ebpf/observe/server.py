"""The two HTTP servers: /healthz, /livez and /readyz for kubelet and load balancers, /metrics for Prometheus and
/explain for the commands.
"""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest

from kproxy_ebpf.errors import BusyError, UsageError
from kproxy_ebpf.observe.address import split_address
from kproxy_ebpf.observe.health import Health
from kproxy_ebpf.observe.metrics import Metrics

MAX_CONNECTIONS = 128  # of each server
REQUEST_SECONDS = 10.0
KEEPALIVE_SECONDS = 60.0  # Prometheus and the kubelet ask more often

NOSNIFF = {"X-Content-Type-Options": "nosniff"}

Explain = Callable[[str, str], tuple[int, dict[str, Any]]]
"""From a Service's namespace and name to HTTP status and JSON body."""


def health_app(health: Health, metrics: Metrics, missing: Callable[[], Mapping[str, str]]) -> web.Application:
    """Serves /healthz and /livez, and /readyz: `missing` returns what a node in service still lacks, by topic."""

    def handler(answer: Callable[[], tuple[int, dict[str, Any]]], counter: Counter) -> Any:
        async def handle(_: web.Request) -> web.Response:
            status, body = answer()
            counter.labels(code=str(status)).inc()
            # As bytes: kube-proxy's Content-Type names no charset.
            content = json.dumps(body).encode()
            return web.Response(body=content, status=status, content_type="application/json", headers=NOSNIFF)

        return handle

    app = web.Application()
    app.router.add_get("/healthz", handler(health.healthz, metrics.healthz))
    app.router.add_get("/livez", handler(health.livez, metrics.livez))
    app.router.add_get("/readyz", handler(lambda: health.readyz(missing()), metrics.readyz))
    return app


def metrics_app(registry: CollectorRegistry, explain: Explain | None = None) -> web.Application:
    """Serves /metrics, and with `explain` /explain/NAMESPACE/NAME to clients on this machine.

    Reading the maps may take a while with many flows, so it is done in a thread.
    """

    async def handle(_: web.Request) -> web.Response:
        text = await asyncio.to_thread(generate_latest, registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST, **NOSNIFF})

    app = web.Application()
    app.router.add_get("/metrics", handle)
    if explain is not None:
        app.router.add_get("/explain/{namespace}/{name}", _explaining(explain))
    return app


def _explaining(explain: Explain) -> Any:
    async def handle(request: web.Request) -> web.Response:
        transport = request.transport
        ends = [transport.get_extra_info(end) for end in ("peername", "sockname")] if transport else []
        if not is_from_here(*(end[0] for end in ends if end)):
            return web.Response(status=403, text="only for clients on this machine\n", headers=NOSNIFF)
        status, body = explain(request.match_info["namespace"], request.match_info["name"])
        return web.json_response(body, status=status, headers=NOSNIFF)

    return handle


def is_from_here(peer: str = "", own: str = "") -> bool:
    """True if a connection comes from this machine: over loopback, or with one address at both ends. Metrics are often
    served to the whole cluster, and not everybody who reads them may know every Service.
    """
    try:
        return ip_address(peer).is_loopback or peer == own
    except ValueError:
        return False


@asynccontextmanager
async def serving(app: web.Application, address: str, flag: str) -> AsyncIterator[None]:
    """Serve `app` on `address` inside the block. Raises BusyError that names the address and the flag.

    Whoever can reach the address may open connections and say nothing. So their number is bounded, and the time until
    each has said what it wants: a file descriptor is what the datapath needs, too.
    """
    host, port = split_address(address, flag)
    app.middlewares.append(_note_request)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        listening = await _listen(runner, host, port)
    except OSError as error:
        await runner.cleanup()
        raise _refusal(error, address, flag) from None
    try:
        yield
    finally:
        listening.close()
        await runner.cleanup()


class _Connection(web.RequestHandler):
    """A connection that is closed unless a whole request has come within REQUEST_SECONDS."""

    has_asked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        asyncio.get_running_loop().call_later(REQUEST_SECONDS, self._close_unless_asked)

    def _close_unless_asked(self) -> None:
        if not self.has_asked:
            self.force_close()


@web.middleware
async def _note_request(request: web.Request, handler: Handler) -> web.StreamResponse:
    if isinstance(request.protocol, _Connection):
        request.protocol.has_asked = True
    return await handler(request)


async def _listen(runner: web.AppRunner, host: str | None, port: int) -> asyncio.Server:
    """Accept connections for `runner`. From MAX_CONNECTIONS on, a new one takes the place of one that has not asked
    anything yet, or of the oldest.
    """
    loop, server = asyncio.get_running_loop(), runner.server
    assert server is not None  # noqa: S101 - the runner is set up

    def connection() -> _Connection:
        open_ones = [each for each in server.connections if isinstance(each, _Connection)]
        if len(open_ones) >= MAX_CONNECTIONS:
            next((each for each in open_ones if not each.has_asked), open_ones[0]).force_close()
        return _Connection(server, loop=loop, keepalive_timeout=KEEPALIVE_SECONDS)

    return await loop.create_server(connection, host, port, reuse_address=True)


def _refusal(error: OSError, address: str, flag: str) -> BusyError | UsageError:
    if error.errno == errno.EADDRINUSE:
        return BusyError(f"address {address} is in use by another program: free it, or choose another one with {flag}")
    return UsageError(f"can't listen on {address} ({error.strerror or error}): choose another address with {flag}")
